"""Compares the final expression of an answer with the ground truth's, by math-verify in a process of its own."""

import json
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from profuser.corpus.thinking import without_thinking
from profuser.errors import EngineError, UserError
from profuser.recipe.verifiers import MathVerifyConfig
from profuser.rewards.judges import Verdict

MEMORY_BYTES = 4 << 30
"""Address space of the process: a number of a billion digits is refused, not computed."""
GSM8K_MARK = re.compile(r"^[ \t]*####(?!#)", re.MULTILINE)
"""What stands before the final answer in GSM8K, at the beginning of a line."""
DELIMITED = re.compile(r"\$|\\\(|\\\[|\\boxed|\\begin")
NOTATION = re.compile(r"[\\{}()\[\]^=]")
"""What makes a text without words more than a number."""
WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2,}")
NOT_JUDGED = Verdict(math.nan)


def check_library(config: MathVerifyConfig) -> None:
    """Raises UserError if math-verify is not installed."""
    if find_spec("math_verify") is None:
        raise UserError(
            f"rewards.{config.name}.kind: math_verify needs the package math-verify; pip install math-verify, on every node"
        )


def final_part(text: str) -> str:
    """Returns the part of a text that math-verify reads: what follows the last `####` at the beginning of a line, else the whole.

    The library reads LaTeX between delimiters only (`$...$`, `\\[...\\]`, `\\boxed{}`). A text that is nothing but notation, such
    as `\\sqrt{2}` or `(0, 1]`, is put between dollars.
    """
    part = GSM8K_MARK.split(text)[-1].strip()
    is_bare = "\n" not in part and NOTATION.search(part) and not DELIMITED.search(part) and not WORD.search(part)
    return f"${part}$" if is_bare else part


class MathVerify:
    """The rule of `math_verify`. Its process starts with the first answer, and again after one that had to be stopped.

    math-verify limits its time by signals, which work in a main thread only, and not inside of a long computation in C: it is
    called without limits, as its documentation says for threads, in a process that has its own.
    """

    def __init__(self, config: MathVerifyConfig):
        check_library(config)
        self.config = config
        self.process: subprocess.Popen[str] | None = None

    def __call__(self, row: Mapping[str, Any], answer: str) -> Verdict:
        """Returns 1 if the expressions are equal and 0 if not; NaN if the ground truth has no expression."""
        if self.process is None or self.process.poll() is not None:
            self.process = self._start()
        process, is_judged = self.process, False
        assert process.stdin
        try:
            process.stdin.write(json.dumps([final_part(without_thinking(row["response"])), final_part(answer)]) + "\n")
            process.stdin.flush()
            if _line(process) == "not_judged":
                return NOT_JUDGED
            is_judged = True
            outcome = _line(process)
        except (EOFError, BrokenPipeError):
            late = process.wait() == -signal.SIGALRM
            return Verdict(0.0, "out_of_time" if late else "crashed") if is_judged else NOT_JUDGED
        return Verdict(1.0) if outcome == "equal" else Verdict(0.0, outcome)

    def _start(self) -> "subprocess.Popen[str]":
        """Starts the process, whose imports take a second or two that do not count."""
        command = [sys.executable, "-P", "-m", "profuser.rewards.math_process"]
        process = subprocess.Popen(
            [*command, str(self.config.timeout_seconds), str(MEMORY_BYTES)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            encoding="utf-8",
        )
        try:
            _line(process)
        except EOFError:
            status = process.wait()
            raise EngineError(
                f"rewards.{self.config.name}: the process of math-verify ended with status {status}; its error is above"
            ) from None
        return process


def _line(process: "subprocess.Popen[str]") -> str:
    """Reads a line that the process writes; raises EOFError if it has ended."""
    assert process.stdout
    line = process.stdout.readline()
    if not line.endswith("\n"):
        raise EOFError
    return line[:-1]
