"""Runs the code of answers against the tests of their rows."""

import math
import os
import textwrap
from collections.abc import Mapping
from typing import Any

from profuser.errors import UserError
from profuser.recipe.verifiers import CodeTestsConfig
from profuser.rewards.fenced import last_block
from profuser.rewards.judges import Verdict
from profuser.rewards.sandbox import SandboxError, SandboxLimits, missing_isolation, run_tests

PYTHON = ("python", "py", "python3")


def check_sandbox(config: CodeTestsConfig) -> None:
    """Raises UserError if this machine cannot isolate code and the recipe does not allow less."""
    if not config.allow_unsandboxed and (reason := missing_isolation()):
        raise UserError(
            f"rewards.{config.name}.allow_unsandboxed: this machine cannot isolate the code of answers ({reason}); run where Linux "
            "namespaces are allowed, or set it to true: limits of time, memory and file size are then all that holds the code"
        )


def sandbox_line(config: CodeTestsConfig) -> str:
    """Returns a line on how this machine runs the code of answers."""
    limits = f"{config.timeout_seconds:g} s and {config.memory_mib:,} MiB for an answer"
    if reason := missing_isolation():
        return (
            f"rewards.{config.name}: this machine cannot isolate code ({reason}); with allow_unsandboxed it reads, writes and "
            f"sends what this user may; {limits}"
        )
    return f"rewards.{config.name}: isolation is available on this machine: no network, an empty folder; {limits}"


def num_workers(config: CodeTestsConfig) -> int:
    """Returns how many answers run concurrently."""
    return config.num_workers or len(os.sched_getaffinity(0))


def code_of(answer: str) -> tuple[str, bool]:
    """Returns the code of an answer, its last fenced block of Python or else the whole, and whether it is a block."""
    block = last_block(answer, PYTHON)
    return (answer, False) if block is None else (textwrap.dedent(block), True)


class CodeTests:
    """The rule of `code_tests`; it may be called in several threads."""

    def __init__(self, config: CodeTestsConfig):
        check_sandbox(config)
        self.config = config
        self.limits = SandboxLimits(
            config.timeout_seconds, config.memory_mib << 20, isolate=missing_isolation() is None
        )

    def __call__(self, row: Mapping[str, Any], answer: str) -> Verdict:
        """Returns the share of the row's tests that pass, or with `score: all` whether all pass; NaN for a row without tests.

        Raises:
            UserError: the machine no longer allows the sandbox.
        """
        tests = row.get("tests")
        if not tests:
            return Verdict(math.nan)
        code, is_block = code_of(answer)
        try:
            passed, reason = run_tests(code, tests, self.limits)
        except SandboxError as error:
            raise UserError(
                f"rewards.{self.config.name}: the sandbox failed on row {row['row_id']!r}: {error}"
            ) from None
        if reason == "not_python":
            reason = "with_errors" if is_block else "without_code"
        share = passed / len(tests)
        return Verdict(float(share == 1) if self.config.score == "all" else share, reason)
