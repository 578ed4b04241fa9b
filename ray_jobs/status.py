"""`profuser status`: how far a run is, from its summary and the shards that are there."""

from typing import Any

from rich.table import Table

from profuser.artifacts import SHARD_NAME
from profuser.errors import UserError
from ray_jobs.pipeline import SUMMARY, find_run
from ray_jobs.progress import clock, console


def read_summary(name: str, storage: str) -> dict[str, Any]:
    """A run's summary; an unfinished stage gets the number of shards that it has written and how many it will."""
    run = find_run(name, storage)
    if not run.folder.exists(SUMMARY):
        raise UserError(f"run {name!r} has not started a stage yet")
    summary = run.folder.read_json(SUMMARY)
    for stage, entry in summary["stages"].items():
        if entry["state"] in ("running", "failed"):
            entry["shards"] = sum(bool(SHARD_NAME.match(file)) for file in (run.folder / stage).names())
    return summary


def print_status(summary: dict[str, Any]) -> None:
    """Prints the state of every stage as a table."""
    table = Table("stage", "state", "rows", "time", title=f"{summary['run']}: {summary['state']}", title_justify="left")
    for stage, entry in summary["stages"].items():
        rows = entry.get("counts", {}).get("rows")
        done = f"{rows:,.0f}" if rows is not None else f"{entry['shards']} shards" if entry.get("shards") else ""
        table.add_row(stage, entry["state"], done, clock(entry["seconds"]) if "seconds" in entry else "")
    console.print(table)
