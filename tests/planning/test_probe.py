"""Which rows a probe draws, at random from those that the run collects, and the plan made from it."""

import numpy as np
import pytest

from profuser.planning.estimates import STEP_TOKENS, FileSize, Probe
from profuser.run.stage import CorpusSize
from profuser.run.stages import plan_run
from ray_jobs.cli.probe import draw, make_plan
from tests.ray.stages import make_run

NUM_ROWS, HELDOUT = 100, 4


@pytest.fixture
def corpus(tmp_path):
    """Rows sorted by length, as corpora often are."""
    file = tmp_path / "data.jsonl"
    file.write_text("".join(f'{{"question": "{n}", "answer": "{"x" * (n + 1)}"}}\n' for n in range(NUM_ROWS)))
    return file


def lengths(drawn):
    return [len(text) for text in drawn.rows["response"].to_pylist()]


def test_rows_are_drawn_from_the_whole_corpus_without_the_held_out_ones(tmp_path, corpus):
    run = make_run(tmp_path / "runs", corpus)
    drawn = draw(run, 20)
    assert (len(drawn.rows), drawn.num_rows, drawn.num_shards) == (20, NUM_ROWS - HELDOUT, 12)
    assert len(set(lengths(drawn))) == 20
    assert min(lengths(drawn)) < 25
    assert max(lengths(drawn)) > 75
    assert draw(run, 20).rows == drawn.rows
    assert lengths(draw(make_run(tmp_path / "runs", corpus, seed=1), 20)) != lengths(drawn)
    assert not (tmp_path / "runs").exists()


def test_a_corpus_smaller_than_the_probe_is_used_whole(tmp_path, corpus):
    drawn = draw(make_run(tmp_path / "runs", corpus), 1000)
    assert len(drawn.rows) == drawn.num_rows == NUM_ROWS - HELDOUT
    assert len(set(lengths(drawn))) == NUM_ROWS - HELDOUT


def made_probe(num_rows):
    tokens = np.arange(1, num_rows + 1)
    return Probe(tokens, tokens, tokens, 36.0, FileSize(0.0, 10.0), FileSize(0.0, 2.0), FileSize(0.0, 9.0), 0.0, 60.0)


def test_a_plan_includes_the_pass_of_an_exact_condition(tmp_path, corpus):
    lines = {}
    for condition in ("tail", "exact"):
        settings = {"collect": {"signals": "lazy"}, "select": {"condition": condition, "exclude_target": True}}
        run = make_run(tmp_path / "runs", corpus, pool={"num_gpus": 0}, **settings)
        size = CorpusSize(1004, prompt_tokens=100, response_tokens=200, exact=True)
        lines[condition] = plan_run(run, size)
        plan = make_plan(run, draw(run, 16), {source.name: made_probe(16) for source in run.recipe.sources})
        lines[condition, "probed"] = {stage.stage: stage for stage in plan.stages}
    tail, exact = (lines[condition]["signals/neox"] for condition in ("tail", "exact"))
    assert (tail.rows, tail.tokens) == (2000, 2000 * 300)
    assert lines["exact"]["signals/llama"].tokens == 0, "the target does not teach"
    assert exact.tokens - tail.tokens == pytest.approx(2000 * 200 * 0.9 * 0.037 * STEP_TOKENS)
    assert tail.disk_bytes < exact.disk_bytes < 1.05 * tail.disk_bytes
    assert lines["tail"]["collect/neox"].disk_bytes < tail.disk_bytes, "the first pass keeps no distributions"
    tail, exact = (lines[condition, "probed"]["signals/neox"].quantities for condition in ("tail", "exact"))
    assert exact["disk_bytes"].value > tail["disk_bytes"].value


@pytest.mark.parametrize("signals", ["eager", "lazy"])
def test_a_plan_uses_the_pools_of_the_run(tmp_path, corpus, signals):
    run = make_run(
        tmp_path / "runs",
        corpus,
        pool={"min_actors": 1, "max_actors": 99, "num_gpus": 0, "num_cpus": 2},
        plan={"price_per_device_hour": 3.0, "currency": "EUR"},
        collect={"signals": signals, "generation": {"max_tokens": 8}},
        select={"exclude_target": True},
    )
    drawn = draw(run, 16)
    plan = make_plan(run, drawn, {source.name: made_probe(16) for source in run.recipe.sources})
    by_name = {stage.stage: stage for stage in plan.stages}
    collected = by_name["collect/neox"]
    assert collected.fingerprint == run.artifacts("collect")[1].fingerprint
    actors = drawn.num_shards  # not 99: every actor has a shard
    busy = 36.0 / 16 * drawn.num_rows
    assert collected.quantities["seconds"].value == pytest.approx(60 + busy / actors)
    assert collected.quantities["device_hours"].value == pytest.approx(2 * (60 * actors + busy) / 3600)
    assert plan.total["money"].value == pytest.approx(3 * plan.total["device_hours"].value)
    assert plan.total["disk_bytes"].value == pytest.approx(plan.disk_bytes[signals].value)
    assert plan.disk_bytes["lazy"].value < plan.disk_bytes["eager"].value
    assert ("signals/neox" in by_name) == (signals == "lazy")
    if signals == "lazy":  # the target does not teach, so the other source teaches everything
        taught = {name: by_name[f"signals/{name}"].quantities["disk_bytes"].value for name in ("llama", "neox")}
        assert taught == {"llama": 0, "neox": pytest.approx(9 * 2 * 8.5 * drawn.num_rows)}


def test_a_probe_too_small_for_its_engines_adds_a_note(tmp_path, corpus):
    run = make_run(tmp_path / "runs", corpus, pool={"num_gpus": 0})
    for num_rows, note in ((16, "--probe 32 would be more accurate"), (32, None)):
        probes = {source.name: made_probe(num_rows) for source in run.recipe.sources}
        notes = make_plan(run, draw(run, num_rows), probes).notes
        assert (not notes) if note is None else note in notes[0]
