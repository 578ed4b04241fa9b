"""Comparing models: differences equal those of the scores, noise is called noise, and seeds of one arm are grouped."""

import json

import numpy as np
import pyarrow as pa
import pytest
import yaml

from profuser.artifacts.schemas import EVALUATE
from profuser.errors import UserError
from profuser.evaluation.comparison import (
    MetricScores,
    benchmark_metrics,
    contrasts,
    differences,
    heldout_metrics,
    seed_groups,
)
from profuser.evaluation.heldout import scores
from profuser.evaluation.statistics import BETTER, NOISE, SIGN_TEST, STUDENT, WORSE, holm, sign_test
from profuser.recipe.loading import parse_recipe
from profuser.run.fusion_run import FusionRun
from profuser.run.stages import FUSED, TARGET
from ray_jobs.cli.compare import compare_runs, print_comparison
from tests import tiny

NUM_ROWS = 120


def table(seed, gain=0.0, refused=(), num_rows=NUM_ROWS):
    """Returns invented held-out results; models share each row's difficulty, and `gain` is how much better this one does."""
    hard, draw = np.random.default_rng(9).random(num_rows), np.random.default_rng(seed)
    rows = [
        {
            "row_id": f"{n:03d}",
            "refused": "too long" if n in refused else None,
            "correct": None if n in refused else bool(hard[n] + 0.2 * draw.normal() < 0.5 + gain),
            "nats": None if n in refused else float(20 * (1 + hard[n] - gain + 0.1 * draw.normal())),
            "response_bytes": 20 + n % 7,
        }
        for n in range(num_rows)
    ]
    return pa.Table.from_pylist(rows, schema=EVALUATE)


def items(values, first=0):
    ids = [f"q{first + index:03d}" for index in range(len(values))]
    return pa.table({"item_id": ids, "score": np.asarray(values, dtype=float), "task": ["t"] * len(ids)})


def test_differences_equal_those_of_the_scores_on_the_rows_that_all_accepted():
    tables = {"target": table(0, refused=(3, 4)), "good": table(1, 0.3), "same": table(2, refused=(90,))}
    found, scored = differences(tables, "target"), scores(tables)["all"]
    assert list(found) == ["good", "same"]
    for name, pair in found.items():
        for metric, difference in pair.items():
            wanted = getattr(scored[name], metric) - getattr(scored["target"], metric)
            assert difference.value == pytest.approx(wanted)
            assert difference.num_items == scored[name].num_rows == NUM_ROWS - 3
    assert found["good"]["bits_per_byte"].verdict(larger_is_better=False) == BETTER
    assert found["good"]["exact_match"].verdict(larger_is_better=True) == BETTER
    assert found["same"]["exact_match"].verdict(larger_is_better=True) == NOISE


def test_models_without_a_common_row_are_not_compared():
    tables = {"target": table(0, refused=range(60)), "other": table(1, refused=range(60, NUM_ROWS))}
    assert differences(tables, "target") == {}
    assert heldout_metrics({}) == []


def test_the_order_of_the_rows_does_not_matter():
    mine, other = table(1, 0.2), table(2)
    shuffled = mine.take(np.random.default_rng(0).permutation(NUM_ROWS))
    assert differences({"a": shuffled, "b": other}, "b") == differences({"a": mine, "b": other}, "b")


def test_binary_scores_are_tested_by_mcnemar_and_adjusted_for_multiple_comparisons():
    models = {"target": [table(0)], **{f"arm-{n}": [table(n, 0.02 * n)] for n in range(1, 6)}}
    bits, correct = heldout_metrics(models)
    pairs = [(name, "target") for name in models if name != "target"]
    found = contrasts(correct, pairs)
    right = {name: np.array(tables[0]["correct"].to_pylist()) for name, tables in models.items()}
    only = [(right[name] & ~right["target"], ~right[name] & right["target"]) for name, _ in pairs]
    p_values = [sign_test(int(mine.sum()), int(other.sum())) for mine, other in only]
    assert [(c.difference.test, c.difference.p_value) for c in found] == [(SIGN_TEST, p) for p in p_values]
    assert [c.adjusted_p_value for c in found] == holm(p_values)
    assert {c.difference.test for c in contrasts(bits, pairs)} == {STUDENT}


def test_a_chance_result_among_many_comparisons_is_noise():
    """One p-value of 0.02 is a finding; the smallest of twenty is none."""
    # Of 9 rows that only one model got right, 8 are the model's: an exact p-value of 0.039.
    values = {"base": np.array([[0.0] * 8 + [1.0] + [1.0] * 31]), "lucky": np.array([[1.0] * 8 + [0.0] + [1.0] * 31])}
    values |= {f"same-{n}": values["base"] for n in range(19)}
    metric = MetricScores("exact_match", True, values)
    (alone,) = contrasts(metric, [("lucky", "base")])
    among = contrasts(metric, [(name, "base") for name in values if name != "base"])
    assert alone.verdict == BETTER
    assert among[0].difference == alone.difference
    assert {contrast.verdict for contrast in among} == {NOISE}


def test_less_is_better_in_bits_per_byte():
    bits, _ = heldout_metrics({"base": [table(0)], "worse": [table(1, -0.3)]})
    (contrast,) = contrasts(bits, [("worse", "base")])
    assert contrast.difference.value > 0
    assert contrast.verdict == WORSE


def test_seeds_of_an_arm_count_as_one_model_with_a_known_spread():
    lucky, others = table(1, 0.3), [table(2, -0.05), table(3, -0.05)]
    alone = heldout_metrics({"base": [table(0)], "arm": [lucky]})
    pooled = heldout_metrics({"base": [table(0)], "arm": [lucky, *others]})
    for one, all_three in zip(alone, pooled, strict=True):
        (first,), (together,) = (contrasts(metric, [("arm", "base")]) for metric in (one, all_three))
        assert (first.verdict, together.verdict) == (BETTER, NOISE)
        assert together.difference.test == STUDENT
        values = [scores({"x": seed})["all"]["x"] for seed in (lucky, *others)]
        assert all_three.estimates()["arm"].value == pytest.approx(np.mean([getattr(v, one.name) for v in values]))


def test_benchmarks_are_compared_if_two_models_have_them_and_on_common_items():
    models = {
        "target": [{"arc": items([1, 0] * 20), "mmlu": items([0.5] * 5)}],
        "a/fused": [{"arc": items([1, 1] * 20, first=2)}],
        "b/fused": [{}],
    }
    (metric,) = benchmark_metrics(models)
    assert (metric.name, metric.num_items, list(metric.values)) == ("arc", 38, ["target", "a/fused"])
    (found,) = contrasts(metric, [("a/fused", "target"), ("b/fused", "target")])
    assert (found.model, found.difference.value, found.difference.test) == ("a/fused", 0.5, SIGN_TEST)
    assert found.verdict == BETTER


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """Two runs of one arm with two seeds, and one of another arm; all with the same target."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "data.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    model = tiny.llama(folder / "model")
    for name, fuse, gain in (
        ("sgd-0", {"beta": 1.0, "seed": 0}, 0.3),
        ("sgd-1", {"beta": 1.0, "seed": 1}, 0.29),
        ("long", {"beta": 2.0}, 0.0),
    ):
        recipe = {
            "name": name,
            "storage": str(folder),
            "corpus": {"path": str(folder / "data.jsonl")},
            "sources": [{"name": "a", "model": model}],
            "target": {"model": model},
            "rewards": [{"kind": "exact_match", "name": "exact"}],
            "fuse": fuse,
        }
        run = FusionRun(parse_recipe(recipe, "the test"))
        run.folder.write_bytes("recipe.yaml", yaml.safe_dump(run.recipe.model_dump(mode="json")).encode())
        for model_name, made in ((TARGET, table(0)), (FUSED, table(len(name) + fuse.get("seed", 5), gain))):
            artifact = run.evaluate(model_name)
            artifact.write_shard(0, made, {"rows": NUM_ROWS})
            artifact.finish([{"rows": NUM_ROWS}], 1.0)
    return str(folder)


def test_runs_are_compared_with_their_target_and_with_the_first_run(storage):
    found = compare_runs(["sgd-0", "sgd-1", "long"], storage)
    assert [list(metric.values) for metric in found.metrics] == [
        ["target", "sgd-0/fused", "sgd-1/fused", "long/fused"]
    ] * 2
    verdicts = {(c.model, c.baseline): c.verdict for c in found.contrasts if c.metric == "exact_match"}
    assert verdicts == {
        ("sgd-0/fused", "target"): BETTER,
        ("sgd-1/fused", "target"): BETTER,
        ("long/fused", "target"): NOISE,
        ("sgd-1/fused", "sgd-0/fused"): NOISE,
        ("long/fused", "sgd-0/fused"): WORSE,
    }
    assert found.settings == {
        "fuse.beta": {"sgd-0": "1.0", "sgd-1": "1.0", "long": "2.0"},
        "fuse.seed": {"sgd-0": "0", "sgd-1": "1", "long": "None"},
    }


def test_seeds_are_grouped_on_request(storage):
    found = compare_runs(["sgd-0", "sgd-1", "long"], storage, group_seeds=True)
    assert found.groups == {"sgd-0": ["sgd-0", "sgd-1"], "long": ["long"]}
    assert {name: len(values) for name, values in found.metrics[0].values.items()} == {
        "target": 1,
        "sgd-0/fused": 2,
        "long/fused": 1,
    }


def test_a_comparison_is_printed_as_text_and_as_json(storage, capsys):
    print_comparison(["sgd-0", "long"], storage)
    text = capsys.readouterr().out
    assert all(word in text for word in ("within noise", "better", "fuse.beta", "95 % interval", "120 items"))
    print_comparison(["sgd-0", "sgd-1"], storage, group_seeds=True, as_json=True)
    content = json.loads(capsys.readouterr().out)
    assert content["metrics"]["bits_per_byte"]["sgd-0/fused"]["num_seeds"] == 2
    assert [contrast["verdict"] for contrast in content["contrasts"]] == [BETTER, BETTER]


def test_a_run_that_is_not_evaluated_does_not_affect_the_others(storage):
    recipe = FusionRun(compare_runs(["long"], storage).runs["long"].recipe.model_copy(update={"name": "young"})).recipe
    run = FusionRun(recipe)
    run.folder.write_bytes("recipe.yaml", yaml.safe_dump(recipe.model_dump(mode="json")).encode())
    found = compare_runs(["sgd-0", "young"], storage)
    assert list(found.metrics[0].values) == ["target", "sgd-0/fused"]
    assert {contrast.model for contrast in found.contrasts} == {"sgd-0/fused"}


def test_two_runs_with_the_same_seed_are_rejected(storage):
    run = compare_runs(["sgd-0"], storage).runs["sgd-0"]
    with pytest.raises(UserError, match="same arm with the same seed"):
        seed_groups({"one": run.recipe, "two": run.recipe.model_copy(update={"name": "two"})})
