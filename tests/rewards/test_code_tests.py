"""`code_tests`: what counts as an answer's code, its reward and reasons, and what code cannot do in the sandbox."""

import json
import math
import os
import socket
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profuser.errors import UserError
from profuser.recipe.verifiers import CodeTestsConfig
from profuser.rewards import code_answers
from profuser.rewards.code_answers import code_of
from profuser.rewards.kinds import Verifier, kind_of, load_judge
from profuser.rewards.sandbox import PROGRAM, SandboxLimits, missing_isolation, run_tests

ISOLATED = SandboxLimits(seconds=5, memory_bytes=1 << 30)
BARE = SandboxLimits(seconds=5, memory_bytes=1 << 30, isolate=False)
ADD = "def add(a, b):\n    return a + b\n"
TESTS = ["assert add(1, 2) == 3", "assert add(0, 0) == 0"]

isolation = pytest.mark.skipif(missing_isolation() is not None, reason=f"needs isolation: {missing_isolation()}")


def config(**settings):
    return CodeTestsConfig(kind="code_tests", name="code", **{"allow_unsandboxed": True, **settings})


def rewards(*answers, tests=TESTS, **settings):
    judge = load_judge(config(**settings))
    rows = [{"row_id": "r", "response": "", "category": None, "tests": tests}] * len(answers)
    return judge.score(rows, list(answers)).tolist(), dict(judge.reasons)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (ADD, (ADD, False)),
        (f"Here:\n```python\n{ADD}```\nDone.", (ADD, True)),
        (f"```py\nwrong\n```\nBetter:\n```python\n{ADD}```", (ADD, True)),
        (f"```python\n{ADD}```\nUse it so:\n```bash\npython add.py\n```", (ADD, True)),
        (f"```\n{ADD}```", (ADD, True)),
        (f"```python\n{ADD}", (ADD, True)),
        ("1. So:\n   ```python\n   x = 1\n   ```\n", ("x = 1\n", True)),
        ("```java\nint x;\n```", ("```java\nint x;\n```", False)),
    ],
)
def test_the_code_of_an_answer(answer, expected):
    assert code_of(answer) == expected


def test_the_reward_is_the_share_of_tests_that_pass_or_whether_all_do():
    answers = [ADD, "def add(a, b): return 0", "def add(a, b): return -1", "```python\nx = \n```", "I cannot do that."]
    reasons = {"wrong": 2, "with_errors": 1, "without_code": 1}
    assert rewards(*answers) == ([1, 0.5, 0, 0, 0], reasons)
    assert rewards(*answers, score="all") == ([1, 0, 0, 0, 0], reasons)
    assert rewards(*answers, num_workers=1) == rewards(*answers, num_workers=4)


@pytest.mark.parametrize("tests", [None, []])
def test_a_row_without_tests_is_not_judged(tests):
    found, reasons = rewards(ADD, tests=tests)
    assert math.isnan(found[0])
    assert not reasons


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.sampled_from(["assert True", "assert False", "1 / 0", "x = 1", "raise SystemExit"]), min_size=1, max_size=6
    )
)
def test_every_test_counts_whatever_those_before_it_do(tests):
    passed, reason = run_tests("", tests, BARE)
    failed = [test for test in tests if test not in ("assert True", "x = 1")]
    assert passed == len(tests) - len(failed)
    assert reason == (("wrong" if "assert" in failed[0] else "with_errors") if failed else None)


FAILURES = [
    ("while True: pass", "out_of_time"),
    ("import time; time.sleep(1000)", "out_of_time"),
    (
        "import signal\nfor s in range(1, 32):\n    if s not in (9, 19): signal.signal(s, lambda *_: None)\nwhile True: pass",
        "out_of_time",
    ),
    ("import os; os.kill(os.getpid(), 19); import time; time.sleep(1000)", "out_of_time"),
    ("x = bytearray(10 << 30)", "out_of_memory"),
    ("import mmap; x = [mmap.mmap(-1, 300 << 20) for _ in range(9)]", "out_of_memory"),
    ("raise SystemExit(0)", "with_errors"),
    ("import os; os._exit(0)", "with_errors"),
    ("import ctypes; ctypes.string_at(0)", "with_errors"),
    ("def f(): f()\nf()", "with_errors"),
    ("input()", "with_errors"),
    ("open('big', 'wb').write(bytes(17 << 20))", "with_errors"),
    ("while True: print('x' * 10000)", "out_of_time"),
    (
        "import os\nfor fd in range(3, 20):\n    try: os.write(fd, b'0 passed\\n' * 9000)\n    except OSError: pass\n1 / 0",
        "with_errors",
    ),
]


@pytest.mark.parametrize(
    "limits", [pytest.param(ISOLATED, marks=isolation, id="isolated"), pytest.param(BARE, id="limits")]
)
@pytest.mark.parametrize(("code", "reason"), FAILURES)
def test_code_that_fails_is_ended_and_gets_nothing(code, reason, limits):
    passed, found = run_tests(code, ["assert True"], SandboxLimits(**{**asdict(limits), "seconds": 1}))
    assert (passed, found) == (0, reason)


@isolation
def test_a_fork_bomb_ends_with_its_sandbox():
    before = {process.pid for process in psutil.process_iter()}
    passed, _ = run_tests(
        "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
        ["assert True"],
        SandboxLimits(2, 1 << 30),
    )
    assert passed == 0
    assert survivors(before) == []


@pytest.mark.parametrize(
    "limits", [pytest.param(ISOLATED, marks=isolation, id="isolated"), pytest.param(BARE, id="limits")]
)
def test_no_process_survives_an_answer(limits):
    fork = "import os\nfor _ in range(3):\n    if not os.fork():\n        os.setsid()\n"
    code = f"{fork}        if not os.fork():\n            while True: pass"
    run_tests(code, ["assert True"], SandboxLimits(**{**asdict(limits), "seconds": 2}))
    assert survivors() == []


def survivors(before=()):
    """Returns the processes of sandboxes that do not end; those of `before` are not looked at. A killed one may take a moment."""
    found = [
        process
        for process in psutil.process_iter(["cmdline"])
        if process.pid not in before and str(PROGRAM) in (process.info["cmdline"] or []) and _is_ours(process)
    ]
    return psutil.wait_procs(found, timeout=10)[1]


def _is_ours(process):
    """Returns whether a sandbox belongs to no other test that runs concurrently: its parents are gone or are this process."""
    with suppress(psutil.Error):
        parents = [parent.pid for parent in process.parents()]
        return process.is_running() and (process.ppid() == 1 or os.getpid() in parents)
    return False


def test_copies_of_the_process_that_report_too_do_not_count():
    code = "import os\nos.fork()"
    assert run_tests(code, ["assert True", "assert False", "assert False"], BARE) == (1, "wrong")


@isolation
@pytest.mark.parametrize(
    "attack",
    [
        "open(OUTSIDE + '/new', 'w')",
        "open(OUTSIDE + '/file', 'a')",
        "import os; os.remove(OUTSIDE + '/file')",
        "open('/var/log/profuser-test', 'w')",
        "import os; os.makedirs('/profuser-test')",
        "print(open(OUTSIDE + '/file').read())",
        "import socket; socket.create_connection(('127.0.0.1', PORT), 2)",
        "import socket; socket.create_connection(('1.1.1.1', 53), 2)",
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect(OUTSIDE + '/socket')",
        "import os; os.environ['SECRET']",
        "print(open('/proc/1/environ').read())",
        "print(open(f'/proc/{PARENT}/environ').read())",
        "import os; os.kill(PARENT, 0)",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (-1, -1))",
        "import os; os.setuid(0); open('/etc/profuser-test', 'w')",
        "import ctypes; assert ctypes.CDLL(None).umount2(b'/tmp', 2) == 0; open(OUTSIDE + '/file')",
        "import ctypes; c = ctypes.CDLL(None); c.unshare(0x10020000); c.umount2(b'/tmp', 2); open(OUTSIDE + '/file')",
        "import ctypes; c = ctypes.CDLL(None); c.unshare(0x10020000); assert c.mount(None, b'/', None, 4128, None) == 0",
    ],
)
def test_code_in_the_sandbox_reaches_nothing_outside(attack, tmp_path_factory, monkeypatch):
    monkeypatch.setenv("SECRET", "s3cret")
    outside = tmp_path_factory.mktemp("outside")
    outside.chmod(0o777)
    (outside / "file").write_text("before")
    (outside / "file").chmod(0o666)
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(outside / "socket"))
        local.listen()
        (outside / "socket").chmod(0o777)
        names = f"OUTSIDE, PORT, PARENT = {str(outside)!r}, {server.getsockname()[1]}, {os.getpid()}\n"
        assert run_tests(names + "assert True", ["assert True"], ISOLATED).passed == 1
        assert run_tests(names + attack, ["assert True"], ISOLATED).passed == 0
    assert sorted(path.name for path in outside.iterdir()) == ["file", "socket"]
    assert (outside / "file").read_text() == "before"
    assert not Path("/profuser-test").exists()


@isolation
def test_code_in_the_sandbox_has_an_empty_folder_and_pythons_packages():
    tests = [
        "import os; assert os.listdir() == []",
        "assert os.getcwd() == os.environ['HOME']",
        "assert set(os.environ) <= {'PATH', 'HOME', 'LC_CTYPE'}",
        "open('a', 'w').write('b'); assert open('a').read() == 'b'",
        "import numpy; assert numpy.arange(3).sum() == 3",
        "import concurrent.futures as f; assert list(f.ThreadPoolExecutor(2).map(abs, [-1])) == [1]",
        "import subprocess, sys; assert subprocess.run([sys.executable, '-c', '']).returncode == 0",
        "assert os.getuid() != 0",
    ]
    assert run_tests("", tests, ISOLATED) == (len(tests), None)
    assert run_tests("", ["import os; assert os.listdir() == []"], ISOLATED).passed == 1


@isolation
@pytest.mark.skipif(os.getuid() != 0, reason="needs root, to be another user")
@pytest.mark.skipif(not Path("/usr/bin/python3").exists(), reason="needs a Python that every user can read")
def test_a_user_without_privileges_has_the_sandbox_too(tmp_path_factory):
    folder = tmp_path_factory.mktemp("work")
    os.chown(folder, 65534, 65534)
    program = folder / PROGRAM.name
    program.write_text(PROGRAM.read_text())
    for parent in (folder, *folder.parents[:-2]):
        parent.chmod(0o755)
    tests = [
        "assert os.getuid() == 65534",
        "open('/var/tmp/x', 'w')",
        "socket.create_connection(('127.0.0.1', 1), 1)",
        "open('y', 'w')",
    ]
    done = subprocess.run(
        ["/usr/bin/python3", "-I", str(program), json.dumps(asdict(ISOLATED))],
        input=json.dumps({"code": "import os, socket", "tests": tests}).encode(),
        stdout=subprocess.PIPE,
        cwd=folder,
        user=65534,
        group=65534,
        extra_groups=[],
        timeout=60,
        check=True,
    )
    assert json.loads(done.stdout) == {"passed": 2, "reason": "with_errors"}
    assert not Path("/var/tmp/x").exists()


def test_answers_run_concurrently_and_in_any_thread():
    barrier, found = threading.Barrier(4), []

    def rule(row, answer):
        barrier.wait(60)
        return run_tests(answer, row["tests"], BARE).passed

    judge, counted = Verifier(rule, num_workers=4), []
    judge.answered = counted.append
    rows = [{"tests": TESTS}] * 4
    thread = threading.Thread(target=lambda: found.extend(judge.score(rows, [ADD, "", ADD, ""]).tolist()))
    thread.start()
    thread.join(60)
    assert found == [2, 0, 2, 0]
    assert sum(counted) == 4


def test_code_that_ends_the_program_around_it_fails_only_itself(monkeypatch):
    monkeypatch.setattr(code_answers, "missing_isolation", lambda: "not here")
    killer = "import os, signal; os.kill(os.getppid(), signal.SIGKILL)\n" + ADD
    assert rewards(killer, ADD)[0] == [0, 1]


def test_a_machine_without_isolation_is_refused_before_the_run_unless_the_recipe_allows_it(monkeypatch):
    monkeypatch.setattr(code_answers, "missing_isolation", lambda: "unshare: Operation not permitted")
    strict, lax = config(allow_unsandboxed=False), config()
    with pytest.raises(
        UserError, match=r"rewards.code.allow_unsandboxed: this machine cannot isolate .*not permitted.*set it to true"
    ):
        kind_of(strict).check(strict)
    with pytest.raises(UserError, match="cannot isolate"):
        load_judge(strict)
    kind_of(lax).check(lax)
    assert "cannot isolate code (unshare: Operation not permitted); with allow_unsandboxed" in kind_of(lax).line(lax)
    assert rewards(ADD)[0] == [1]


@isolation
def test_a_dry_run_says_that_isolation_is_available():
    assert kind_of(config()).line(config()).startswith("rewards.code: isolation is available on this machine")


def test_the_program_imports_nothing_of_the_project():
    code = (
        f"import runpy, sys; runpy.run_path({str(PROGRAM)!r}); assert not [n for n in sys.modules if 'profuser' in n]"
    )
    subprocess.run([sys.executable, "-I", "-c", code], check=True, timeout=60)
