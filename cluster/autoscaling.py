"""Runs a fusion on a cluster that starts without nodes, and records which nodes come and go and their cost.

`python -m cluster.autoscaling` starts a head without CPUs on this machine, with node groups named as in KubeRay's manifests;
their nodes are processes, their accelerators are simulated, the autoscaler is Ray's own. The recipe runs as on any cluster.
"""

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from profuser.errors import ProfuserError, UserError
from ray_jobs.cli.app import run_app
from ray_jobs.runtime.environment import set_defaults
from ray_jobs.runtime.progress import console, format_clock

if TYPE_CHECKING:
    from cluster.harness.node_history import GroupBill

EXAMPLE_PRICES = {"head": 0.8, "cpu": 0.8, "engines": 1.0, "rewards": 0.5, "train": 55.0}
"""USD per node-hour, rounded, of the order of EKS prices for kuberay/README.md's instance types: spot for engines and rewards, on
demand for the others. Only an example: pass your own prices."""
GONE_SECONDS = 120.0
"""Seconds after the run, beyond the idle time, to wait for nodes to be removed."""
DPI = 200

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)


@app.command()
def autoscaling(
    recipe: Annotated[
        Path,
        typer.Argument(
            help="Recipe whose pools name the node groups; training must need more CPUs than other groups have.",
            show_default="cluster/autoscaling.yaml",
        ),
    ] = Path(__file__).with_suffix(".yaml"),
    output: Annotated[Path, typer.Option(help="Folder for the run, the plot and the bill.")] = Path("runs/autoscaling"),
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY.PATH=VALUE", help="Override a setting. Repeatable.")
    ] = None,
    idle_seconds: Annotated[
        float, typer.Option(min=1, help="Idle seconds after which a node is removed; minutes in a cloud.")
    ] = 10.0,
    prices: Annotated[
        list[str] | None,
        typer.Option(
            "--price", metavar="GROUP=PRICE", help="Price per node-hour, instead of the example's. Repeatable."
        ),
    ] = None,
    currency: Annotated[str, typer.Option(help="Currency of all prices.")] = "USD",
) -> None:
    """Run a fusion on nodes that Ray's autoscaler adds and removes. Writes nodes.csv, nodes.png and bill.json."""
    priced = EXAMPLE_PRICES | dict(map(_price, prices or ()))
    # Imported after the checks that do not need them: these take seconds.
    from cluster.harness.local_cluster import GROUPS, autoscaling_cluster
    from cluster.harness.node_history import NodeWatch, bill, node_plot, rows
    from profuser.recipe import load_recipe
    from profuser.report.tables.table import csv_text
    from ray_jobs.cli.options import RECIPES

    placed = [*(settings or ()), f"storage={output.absolute()}"]
    folder = output / load_recipe(recipe, placed, RECIPES).name
    if folder.exists():
        raise UserError(
            f"{folder} exists, so its finished stages would be skipped; delete it, or give another --output"
        )
    with autoscaling_cluster(GROUPS, idle_seconds) as address:
        watch = NodeWatch(address, [group.name for group in GROUPS], folder / "summary.json")
        command = [sys.executable, "-m", "ray_jobs.cli", "run", str(recipe)]
        command += [part for each in placed for part in ("--set", each)]
        code = subprocess.run(command, env=os.environ | {"RAY_ADDRESS": address}).returncode
        run_seconds = watch.seconds()
        while any(watch.samples[-1].nodes.values()) and watch.seconds() < run_seconds + idle_seconds + GONE_SECONDS:
            time.sleep(1)
        samples = watch.end()
    (output / "nodes.csv").write_text(csv_text(rows(samples)))
    node_plot(samples, idle_seconds).savefig(output / "nodes.png", dpi=DPI)
    bills = bill(samples, run_seconds, priced)
    content = {"run_seconds": run_seconds, "idle_seconds": idle_seconds, "currency": currency}
    content |= {"groups": [asdict(each) | {"cost": each.cost, "fixed_cost": each.fixed_cost} for each in bills]}
    (output / "bill.json").write_text(json.dumps(content, indent=2) + "\n")
    console.print(_table(bills, run_seconds, currency, example=not prices))
    if code:
        raise ProfuserError(f"the run failed (exit code {code})")


def _price(text: str) -> tuple[str, float]:
    """Parses `GROUP=PRICE`."""
    group, _, price = text.partition("=")
    try:
        if group in EXAMPLE_PRICES and float(price) >= 0:
            return group, float(price)
    except ValueError:
        pass
    raise UserError(
        f"--price {text}: expected GROUP=PRICE, a number of at least 0, for one of {', '.join(EXAMPLE_PRICES)}"
    )


def _table(bills: Sequence["GroupBill"], run_seconds: float, currency: str, example: bool) -> Table:
    from profuser.report.tables.table import new_table

    kind = "example prices" if example else "given prices"
    table = new_table(f"a run of {format_clock(run_seconds)}, {kind}", "group")
    table.caption = (
        "fixed size: the peak nodes of each group, for the same time (shorter in practice: no waiting for nodes)"
    )
    for heading in ("most\nnodes", f"{currency} per\nnode-hour", "autoscaled\nnode-s", f"\n{currency}"):
        table.add_column(heading, justify="right")
    for heading in ("fixed size\nnode-s", f"\n{currency}"):
        table.add_column(heading, justify="right")
    for each in bills:
        spent = (f"{each.node_seconds:,.0f}", f"{each.cost:.3f}", f"{each.fixed_node_seconds:,.0f}")
        table.add_row(
            each.group, str(each.most_nodes), f"{each.price_per_node_hour:g}", *spent, f"{each.fixed_cost:.3f}"
        )
    table.add_section()
    total, fixed = sum(each.cost for each in bills), sum(each.fixed_cost for each in bills)
    table.add_row("all", "", "", "", f"{total:.3f}", "", f"{fixed:.3f}")
    return table


def main() -> None:
    """Runs the command; a user error is one line."""
    set_defaults()
    os.environ.update({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex})
    run_app(app, "autoscaling")


if __name__ == "__main__":
    main()
