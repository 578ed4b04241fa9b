"""Writes the model card (README.md) of the fused model: usage, origin, results, limits and lineage."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from profuser.artifacts.artifact import Manifest
from profuser.models.reference import ModelRef
from profuser.report.facts import RunFacts, StageFact
from profuser.report.headline import headline
from profuser.report.measures import METRICS, Change, Metric
from profuser.report.tables.results import benchmark_lines, benchmark_models, failed_benchmarks

NOT_IN_CARD = ("storage", "lab", "tracking", "plan", "pool", "workers", "memory")
"""Recipe settings, at any depth, that describe the machine and the cost of the run; left out of the card."""
PLACES = ("model", "path", "heldout", "task")
"""Settings that may hold a path on that machine: only its last part is shown."""
MAX_CATEGORIES = 12
MEASURED = {
    "The corpus had {} rows to train on and {} to evaluate on; {} were refused.": (
        "prepare/train rows",
        "prepare/heldout rows",
        "prepare/train quarantined",
    ),
    "They gave {} examples with {} response tokens.": ("select examples", "select tokens"),
    "The target was trained on {} tokens in {} updates.": ("fuse tokens", "fuse steps"),
    "On ground truths held out of training it reached {} bits per byte.": ("fuse heldout_bits_per_byte_training",),
    "On chosen answers held out of training it reached {} bits per byte.": ("fuse heldout_bits_per_byte_inference",),
}
"""Sentences with the stage counts and metrics that each needs."""
USE = """## Use

It was trained on the chat template of its tokenizer; use the same template for prompts:

```python
from transformers import pipeline

ask = pipeline("text-generation", "path/of/this/folder")
answer = ask([{"role": "user", "content": "What is 2 plus 3?"}], max_new_tokens=128)
print(answer[0]["generated_text"][-1]["content"])
```

`vllm serve path/of/this/folder` serves it with the OpenAI API."""
NO_INTERVAL = "One run with one seed: there is no interval for the scores."
INTERVALS = "One run with one seed: the 95 % intervals cover the choice of rows, not the choice of seed."
LIMITS = (
    "The scores cover the run's own held-out rows and benchmarks, and no other tasks or languages.",
    "The model learned from the answers of its sources and inherits their mistakes and biases; it was not tested for safety.",
    "The licences of the target, of the sources and of the corpus apply.",
)


def model_card(facts: RunFacts, manifests: Sequence[Manifest] = ()) -> str:
    """Returns the card as Markdown with YAML front matter; without scores if the model has not been evaluated.

    Args:
        facts: of the run.
        manifests: of the run's artifacts, in order: digests of models and corpus, and fingerprints.
    """
    sections = (
        f"# {facts.name}",
        "One language model fused from several with [ProFuser](https://arxiv.org/abs/2408.04998): on every example of an "
        "instruction corpus the better source teaches the target, along the ground truth (training mode) and along the best "
        "of the sources' own answers (inference mode).",
        USE,
        "## Made of\n\n" + _made_of(facts, {manifest.stage: manifest for manifest in manifests}),
        "## Results\n\n" + _results(facts),
        "## Limits\n\n"
        + "\n".join(f"- {limit}" for limit in (INTERVALS if facts.comparisons else NO_INTERVAL, *LIMITS)),
        "## Lineage\n\nMade with " + ", ".join(_made_with(facts)) + ".",
        *([_folded("Artifacts of the run, by fingerprint", _artifacts(manifests))] if manifests else []),
        _folded("Recipe", _fenced(_yaml(_public(facts.recipe)))),
    )
    return f"---\n{_yaml(_front_matter(facts))}---\n\n" + "\n\n".join(sections) + "\n"


def _front_matter(facts: RunFacts) -> dict[str, Any]:
    """Returns the metadata for the Hub, without a licence: those of the target, sources and corpus apply."""
    models = [facts.recipe.get("target", {}), *facts.recipe.get("sources", ())]
    corpora = [place for _, place, _ in _corpora(facts.recipe.get("corpus", {}))]
    bases = list(dict.fromkeys(m["model"] for m in models if not ModelRef(m.get("model", "")).is_local))
    datasets = list(dict.fromkeys(c.split(":")[1] for c in corpora if c.startswith("hub:")))
    # With several base models the Hub would otherwise assume a merge of weights.
    relation = {"base_model": bases, "base_model_relation": "finetune"} if bases else {}
    return {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        **relation,
        **({"datasets": datasets} if datasets else {}),
        "tags": ["profuser", "model-fusion", "knowledge-distillation"],
    }


def _made_of(facts: RunFacts, manifests: dict[str, Manifest]) -> str:
    configs = {stage: manifest.config for stage, manifest in manifests.items()}
    target, corpus = facts.recipe.get("target", {}), facts.recipe.get("corpus", {})
    rows = [("target", target.get("model"), target.get("revision"), configs.get("fuse", {}).get("target"))]
    for source in facts.recipe.get("sources", ()):
        role = f"source {_code(source['name'])}" + (
            ", the target itself" if source["name"] == facts.source_is_target else ""
        )
        digest = configs.get(f"collect/{source['name']}", {}).get("model")
        rows.append((role, source.get("model"), source.get("revision"), digest))
    digests = configs.get("prepare/train", {}).get("digests", {})
    for role, place, digest in _corpora(corpus):
        rows.append((role, place, None, digests.get(digest)))
    lines = ["| role | what | revision | digest of its files |", "|---|---|---|---|"]
    for role, place, revision, digest in rows:
        cells = [_code(text) if text else "-" for text in (_place(place or ""), revision, digest)]
        lines.append(f"| {role} | {' | '.join(cells)} |")
    return "\n\n".join(["\n".join(lines), *_measured(facts.stages)])


def _corpora(corpus: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Yields role, place and name in digests of the corpus or its parts, and of the separate held-out corpus."""
    if corpus.get("path"):
        yield "corpus", corpus["path"], "corpus"
    for part in corpus.get("parts") or ():
        yield f"part {_code(part['name'])} of the corpus", part["path"], f"parts.{part['name']}"
    if corpus.get("heldout"):
        yield "held-out corpus", corpus["heldout"], "heldout"


def _measured(stages: Sequence[StageFact]) -> list[str]:
    """Returns one paragraph with the counts and metrics that are known, or none."""
    known = {f"{stage.name} {name}": f"{int(n):,}" for stage in stages for name, n in stage.counts.items()}
    known |= {f"{stage.name} {name}": f"{value:.3f}" for stage in stages for name, value in stage.metrics.items()}
    found = [text.format(*map(known.get, names)) for text, names in MEASURED.items() if known.keys() >= set(names)]
    return [" ".join(found)] if found else []


def _results(facts: RunFacts) -> str:
    if not facts.num_rows():
        return "Not evaluated."
    found = headline(facts)
    lines = [f"{found.title}.", "", *(f"- {finding.text}" for finding in found.findings)]
    left_out = len(facts.categories) - 1 - MAX_CATEGORIES
    tables = [_table(facts, metric, facts.categories[: MAX_CATEGORIES + 1]) for metric in METRICS]
    rest = [f"{left_out} more categories are in the run's report."] if left_out > 0 else []
    benchmarks = [_benchmarks(facts)] if facts.benchmarks else []
    # Without the reasons: they may name folders of the machine.
    failed = [f"Not measured: {_text(', '.join(names))}."] if (names := failed_benchmarks(facts)) else []
    return "\n\n".join(["\n".join(lines), *tables, *rest, *benchmarks, *failed])


def _benchmarks(facts: RunFacts) -> str:
    models = benchmark_models(facts)
    heads = ["benchmark", "items", *(_text(facts.label(model)) for model in models), "change"]
    lines = ["**benchmarks, %** (higher is better)", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for line in benchmark_lines(facts):
        change = f"{line.change} ({line.interval}), {line.verdict}" if line.interval else line.change
        cells = [_text(line.name), f"{line.num_items:,}", *(line.cells.get(model, "-") for model in models), change]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _table(facts: RunFacts, metric: Metric, categories: Sequence[str]) -> str:
    heads = ["category", "rows", *(_text(facts.label(model)) for model in facts.models), "change"]
    lines = [f"**{metric.title}** ({metric.hint})", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for category in categories:
        values = [metric.text(metric.of(facts.score(model, category))) for model in facts.models]
        change = Change.of(facts, metric, category)
        words = f"{change.text} ({change.interval}), {change.verdict}" if change.interval else change.text
        cells = [_text(category), f"{facts.num_rows(category):,}", *values, words]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _made_with(facts: RunFacts) -> list[str]:
    versions = [f"{name} {version}" for name, version in facts.versions.items()] or ["profuser"]
    return [*versions, f"commit `{facts.commit}`"] if facts.commit else versions


def _artifacts(manifests: Sequence[Manifest]) -> str:
    lines = ["| artifact | fingerprint | commit |", "|---|---|---|"]
    for manifest in manifests:
        commit = _code(manifest.commit) if manifest.commit else "-"
        lines.append(f"| {_code(manifest.stage)} | {_code(manifest.fingerprint)} | {commit} |")
    return "\n".join(lines)


def _public(value: Any, key: str = "") -> Any:
    """Removes nulls and settings of the machine from a recipe or a part of it."""
    if isinstance(value, dict):
        return {k: _public(v, k) for k, v in value.items() if k not in NOT_IN_CARD and v is not None}
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    return _place(value) if key in PLACES else value


def _place(text: str) -> str:
    """Returns a model or corpus reference; of a local path, only its last part."""
    return Path(text).name if text.startswith(("/", "~", ".")) else text


def _code(text: str) -> str:
    return f"`{_in_cell(text).replace('`', '')}`"


def _text(text: str) -> str:
    return _in_cell(text).replace("<", "&lt;")


def _in_cell(text: str) -> str:
    """Escapes text for a cell of a Markdown table."""
    return " ".join(text.split()).replace("|", r"\|")


def _yaml(value: dict[str, Any]) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100)


def _fenced(text: str) -> str:
    """Returns a code block with a fence longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{text}{fence}"


def _folded(title: str, text: str) -> str:
    """Returns a collapsible section; the blank lines let Markdown inside it render."""
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"
