"""Jobs in threads: never more than the limit, started in order, the next one while one drains."""

import threading
import time

import pytest

from ray_jobs.runtime.concurrency import run_concurrently


class Log:
    def __init__(self):
        self.lock, self.running, self.most, self.begun = threading.Lock(), 0, 0, []

    def job(self, name, drains=False, fails=False):
        def work(draining):
            with self.lock:
                self.begun.append(name)
                self.running += 1
                self.most = max(self.most, self.running)
            time.sleep(0.02)
            if drains:
                draining()
                draining()
            if fails:
                raise ValueError(name)
            time.sleep(0.1)
            with self.lock:
                self.running -= 1

        return work


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_no_more_jobs_than_the_limit_run_concurrently(at_once):
    log = Log()
    run_concurrently([log.job(n) for n in range(5)], at_once)
    assert log.most == at_once
    assert sorted(log.begun) == list(range(5))
    assert log.running == 0


def test_the_next_job_starts_while_one_drains():
    log = Log()
    run_concurrently([log.job(n, drains=True) for n in range(3)], 1)
    assert log.most >= 2
    assert log.begun == [0, 1, 2]


def test_the_first_failure_is_raised_and_no_further_job_starts():
    log = Log()
    with pytest.raises(ValueError, match="first"):
        run_concurrently([log.job("first", fails=True), *(log.job(n) for n in range(3))], 1)
    time.sleep(0.3)
    assert len(log.begun) <= 2


def test_a_failure_interrupts_running_jobs():
    ended = threading.Event()

    def endless(_):
        try:
            while True:
                time.sleep(0.01)
        finally:
            ended.set()

    def fails(_):
        time.sleep(0.05)
        raise ValueError("second")

    with pytest.raises(ValueError, match="second"):
        run_concurrently([endless, fails], 2)
    assert ended.is_set()
