"""The program that runs an answer's code and its tests: `python -I sandboxed.py LIMITS`, in the folder to work in.

It imports nothing of this project. LIMITS is JSON: `isolate`, `seconds`, `memory_bytes`, `file_bytes`, `folder_bytes`, `processes`.
The job comes on standard input as JSON: `code`, `tests`. The result goes to standard output as JSON: `passed` (number of tests) and
`reason` (of the first failure, or null); or `fault`, why the sandbox could not be made.

The outer process makes the sandbox and holds the clock. An inner process, the first of its own process namespace, gives up all
privileges, and runs the code. When it ends, the kernel ends every process that the code has started.
"""

import ast
import contextlib
import ctypes
import errno
import json
import os
import resource
import secrets
import select
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, NoReturn

NEWNS, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MOUNT_SETATTR, AT_FDCWD, AT_RECURSIVE, ATTR_RDONLY = 442, -100, 0x8000, 1
SET_PDEATHSIG, SET_CHILD_SUBREAPER, SET_NO_NEW_PRIVS = 1, 36, 38
CAPABILITY_VERSION = 0x20080522
HIDDEN = ("/home", "/root", "/tmp", "/var/tmp", "/run", "/dev/shm", "/proc")
"""Folders of other users and programs, whose sockets a read-only mount would not close; they are empty inside."""
FIRST_ID, NUM_IDS = 61184, 4000
"""User ids that nobody has (systemd's dynamic ones): root's sandboxes run as one of them each."""
REPORT_BYTES = 1 << 16

libc = ctypes.CDLL(None, use_errno=True)


class SystemCallError(Exception):
    """The sandbox cannot be made."""


def call(what: str, *arguments: Any) -> None:
    """Calls a function of the C library; raises SystemCallError with its name and the system's reason if it fails."""
    if getattr(libc, what)(*arguments):
        raise SystemCallError(f"{what}: {os.strerror(ctypes.get_errno())}")


def mount(source: str | None, target: str, kind: str | None, flags: int, options: str = "") -> None:
    """Mounts a file system."""
    texts = [text.encode() if text else None for text in (source, target, kind)]
    call("mount", *texts, ctypes.c_ulong(flags), options.encode())


def isolate(limits: dict[str, Any]) -> int | None:
    """Enters namespaces without network, other processes and other programs' folders, where only the working folder is writable.

    Returns:
        The user id that the code is to have; None to keep it.
    """
    folder, uid, gid = os.getcwd(), os.getuid(), os.getgid()
    spaces = NEWNS | NEWUTS | NEWIPC | NEWPID | NEWNET
    call("unshare", spaces if uid == 0 else spaces | NEWUSER)
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    named = [path for path in (sys.prefix, sys.base_prefix, *sys.path) if os.path.isdir(path)]
    kept = {form(path) for path in named for form in (os.path.abspath, os.path.realpath)}
    hidden = [path for path in HIDDEN if os.path.isdir(path) and not os.path.islink(path)]
    inside = {path: os.open(path, os.O_PATH) for path in kept if any(f"{path}/".startswith(f"{h}/") for h in hidden)}
    # /proc is the last one: the folders that are kept are mounted through it.
    for path in hidden[:-1]:
        mount("tmpfs", path, "tmpfs", MS_NOSUID | MS_NODEV, "size=64k,mode=755")
    for path in sorted(inside, key=len):
        os.makedirs(path, exist_ok=True)
        mount(f"/proc/self/fd/{inside[path]}", path, None, MS_BIND | MS_REC)
    os.makedirs(folder, exist_ok=True)
    mount("tmpfs", hidden[-1], "tmpfs", MS_NOSUID | MS_NODEV, "size=64k,mode=755")
    attributes = (ctypes.c_uint64 * 4)(ATTR_RDONLY, 0, 0, 0)
    root, size = ctypes.c_char_p(b"/"), ctypes.c_size_t(32)
    if libc.syscall(ctypes.c_long(MOUNT_SETATTR), AT_FDCWD, root, AT_RECURSIVE, ctypes.byref(attributes), size):
        raise SystemCallError(f"mount_setattr: {os.strerror(ctypes.get_errno())}")
    own = FIRST_ID + os.getpid() % NUM_IDS if uid == 0 else None
    owner = f",uid={own},gid={own}" if own else ""
    mount("tmpfs", folder, "tmpfs", MS_NOSUID | MS_NODEV, f"size={limits['folder_bytes']},mode=700{owner}")
    os.chdir(folder)
    return own


def give_up(own: int | None) -> None:
    """Gives up the privileges that made the sandbox, for good."""
    if own:
        os.setgroups([])
        os.setresgid(own, own, own)
        os.setresuid(own, own, own)
    else:
        header, sets = (ctypes.c_uint32 * 2)(CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
        call("capset", ctypes.byref(header), ctypes.byref(sets))
    call("prctl", SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def limit(limits: dict[str, Any]) -> None:
    """Sets the limits of every process of the code."""
    seconds = int(limits["seconds"]) + 1
    for what, most in (
        (resource.RLIMIT_AS, limits["memory_bytes"]),
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_FSIZE, limits["file_bytes"]),
        (resource.RLIMIT_NPROC, limits["processes"]),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_CORE, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))


def reason_of(error: BaseException) -> str:
    """Names the kind of a failure."""
    if isinstance(error, AssertionError):
        return "wrong"
    is_memory = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)
    return "out_of_memory" if is_memory else "with_errors"


def run(code: str, tests: list[str], report: Callable[[int, str], Any]) -> None:
    """Runs the code once and then each test; reports a word on the code if it fails (as number -1), and on each test."""
    space = {"__name__": "answer", "__builtins__": __builtins__}
    try:
        tree = ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        report(-1, "not_python")
        return
    try:
        exec(compile(tree, "answer.py", "exec"), space)
    except BaseException as error:
        report(-1, reason_of(error))
        return
    for number, test in enumerate(tests):
        try:
            exec(compile(test, f"test_{number}.py", "exec"), space)
            report(number, "passed")
        except BaseException as error:
            report(number, reason_of(error))


def inner(job: dict[str, Any], limits: dict[str, Any], own: int | None, report_to: int) -> NoReturn:
    """The first process inside: runs the job and never returns."""
    token = job["token"]
    os.setsid()
    libc.prctl(SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    try:
        if limits["isolate"]:
            give_up(own)
        limit(limits)
    except (SystemCallError, OSError, ValueError) as error:
        os.write(report_to, f"{token} fault {error}\n".encode())
        os._exit(1)
    run(job["code"], job["tests"], lambda number, word: os.write(report_to, f"{token} {number} {word}\n".encode()))
    os._exit(0)


def watch(child: int, read_from: int, seconds: float) -> tuple[bytes, str | None]:
    """Returns what the inner process reports until it ends or the time is over, and then `out_of_time`."""
    deadline, text, ended = time.monotonic() + seconds, b"", os.pidfd_open(child)
    while len(text) < REPORT_BYTES:
        left = deadline - time.monotonic()
        ready = select.select([read_from, ended], [], [], max(0, left))[0]
        if not ready:
            return text, "out_of_time"
        found = os.read(read_from, REPORT_BYTES) if read_from in ready else b""
        if not found:
            break
        text += found
    return text, None


def end(child: int) -> int:
    """Ends the inner process and everything that it has started; returns its status."""
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    # With a process namespace nothing is left. Without one, what has left its parents is a child of this process now.
    for _ in range(1000):
        with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children") as file:
            for orphan in file.read().split():
                os.kill(int(orphan), signal.SIGKILL)
        try:
            os.waitpid(-1, 0)
        except ChildProcessError:
            break
    return status


def result_of(text: bytes, late: str | None, status: int, token: str, num_tests: int) -> dict[str, Any]:
    """Returns the result as it is written."""
    lines = [line for line in text.decode(errors="replace").splitlines() if line.startswith(f"{token} ")]
    lines = [line[len(token) + 1 :] for line in lines]
    if lines and lines[0].startswith("fault "):
        return {"fault": lines[0][6:]}
    found: dict[str, str] = {}
    for line in lines:
        number, _, word = line.partition(" ")
        # The first word counts: a copy of the process that the code has made reports too.
        found.setdefault(number, word)
    passed = sum(found.get(str(number)) == "passed" for number in range(num_tests))
    failed = [word for word in found.values() if word != "passed"]
    is_cpu = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
    rest = late or ("out_of_time" if is_cpu else "with_errors")
    return {"passed": passed, "reason": None if passed == num_tests else failed[0] if failed else rest}


def main() -> None:
    """Runs the job of standard input."""
    limits, job = json.loads(sys.argv[1]), json.load(sys.stdin.buffer)
    job["token"] = secrets.token_hex()
    answer, null = os.dup(1), os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    try:
        libc.prctl(SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        own = isolate(limits) if limits["isolate"] else None
        read_from, report_to = os.pipe()
        child = os.fork()
        if not child:
            os.close(answer)
            os.close(read_from)
            inner(job, limits, own, report_to)
        os.close(report_to)
        text, late = watch(child, read_from, limits["seconds"])
        result = result_of(text, late, end(child), job["token"], len(job["tests"]))
    except (SystemCallError, OSError) as error:
        result = {"fault": str(error)}
    os.write(answer, json.dumps(result).encode())


if __name__ == "__main__":
    main()
