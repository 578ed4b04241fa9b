"""The dashboard's and the alerts' queries, and the names of metrics in them."""

import json
import re

import yaml

from tests.cluster.rendered import ROOT

MONITORING = ROOT / "cluster" / "monitoring"
RULES = yaml.safe_load((MONITORING / "alerts.yaml").read_text())
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

NOT_NAMES = (
    r'"[^"]*"',  # values of labels
    r"\{[^}]*\}",
    r"\[[^]]*\]",
    r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)",
    r"\boffset\s+\w+",
    r"\b[a-z_]+\s*(?=\()",  # functions
)
WORDS = {"and", "or", "unless", "bool"}


def names(expression: str) -> set[str]:
    """Returns the metrics that a query reads."""
    for pattern in NOT_NAMES:
        expression = re.sub(pattern, " ", expression)
    return set(re.findall(r"\b[a-zA-Z_:][\w:]*", expression)) - WORDS


def queries(*rows: str) -> list[str]:
    """Returns the queries of the panels below these dashboard rows, or of all, with Grafana's variables filled in."""
    found, row = [], ""
    for panel in DASHBOARD["panels"]:
        row = panel["title"] if panel["type"] == "row" else row
        if row in rows or not rows:
            found += [target["expr"] for target in panel.get("targets", [])]
    return [each.replace("$__rate_interval", "1m").replace("$run", ".*") for each in found]
