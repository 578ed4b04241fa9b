"""Implements `profuser status`: a run's progress, from its summary and written shards, and the driver that works on it."""

from typing import Any

from profuser.artifacts.artifact import SHARD_NAME
from profuser.artifacts.lock_holder import read_holder
from profuser.errors import UserError
from profuser.report.tables.table import STAGE_WIDTH, name_cell, new_table
from profuser.run.finding import find_run
from ray_jobs.pipeline.summary import SUMMARY
from ray_jobs.runtime.progress import console, format_clock, print_line


def read_summary(name: str, storage: str) -> dict[str, Any]:
    """Returns a run's summary.

    An unfinished stage gets the number of shards that it has written. A locked run gets its driver: host, pid, start time,
    last heartbeat, and whether its process is gone (None: it is not on this machine).
    """
    run = find_run(name, storage)
    if not run.folder.exists(SUMMARY):
        raise UserError(f"run {name!r} has not started a stage yet")
    summary = run.folder.read_json(SUMMARY)
    for stage, entry in summary["stages"].items():
        if entry["state"] in ("running", "failed"):
            entry["shards"] = sum(bool(SHARD_NAME.match(file)) for file in (run.folder / stage).names())
    holder = read_holder(run.folder)
    if holder:
        gone = holder.is_gone() if holder.is_visible() else None
        shown = {"host": holder.host, "pid": holder.pid, "since": holder.since, "last_sign": holder.heartbeat}
        summary["driver"] = shown | {"gone": gone}
    return summary


def print_status(summary: dict[str, Any]) -> None:
    """Prints the state of every stage as a table."""
    table = new_table(f"{summary['run']}: {summary['state']}", "stage")
    for name in ("state", "rows", "time"):
        table.add_column(name)
    for stage, entry in summary["stages"].items():
        rows = entry.get("counts", {}).get("rows")
        done = f"{rows:,.0f}" if rows is not None else f"{entry['shards']} shards" if entry.get("shards") else ""
        table.add_row(
            name_cell(stage, STAGE_WIDTH),
            entry["state"],
            done,
            format_clock(entry["seconds"]) if "seconds" in entry else "",
        )
    console.print(table)
    driver = summary.get("driver")
    if driver:
        who = f"driver: host {driver['host']}, pid {driver['pid']}, since {driver['since']}"
        last = f"last heartbeat {driver['last_sign']}"
        state = "gone; profuser run continues from here" if driver["gone"] else last
        print_line(f"{who}; {state}")
