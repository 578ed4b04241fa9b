"""Invented facts of a run, with known differences between the models."""

import itertools
import math
import random
from dataclasses import replace
from typing import Any

import pyarrow as pa

from profuser.artifacts.schemas import EVALUATE
from profuser.evaluation.heldout import Score
from profuser.evaluation.judged import JudgedWinRate
from profuser.evaluation.statistics import Estimate
from profuser.evaluation.writing import Writing
from profuser.recipe.schedule import PROGRESSIVE
from profuser.report.comparisons import benchmark_comparisons, benchmark_estimates, heldout_comparisons
from profuser.report.facts import RunFacts, StageFact
from profuser.rewards.agreement import Agreement
from profuser.selection.summary import LengthBin, RewardFacts, SelectionFacts, SourceComparison, WinRate
from tests.recipe.schedule_oracle import weights_at

MODELS = ("target", "mpt", "neox", "fused")
SKILLS = ("arithmetic", "comparing", "facts", "reversing", "sorting", "units")
HOSTILE = '<script>alert("gotcha")</script><img src=http://evil.example/x.png>'


def scores(fused_gain: float = 0.2, skills: tuple[str, ...] = SKILLS) -> dict[str, dict[str, Score]]:
    """Returns scores in which the fused model gains this share of exact match, and as many bits per byte, on every category."""
    draw = random.Random(0)
    out = {}
    for category in ("all", *skills):
        num_rows = 300 if category == "all" else 50
        row = {}
        for model in MODELS:
            gain = fused_gain if model == "fused" else draw.uniform(-0.4, 0.15) if model != "target" else 0.0
            row[model] = Score(num_rows, 0.6 - gain, round((0.5 + gain) * num_rows) / num_rows)
        out[category] = row
    return out


def history(num_steps: int = 224) -> list[dict[str, float]]:
    """Returns falling losses; a mode without weight has none."""
    draw = random.Random(1)
    out = []
    for step in range(num_steps):
        weights = weights_at(PROGRESSIVE, step / num_steps)
        update: dict[str, float] = {"step": step, "num_steps": num_steps, "learning_rate": 1e-3, "skipped_steps": 0}
        update |= {"stage": int(step >= num_steps / 2), "weight_inference": weights[0], "weight_training": weights[1]}
        for mode, weight in zip(("inference", "training"), weights[:2], strict=True):
            if weight:
                fall = math.exp(-step / 60)
                update[f"ce_{mode}_nats"] = 0.2 + fall * (1.0 if mode == "inference" else 4.0) + draw.uniform(0, 0.1)
                update[f"kl_{mode}_nats"] = 0.1 + fall * (0.5 if mode == "inference" else 2.0) + draw.uniform(0, 0.05)
            if step % 28 == 27:
                update[f"heldout_bits_per_byte_{mode}"] = 0.3 + math.exp(-step / 60)
        out.append(update)
    return out


def recipe(sources: tuple[str, ...] = ("llama", "mpt", "neox")) -> dict[str, Any]:
    """Returns the part of a recipe that a report reads."""
    return {
        "name": "demo",
        "storage": "/home/somebody/runs",
        "corpus": {"path": "lab://corpus/train.jsonl.gz"},
        "sources": [{"name": name, "model": f"lab://sources/{name}", "revision": None} for name in sources],
        "target": {"model": "lab://sources/llama", "revision": None},
        "fuse": {"beta": 0.11},
    }


def evaluate_tables(num_rows: int = 60, gain: float = 0.3) -> dict[str, pa.Table]:
    """Returns every model on rows of two categories; the fused model has fewer nats and more correct answers, by the gain."""
    draw = random.Random(2)
    ids = [f"row-{index:03d}" for index in range(num_rows)]
    tables = {}
    for model in MODELS:
        better = gain if model == "fused" else 0.0
        records = [
            {
                "row_id": row_id,
                "category": SKILLS[index % 2],
                "refused": None,
                "prediction": "x",
                "correct": draw.random() < 0.5 + better,
                "nats": draw.uniform(8, 12) * (1 - better),
                "response_bytes": 20 + index % 7,
            }
            for index, row_id in enumerate(ids)
        ]
        tables[model] = pa.Table.from_pylist(records, schema=EVALUATE)
    return tables


def benchmark_tables(num_items: int = 200) -> dict[str, dict[str, pa.Table]]:
    """Returns tables with the fused model far better on `arc_challenge` and equal on `gsm8k`, which `mpt` has not finished."""
    draw = random.Random(3)
    out: dict[str, dict[str, pa.Table]] = {}
    for name, gain in (("arc_challenge", 0.3), ("gsm8k", 0.0)):
        for model in MODELS:
            right = [float(draw.random() < 0.4 + (gain if model == "fused" else 0)) for _ in range(num_items)]
            if (name, model) != ("gsm8k", "mpt"):
                items = {"item_id": [f"{name}-{index:04d}" for index in range(num_items)], "score": right}
                out.setdefault(name, {})[model] = pa.table(items)
    return out


def judged() -> dict[str, dict[str, JudgedWinRate]]:
    """Returns win rates: the judges prefer the fused model's answers, `candid` only the long ones."""
    clear, even = Estimate(0.71, 0.65, 0.77, 300), Estimate(0.52, 0.46, 0.58, 300)
    rates = {"majority vote": (clear, clear), "candid": (clear, even)}
    others = [model for model in MODELS if model != "fused"]
    return {
        judge: dict.fromkeys(others, JudgedWinRate(*pair, 192, 67, 1e-9, (71.5, 38.2))) for judge, pair in rates.items()
    }


def measured(**changes: Any) -> RunFacts:
    """Returns a whole run with everything that is measured per item, and with device costs."""
    benchmarks = benchmark_tables()
    compared = (*heldout_comparisons(evaluate_tables()), *benchmark_comparisons(benchmarks))
    stages = tuple(
        replace(stage, device_seconds=4 * stage.seconds, price_per_device_hour=None if stage.name == "select" else 2.5)
        for stage in facts().stages
        if stage.name != "report"
    )
    whole = {
        "writing": {model: Writing(60, 2, 14.25, 0.125 if model == "mpt" else 0.0, 0.5) for model in MODELS},
        "comparisons": compared,
        "benchmarks": benchmark_estimates(benchmarks),
        "judged": judged(),
        "judged_by_category": {"facts": judged()["candid"], "units": judged()["majority vote"]},
        "taught": {"facts": {("training", "mpt"): 3, ("training", "llama"): 1, ("inference", "neox"): 9}},
        "selection_by_category": {"facts": one_category()},
        "aligned": {"facts": {"none": 5, "project": 90, "condition": 3, "chain": 0, "end": 2}},
        "stages": stages,
    }
    return facts(**(whole | {"recipe": recipe() | {"plan": {"currency": "EUR"}}} | changes))


def selection(sources: tuple[str, ...] = ("llama", "mpt", "neox"), **changes: Any) -> SelectionFacts:
    """Returns a selection in which the first source wins in training mode only, and two of three rewards have a length bias."""
    tilts = {"brisk": 0.02, "candid": 0.9, "dapper": 0.4}
    whole: dict[str, Any] = {
        "modes": Agreement("training", "inference", 1740, 0.412, 0.118),
        "duels": tuple(
            SourceComparison(first, second, WinRate(1206 - 90 * index, 12, 1800), WinRate(700 + 80 * index, 140, 1740))
            for index, (first, second) in enumerate(itertools.combinations(sources, 2))
        ),
        "judges": tuple(
            RewardFacts(name, 1.0, 1600, 31 + 40 * index, tilt * 0.6, 0.5 + 0.3 * tilt, 4650, 1600, None)
            for index, (name, tilt) in enumerate(tilts.items())
        ),
        "agreements": tuple(
            Agreement(first, second, 1500, 0.8 - 0.1 * index, 0.66 - 0.21 * index)
            for index, (first, second) in enumerate(itertools.combinations(tilts, 2))
        ),
        "lengths": tuple(
            LengthBin(540, 14.0 + 9 * tenth, {name: tilt * (tenth - 4.5) / 5 for name, tilt in tilts.items()})
            for tenth in range(10)
        ),
    }
    return SelectionFacts(**(whole | changes))


def one_category() -> SelectionFacts:
    """Returns a selection over a few rows."""
    pairs = itertools.combinations(("llama", "mpt", "neox"), 2)
    duels = tuple(SourceComparison(*pair, WinRate(3, 1, 8), WinRate(0, 1, 4)) for pair in pairs)
    agreed = tuple(replace(pair, num_rows=8, share=0.375) for pair in selection().agreements)
    return selection(duels=duels, agreements=agreed)


def facts(**changes: Any) -> RunFacts:
    """Returns a whole run; `changes` replace its fields."""
    wins = {"llama": (700, 400), "mpt": (600, 650), "neox": (500, 690)}
    counts: dict[str, float] = {"rows": 1800, "examples": 3540, "tokens": 61000, "not_aligned": 4}
    for name, numbers in wins.items():
        counts |= {f"wins/{mode}/{name}": n for mode, n in zip(("training", "inference"), numbers, strict=True)}
    counts |= {"rule/none": 320, "rule/project": 48100, "rule/condition": 5020, "rule/chain": 4020, "rule/end": 3540}
    for share, name in zip((0.4, 0.35, 0.25), wins, strict=True):
        counts |= {
            f"alignment/{name}/{k.removeprefix('rule/')}": round(n * share)
            for k, n in counts.items()
            if k.startswith("rule/")
        }
        counts |= {f"vocabulary/{name}/exact": 617, f"vocabulary/{name}/first_token": 380, f"vocabulary/{name}/tail": 3}
    counts["misspelt/neox"] = 7
    stages = [("prepare/train", 8.2, 1800, 0)]
    stages += [(f"collect/{name}", 70.5, 1800, 40321) for name in wins]
    stages += [(f"rewards/{name}", 12.0, 5400, 0) for name in ("brisk", "candid", "dapper")]
    whole: dict[str, Any] = {
        "name": "demo",
        "recipe": recipe(),
        "commit": "986e58412ab0+",
        "versions": {"profuser": "0.1.0", "torch": "2.13.0", "ray": "2.59.0"},
        "stages": (
            *(StageFact(n, "finished", s, {"rows": r} | ({"tokens": t} if t else {})) for n, s, r, t in stages),
            StageFact("select", "finished", 4.4, counts),
            StageFact("fuse", "finished", 301.7, {"tokens": 402000}, {"final_loss_nats": 0.31234}),
            StageFact("evaluate/fused", "finished", 31.0, {"rows": 300, "refused": 0}, {"exact_match": 0.7}),
            StageFact("report", "running"),
        ),
        "scores": scores(),
        "source_is_target": "llama",
        "history": history(),
        "selection_counts": counts,
        "quarantined": [
            {"file": "train.jsonl", "line": 17, "reason": "empty response", "excerpt": '{"instruction": "Sort'}
        ],
        "samples": [sample(skill) for skill in SKILLS[:3]],
        "vote_agreement": 0.81,
        "selection": selection(),
    }
    return RunFacts(**(whole | changes))


def sample(category: str | None = None, answer: str = "The answer is 42.") -> dict[str, Any]:
    """Returns a held-out row with an answer of every model but the target."""
    answers = {model: answer for model in MODELS} | {"target": ""}
    truth = "We add 40 and 2, ten by ten and one by one. 40 plus 2 is 42. The answer is 42."
    return {"prompt": "What is 40 plus 2?", "response": truth, "answers": answers, "category": category}
