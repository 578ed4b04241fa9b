"""Gathers the packages that a bare machine lacks as wheels (`make gpu-wheels`), and puts them on the path for the benchmark.

Uses only the standard library: the packages are not installed yet.
"""

import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(".gpu-wheels")
COMMIT = "COMMIT"
PYTHON, GLIBC = "3.12", range(39, 16, -1)
WANTED = (
    "transformers",
    "tokenizers",
    "pydantic",
    "pydantic-core",
    "typing-inspection",
    "annotated-types",
    "rapidfuzz",
    "liger-kernel",
    "beartype",
    "mistral-common",
)
"""Packages, at the lock's version if any. Transformers and tokenizers are newer than the bare machine's; mistral-common ships
tokenizers of released models."""
LARGEST_MIB = 50


def gather() -> None:
    """Downloads the wheels for the bare machine's Python and platform, with pip's configuration; replaces an old set."""
    FOLDER.mkdir(exist_ok=True)
    for old in FOLDER.iterdir():
        old.unlink()
    platforms = [f"manylinux_2_{minor}_x86_64" for minor in GLIBC] + ["manylinux2014_x86_64", "manylinux1_x86_64"]
    pip = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "--dest",
        str(FOLDER),
    ]
    pip += ["--python-version", PYTHON, "--implementation", "cp"]
    pip += [option for platform in platforms for option in ("--platform", platform)]
    subprocess.run([*pip, *(f"{name}{version}" for name, version in versions().items())], check=True)
    size = sum(file.stat().st_size for file in FOLDER.iterdir()) / 2**20
    if size > LARGEST_MIB:
        raise SystemExit(f"{FOLDER}: {size:.0f} MiB, more than the allowed {LARGEST_MIB}")
    commit = subprocess.run(["git", "describe", "--always", "--dirty=+", "--abbrev=12"], capture_output=True, text=True)
    (FOLDER / COMMIT).write_text(commit.stdout)
    print(f"{FOLDER}: {len(list(FOLDER.glob('*.whl')))} wheels for Python {PYTHON}, {size:.0f} MiB")


def versions() -> dict[str, str]:
    """Returns the wanted packages, pinned to this environment's versions; missing ones are unpinned."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in WANTED:
        try:
            found[name] = f"=={version(name)}"
        except PackageNotFoundError:
            found[name] = ""
    return found


def unpack() -> None:
    """Puts the gathered packages first on the path, if there are any for this Python."""
    if f"{sys.version_info.major}.{sys.version_info.minor}" != PYTHON or not FOLDER.is_dir():
        return
    site = tempfile.mkdtemp(prefix="gpu-wheels-")
    for wheel in FOLDER.glob("*.whl"):
        with zipfile.ZipFile(wheel) as packed:
            packed.extractall(site)
    sys.path.insert(0, site)


if __name__ == "__main__":
    gather()
