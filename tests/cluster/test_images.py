"""The images, tested without a Docker daemon: linted, and every step's inputs checked against the project."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from profuser import __version__
from ray_jobs.runtime.environment import ENVIRONMENT
from tests.cluster.rendered import ROOT, found, pods, render

DOCKERFILES = {"gpu": ROOT / "cluster" / "Dockerfile", "cpu": ROOT / "cluster" / "Dockerfile.cpu"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

both = pytest.mark.parametrize("build", DOCKERFILES)


def instructions(build: str) -> list[tuple[str, str]]:
    """Returns the instructions of a Dockerfile in order, with continued lines joined and comments removed."""
    lines = [line for line in DOCKERFILES[build].read_text().splitlines() if not line.startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(word, rest) for line in text.splitlines() if line for word, _, rest in [line.partition(" ")]]


def copied(build: str) -> list[str]:
    """Returns the paths that the image copies from the repository."""
    copies = [shlex.split(rest) for word, rest in instructions(build) if word == "COPY"]
    return [name for words in copies if not words[0].startswith("--from") for name in words[:-1]]


@both
def test_hadolint_reports_nothing(build):
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, "--no-color", str(DOCKERFILES[build])], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.returncode) == ("", 0)


@both
def test_copied_paths_exist_and_are_not_ignored(build):
    patterns = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and line[0] != "#"]
    assert patterns[0] == "*"
    for name in copied(build):
        assert (ROOT / name).exists(), name
        assert f"!{name}" in patterns, name


def test_the_build_context_has_only_what_the_images_copy():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert kept == {name for build in DOCKERFILES for name in copied(build)}


@both
def test_the_dependency_layer_installs_the_lock_of_the_build(build):
    words = instructions(build)
    (layer,) = [place for place, (word, rest) in enumerate(words) if word == "RUN" and "locks/install.py" in rest]
    before = {name for word, rest in words[:layer] if word == "COPY" for name in shlex.split(rest)[:-1]}
    assert before == {"locks/install.py", "locks/uv.py", f"locks/{build}.txt"}
    assert found(r"python (locks/install\.py \S+)", words[layer][1]) == f"locks/install.py {build}"


@both
def test_the_image_installs_as_make_does(build):
    runs = " ".join(rest for word, rest in instructions(build) if word == "RUN")
    command = r"python locks/install\.py (\S+)"
    assert found(command, runs) == build
    assert found(command, (ROOT / "Makefile").read_text()) == "$(BUILD)"
    assert all("--no-deps" in run for run in re.findall(r"pip install ([^&]+)", runs))


@both
def test_the_image_has_compiled_modules(build):
    # User 1000 cannot write them, and uv writes none by default.
    environment = " ".join(rest for word, rest in instructions(build) if word == "ENV")
    assert "UV_COMPILE_BYTECODE=1" in environment


@pytest.mark.parametrize("arguments", [[], ["tpu"], ["cpu", "dev"]])
def test_an_unknown_build_prints_the_usage(arguments):
    script = [sys.executable, str(ROOT / "locks" / "install.py"), *arguments]
    done = subprocess.run(script, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "Usage: python locks/install.py cpu|gpu [--develop]" in done.stderr


@both
def test_the_image_runs_the_command_as_the_manifests_user(build):
    words = instructions(build)
    last = len(words) - 1 - [word for word, _ in reversed(words)].index("FROM")
    final = dict(words[last:])
    user, group = final["USER"].split(":")
    assert int(user) > 0
    for pod in pods(render("kind")):
        context = pod.spec["securityContext"]
        assert (context["runAsUser"], context["runAsGroup"]) == (int(user), int(group))
    assert final["CMD"].split('"')[1] in PROJECT["scripts"]
    assert f":{__version__}-{build} " in DOCKERFILES[build].read_text()


@both
def test_base_images_share_one_supported_version(build):
    bases = {rest.split()[0] for word, rest in instructions(build) if word == "FROM"}
    (base,) = bases
    version = found(r"^python:(\d+\.\d+)\.\d+-slim-\w+$", base).split(".")
    lowest = found(r"^>=(\d+\.\d+)$", PROJECT["requires-python"]).split(".")
    assert [int(number) for number in version] >= [int(number) for number in lowest]


@both
def test_the_image_sets_ray_serves_variables_like_our_driver(build):
    pairs = [word.partition("=") for name, rest in instructions(build) if name == "ENV" for word in shlex.split(rest)]
    given = {name: value for name, _, value in pairs}
    assert {
        name: value for name, value in ENVIRONMENT.items() if name.startswith("RAY_SERVE_")
    }.items() <= given.items()


@both
def test_a_probe_finds_wget_and_a_login_shell_finds_ray(build):
    final = " ".join(rest for word, rest in instructions(build) if word == "RUN")
    assert re.search(r"apt-get install [^&]* wget\b", final)
    assert '"PATH=/opt/venv/bin:\\$PATH" > /etc/profile.d/' in final
