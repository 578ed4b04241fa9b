"""README.md of the fused model's folder: what it was made of, how, how well it does, and what it is not."""

import re
from typing import Any

import yaml

from profuser.report.facts import RunFacts
from profuser.report.headline import headline
from profuser.report.metrics import METRICS, Change

NOT_IN_CARD = ("storage", "lab", "tracking", "plan")
"""Sections of a recipe that speak of the machine that ran it, and of what it cost."""
LIMITS = (
    "One run with one seed: the scores carry no interval.",
    "The scores are of the run's own held-out rows; they say nothing of other tasks or languages.",
    "The model learnt from the answers of its sources and takes over their mistakes and biases; it was not tested for safety.",
    "The licences of the target, of the sources and of the corpus apply.",
)


def model_card(facts: RunFacts) -> str:
    """The card as Markdown with YAML front matter; without scores where the model is not evaluated yet."""
    front = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["profuser", "model-fusion", "knowledge-distillation"],
    }
    sections = (
        f"# {facts.name}",
        "One language model fused from several with [ProFuser](https://arxiv.org/abs/2408.04998): on every example of an "
        "instruction corpus the better source teaches the target, along the ground truth (training mode) and along the best "
        "of the sources' own answers (inference mode).",
        "## Made of\n\n" + _made_of(facts),
        "## Results\n\n" + _results(facts),
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in LIMITS),
        "## Recipe\n\n" + _fenced(_yaml({k: v for k, v in facts.recipe.items() if k not in NOT_IN_CARD})),
        "Made with " + ", ".join(_made_with(facts)) + ".",
    )
    return f"---\n{_yaml(front)}---\n\n" + "\n\n".join(sections) + "\n"


def _made_of(facts: RunFacts) -> str:
    target = facts.recipe.get("target", {})
    lines = ["| role | model |", "|---|---|", f"| target | {_model(target)} |"]
    for source in facts.recipe.get("sources", ()):
        role = f"source `{source['name']}`" + (
            ", the target itself" if source["name"] == facts.source_is_target else ""
        )
        lines.append(f"| {role} | {_model(source)} |")
    corpus = facts.recipe.get("corpus", {}).get("path")
    return "\n".join(lines) + (f"\n\nCorpus: {_code(corpus)}." if corpus else "")


def _results(facts: RunFacts) -> str:
    if not facts.num_rows():
        return "Not evaluated."
    found = headline(facts)
    lines = [f"{found.title}.", *(f"- {finding.text}" for finding in found.findings)]
    tables = []
    for metric in METRICS:
        heads = ["category", "rows", *(_cell(facts.label(model)) for model in facts.models), "change"]
        rows = [f"**{metric.title}** ({metric.hint})", "", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for category in facts.categories:
            values = [metric.text(metric.of(facts.score(model, category))) for model in facts.models]
            change = Change.of(facts, metric, category).text
            rows.append(f"| {_cell(category)} | {facts.num_rows(category):,} | {' | '.join(values)} | {change} |")
        tables.append("\n".join(rows))
    return f"{lines[0]}\n\n" + "\n".join(lines[1:]) + "\n\n" + "\n\n".join(tables)


def _made_with(facts: RunFacts) -> list[str]:
    versions = [f"{name} {version}" for name, version in facts.versions.items()] or ["profuser"]
    return [*versions, f"commit `{facts.commit}`"] if facts.commit else versions


def _model(config: dict[str, Any]) -> str:
    revision = config.get("revision")
    return _code(config.get("model", "unknown")) + (f" at {_code(revision)}" if revision else "")


def _code(text: str) -> str:
    return f"`{_cell(text).replace('`', '')}`"


def _cell(text: str) -> str:
    """Text that keeps within a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", r"\|")


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)


def _fenced(text: str) -> str:
    """A block of code that no run of backticks inside can end."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}{fence}"
