"""Starting Ray on a busy machine: a start that takes longer than Ray's own limit is tried once more, and ends in one line."""

import subprocess

import pytest

from profuser.errors import ProfuserError
from ray_jobs.runtime.cluster import connected

SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup."
ERRORS = pytest.mark.parametrize(
    "error", [Exception(SLOW), TimeoutError(SLOW), RuntimeError(SLOW)], ids=lambda error: type(error).__name__
)


class SlowRay:
    """Stands for `ray.init`: leaves a process and fails, a given number of times."""

    def __init__(self, error, failures):
        self.error, self.failures, self.left = error, failures, []

    def __call__(self, **options):
        if len(self.left) < self.failures:
            self.left.append(subprocess.Popen(["sleep", "60"]))
            raise self.error


@pytest.fixture
def start(monkeypatch):
    def replace(error, failures):
        slow = SlowRay(error, failures)
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr("ray.init", slow)
        return slow

    return replace


@ERRORS
def test_a_slow_start_is_tried_once_more(start, capsys, error):
    slow = start(error, 1)
    with connected():
        assert slow.left[0].wait(10) < 0, "what the first start left is still running"
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("Ray: it did not start in time (The current node timed out during startup.")
    assert line.endswith("; trying once more")


@ERRORS
def test_two_slow_starts_are_one_line(start, error):
    slow = start(error, 2)
    expected = r"did not start on this machine, twice: The current node timed out .*run again"
    with pytest.raises(ProfuserError, match=expected), connected():
        pytest.fail("not connected")
    assert [process.wait(10) < 0 for process in slow.left] == [True, True]


def test_an_error_that_is_not_of_the_start_is_raised_as_it_is(start):
    slow = start(KeyError("not Ray's"), 1)
    with pytest.raises(KeyError), connected():
        pytest.fail("not connected")
    slow.left[0].kill()
    slow.left[0].wait()
