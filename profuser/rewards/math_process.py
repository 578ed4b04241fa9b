"""The process in which math-verify compares answers: `python -m profuser.rewards.math_process SECONDS BYTES`.

It reads a line of JSON, `[truth, answer]`, and writes whether the truth has an expression (`judged` or `not_judged`), and if it
has one, how the answer compares with it (`equal`, `wrong` or `without_expression`). A comparison that takes longer than the limit
ends the process by SIGALRM: the kernel does this even inside of a computation that Python cannot interrupt.
"""

import json
import logging
import resource
import signal
import sys
from functools import lru_cache
from typing import Any

from math_verify import parse, verify

KEPT_TRUTHS = 1024


@lru_cache(KEPT_TRUTHS)
def _expressions(text: str) -> list[Any]:
    """Returns the final expression of a text as the library parses it, in a list; empty if there is none."""
    return parse(text, fallback_mode="no_fallback", parsing_timeout=None)  # type: ignore[arg-type]


def _serve(seconds: float) -> None:
    for line in sys.stdin:
        truth, answer = json.loads(line)
        signal.setitimer(signal.ITIMER_REAL, seconds)
        expected = _expressions(truth)
        print("judged" if expected else "not_judged", flush=True)
        if expected:
            found = _expressions(answer)
            is_equal = bool(found) and verify(expected, found, timeout_seconds=None)
            print("equal" if is_equal else "wrong" if found else "without_expression", flush=True)
        signal.setitimer(signal.ITIMER_REAL, 0)


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    resource.setrlimit(resource.RLIMIT_AS, (int(sys.argv[2]), int(sys.argv[2])))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    print("ready", flush=True)
    _serve(float(sys.argv[1]))
