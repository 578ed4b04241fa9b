"""Runs a model on a benchmark: the harness prompts and scores, and the results of every item are kept."""

import math
import os
import random
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import lm_eval
import numpy as np
import pyarrow as pa
import torch

from profuser.artifacts.schemas import BENCHMARK
from profuser.errors import EngineError, UserError, one_line
from profuser.evaluation.benchmarks.models import longest_request
from profuser.evaluation.benchmarks.tasks import Benchmark
from profuser.evaluation.benchmarks.text import neutralise_special_tokens

RANDOM_SEED, OTHER_SEED = 0, 1234
"""The harness's own seeds."""
NAMES = {"truthfulqa_mc2": {"acc": "mc2"}}
"""Renamed metrics: the harness calls a probability mass accuracy."""


def run_benchmark(lm: Any, benchmark: Benchmark) -> pa.Table:
    """Returns the items of a benchmark under a model, in order.

    Args:
        lm: the model, loaded for the harness (see `load_lm`).
        benchmark: its tasks.

    Returns:
        A table of the schema `BENCHMARK`.

    Raises:
        UserError: a chat template is requested but the model has none; or a user's own task fails.
        EngineError: the model's context leaves no room for answers.
    """
    config = benchmark.config
    if config.apply_chat_template and not getattr(lm.tokenizer, "chat_template", None):
        raise UserError(
            f"evaluate.benchmarks.{config.name}.apply_chat_template: {lm.tokenizer.name_or_path} has no chat template"
        )
    _check_room(lm, benchmark)
    neutralise_special_tokens(lm.tokenizer, rendered=config.apply_chat_template)
    random.seed(RANDOM_SEED)
    np.random.seed(OTHER_SEED)
    torch.manual_seed(OTHER_SEED)
    try:
        samples = _evaluate(lm, benchmark)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        if config.preset:
            raise
        # Prompts, answers and aggregation may be the user's code.
        text = one_line(error)
        setting = f"evaluate.benchmarks.{config.name}" + (f".task: {config.task}" if config.task else ":")
        raise UserError(f"{setting} fails: {text}") from error
    rows = [row for name, task in benchmark.tasks.items() for row in _rows(lm, benchmark, name, task, samples[name])]
    return pa.Table.from_pylist(rows, schema=BENCHMARK)


def _evaluate(lm: Any, benchmark: Benchmark) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Returns the harness's samples by task."""
    evaluate: Any = lm_eval.evaluate
    if benchmark.config.allow_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"
    return evaluate(
        lm,
        {"tasks": benchmark.tasks},
        limit=benchmark.config.limit,
        bootstrap_iters=0,
        apply_chat_template=benchmark.config.apply_chat_template,
        fewshot_as_multiturn=True,
        system_instruction=benchmark.config.system,
        confirm_run_unsafe_code=benchmark.config.allow_code,
    )["samples"]


def _check_room(lm: Any, benchmark: Benchmark) -> None:
    for task in benchmark.tasks.values():
        if task.OUTPUT_TYPE == "generate_until" and (need := _answer_tokens(lm, task)) >= lm.max_length:
            raise EngineError(
                f"{lm.tokenizer.name_or_path}: its context of {lm.max_length} tokens has no room for the answers of "
                f"{benchmark.config.name}, up to {need} tokens; leave that benchmark out, or raise engine.max_model_len"
            )


def _answer_tokens(lm: Any, task: Any) -> int:
    given = task.get_config("generation_kwargs") or {}
    return int(given.get("max_gen_toks", lm.max_gen_toks))


def _rows(lm: Any, benchmark: Benchmark, name: str, task: Any, samples: Sequence[Mapping[str, Any]]) -> Iterable[dict]:
    """Yields the items of one task; the harness returns one sample per item and answer filter."""
    by_item: dict[int, list[Mapping[str, Any]]] = {}
    for sample in samples:
        by_item.setdefault(sample["doc_id"], []).append(_defined(benchmark, sample))
    for number, group in sorted(by_item.items()):
        main = next(sample for sample in group if sample["filter"] == benchmark.filter)
        score = main[benchmark.metric]
        if not isinstance(score, (int, float, np.number)) or not math.isfinite(score):
            raise UserError(
                f"evaluate.benchmarks.{benchmark.config.name}.metric: {benchmark.metric!r} of an item is {score!r}, not a number"
            )
        prediction, target = _texts(benchmark, task, main)
        yield {
            "item_id": f"{name}/{number:06d}",
            "task": name,
            "doc_hash": main["doc_hash"],
            "score": float(score),
            "metrics": [pair for sample in group for pair in _metrics(benchmark, sample)],
            "prediction": prediction,
            "target": target,
            "truncated": _is_truncated(lm, task, main["arguments"]),
        }


def _defined(benchmark: Benchmark, sample: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns a sample, with mc2 recomputed if the harness divided 0 by 0 because all probabilities underflowed in its `exp`.

    mc2 is the share of the true answers in the total probability; the highest likelihood is factored out of both first.
    """
    if benchmark.config.name != "truthfulqa_mc2" or math.isfinite(sample[benchmark.metric]):
        return sample
    likelihoods = np.array([float(likelihood) for likelihood, _ in sample["filtered_resps"]])
    masses = np.exp(likelihoods - likelihoods.max())
    is_true = np.array(sample["doc"]["mc2_targets"]["labels"]) == 1
    return {**sample, benchmark.metric: float(masses[is_true].sum() / masses.sum())}


def _metrics(benchmark: Benchmark, sample: Mapping[str, Any]) -> Iterable[tuple[str, float]]:
    """Yields numeric metrics; those of a filter other than the headline's have its name as a suffix."""
    names = NAMES.get(benchmark.config.name, {})
    for metric in sample["metrics"]:
        if isinstance(value := sample[metric], (int, float, np.number)):
            suffix = "" if sample["filter"] in ("none", benchmark.filter) else f"_{sample['filter'].replace('-', '_')}"
            yield f"{names.get(metric, metric)}{suffix}", float(value)


def _texts(benchmark: Benchmark, task: Any, sample: Mapping[str, Any]) -> tuple[str | None, str | None]:
    """Returns the model's answer and the right one: the chosen one of several choices, or the answer extracted from the text."""
    doc = sample["doc"]
    if task.OUTPUT_TYPE != "multiple_choice":
        return _text(sample["filtered_resps"][0]), _text(sample["target"])
    choices = task.doc_to_choice(doc)
    likelihoods = np.array([float(likelihood) for likelihood, _ in sample["filtered_resps"]][: len(choices)])
    if benchmark.metric == "acc_norm":
        likelihoods = likelihoods / np.array([float(len(choice)) for choice in choices])
    if benchmark.config.name == "truthfulqa_mc2":
        right = [choice for choice, label in zip(choices, doc["mc2_targets"]["labels"], strict=True) if label == 1]
        return choices[int(likelihoods.argmax())], "\n".join(right)
    gold = task.doc_to_text(doc) if task.multiple_input else sample["target"]
    return choices[int(likelihoods.argmax())], choices[gold] if isinstance(gold, int) else _text(gold)


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _is_truncated(lm: Any, task: Any, arguments: Sequence[tuple]) -> bool:
    """Returns whether the harness had to truncate an item's prompt on the left because it exceeds the model's context."""
    generates = task.OUTPUT_TYPE == "generate_until"
    room = lm.max_length - _answer_tokens(lm, task) if generates else longest_request(lm)
    for context, rest in arguments:
        text = context if generates else context + rest
        # Short texts need no encoding: a token is at least a byte, except one that begins the text and one for a leading blank.
        if len(text.encode()) + 2 > room and len(lm.tok_encode(text)) > room:
            return True
    return False
