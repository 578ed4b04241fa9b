"""Shows the progress of long work, as bars on a terminal and plain lines in a log, with counts, rate and time left."""

import sys
import threading
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

console = Console(highlight=False, soft_wrap=True)
LINE_EVERY_SECONDS = 10.0


def print_line(text: str) -> None:
    """Prints a line verbatim: square brackets are not interpreted as markup."""
    console.print(text, markup=False)


class _Bars:
    """Bars of all active counters: a terminal has one live display."""

    def __init__(self):
        self.lock = threading.Lock()
        self.progress: Progress | None = None
        self.users = 0

    def join(self) -> Progress:
        """Returns the display; the first counter starts it."""
        with self.lock:
            if self.progress is None:
                rate = TextColumn("{task.fields[rate]}")
                columns = (BarColumn(), MofNCompleteColumn(), rate, TimeElapsedColumn(), TimeRemainingColumn())
                self.progress = Progress(TextColumn("{task.description}"), *columns, console=console)
                self.progress.start()
            self.users += 1
            return self.progress

    def leave(self) -> None:
        """Ends the display with the last counter; the bars stay on the screen."""
        with self.lock:
            self.users -= 1
            if self.users == 0 and self.progress is not None:
                self.progress.stop()
                self.progress = None


_bars = _Bars()


class Counter:
    """Counts units of work towards a total. Several counters may be active concurrently.

    Args:
        title: name of the work, e.g. `collect/llama`.
        total: total number of units.
        unit: name of the unit, e.g. `rows`.
        done: number of units that earlier attempts did.
    """

    def __init__(self, title: str, total: int, unit: str, done: int = 0):
        self.title, self.total, self.unit, self.done, self.before = title, total, unit, done, done
        self.note = ""
        self.least = 1
        """Number of units that must be done before the time left is estimated."""
        self.start = self.last_line = time.monotonic()
        self.bar: Progress | None = None

    def __enter__(self) -> "Counter":
        if sys.stdout.isatty():
            self.bar = _bars.join()
            self.task = self.bar.add_task(self.title, total=self.total, completed=self.done, rate="")
        elif self.before:
            self._line(f"{self.before:,} of {self.total:,} {self.unit} were done before")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar:
            _bars.leave()

    def add(self, count: int) -> None:
        """Counts more units as done."""
        self.reach(self.done + count)

    def restart_clock(self) -> None:
        """Measures the rate from now on, unless units were done already: what was loaded so far is no part of it."""
        if self.done == self.before:
            self.start = time.monotonic()

    def reach(self, done: int, note: str = "") -> None:
        """Sets how many units are done; `note` is appended to the line. Without a change nothing is shown."""
        if (done, note) == (self.done, self.note):
            return
        self.done, self.note = done, note
        now = time.monotonic()
        if self.bar:
            self.bar.update(self.task, completed=done, rate=f"{self._rate()} {note}".strip())
        elif now - self.last_line >= LINE_EVERY_SECONDS and self.done < self.total:
            self.last_line = now
            parts = [f"{self.done:,}/{self.total:,} {self.unit}"]
            if per_second := self._per_second():
                parts.append(self._rate())
                if self.done - self.before >= self.least:
                    parts.append(f"{format_clock((self.total - self.done) / per_second)} left")
            self._line(f"{', '.join(parts)}{f'; {note}' if note else ''}")

    def _per_second(self) -> float:
        return (self.done - self.before) / max(time.monotonic() - self.start, 1e-9)

    def _rate(self) -> str:
        return f"{format_rate(self._per_second())} {self.unit}/s"

    def _line(self, text: str) -> None:
        print_line(f"{self.title}: {text}")


def format_rate(per_second: float) -> str:
    """Formats a rate with one decimal, or with two significant digits below 1."""
    return f"{per_second:,.1f}" if per_second >= 1 or not per_second else f"{per_second:.2g}"


def format_clock(seconds: float) -> str:
    """Formats seconds as `m:ss` or `h:mm:ss`."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
