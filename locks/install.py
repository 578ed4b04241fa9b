"""Installs a build from its lock into this Python's environment: with uv, or with pip where uv cannot run.

Usage: python locks/install.py cpu|gpu [--develop]

--develop adds the development tools and the project itself, editable, and removes what the locks do not name.
"""

import re
import subprocess
import sys
from pathlib import Path

LOCKS = Path(__file__).parent
KERNELS = Path(sys.prefix) / "kernels"
UV = [sys.executable, str(LOCKS / "uv.py"), "pip"]
PIP = [sys.executable, "-m", "pip"]
PYTORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def succeeds(command: list[str], quiet: bool = False) -> bool:
    """Runs a command and returns whether its exit status is 0."""
    return subprocess.run(command, capture_output=quiet).returncode == 0


def pytorch(tool: list[str], build: str) -> list[str]:
    """Returns the options that reach PyTorch's CPU wheels: none where the configured indexes have the locked one."""
    locked = re.search(r"^torch==\S+\+cpu", (LOCKS / f"{build}.txt").read_text(), re.MULTILINE)
    if not locked or succeeds([*tool, "install", "--dry-run", "--no-deps", locked[0]], quiet=True):
        return []
    return ["--torch-backend", "cpu"] if tool == UV else ["--extra-index-url", PYTORCH_INDEX]


def install(tool: list[str], build: str, develop: bool) -> bool:
    """Installs the build with one tool and returns whether all of it is installed."""
    add = [*tool, "install", "--quiet", "--no-deps"]
    files = [str(LOCKS / f"{name}.txt") for name in (build, *(["dev"] if develop else []))]
    locked = [word for file in files for word in ("--requirement", file)]
    exact = ["--exact"] if tool == UV and develop else []
    if not succeeds([*add, *exact, "--require-hashes", *locked, *pytorch(tool, build)]):
        return False
    if not develop:
        return True
    if not succeeds([*add, "--editable", "."]):
        return False
    # With a CPU torch, importing Triton only warns: its interpreter is installed in a separate folder.
    kernels = ["--group", "kernels", "--constraint", str(LOCKS / "gpu.txt"), "--target", str(KERNELS), "--upgrade"]
    return build != "cpu" or succeeds([*add, *kernels])


def main(build: str, develop: bool) -> int:
    """Returns the exit status: 0 when the build is installed."""
    if install(UV, build, develop):
        return 0
    print("uv did not install the lock (see above); trying pip", file=sys.stderr)
    upgraded = succeeds([*PIP, "install", "--quiet", "--upgrade", "pip>=25.1"])  # the first with --group
    return 0 if upgraded and install(PIP, build, develop) else 1


if __name__ == "__main__":
    if sys.argv[1:2] not in (["cpu"], ["gpu"]) or sys.argv[2:] not in ([], ["--develop"]):
        raise SystemExit(__doc__)
    sys.exit(main(sys.argv[1], sys.argv[2:] == ["--develop"]))
