"""Collect and select in several set-ups: eager or lazy signals, several answers, several nodes, one of which vanishes."""

import time

import numpy as np
import pytest
import ray
from ray.cluster_utils import Cluster
from transformers import AutoTokenizer

from profuser.engines.loading import ReadModel
from profuser.errors import UserError
from profuser.models.lab_paths import assets_path
from profuser.recipe.models import SourceConfig
from profuser.run.tokenizers import read_tokens
from profuser.signals.rules import Rule
from ray_jobs.pipeline.pipeline import delete_stages
from ray_jobs.runtime.cluster import connected
from ray_jobs.runtime.concurrency import concurrent_sources
from ray_jobs.stages.collect import collect, shared_evaluation
from ray_jobs.stages.evaluate import evaluate
from ray_jobs.stages.prepare import prepare
from ray_jobs.stages.signals import signals
from tests.ray import stages

pytestmark = [pytest.mark.ray, pytest.mark.vllm, pytest.mark.timeout(900)]
SAMPLED = {"top_k": 6, "samples_per_source": 3, "generation": {"max_tokens": 24, "temperature": 0.8, "top_p": 0.95}}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    file = tmp_path_factory.mktemp("corpus") / "data.jsonl"
    stages.write_corpus(file)
    return file


def test_lazy_signals_make_the_same_examples_with_less_disk(tmp_path, corpus):
    with connected():
        runs = {}
        for signals in ("eager", "lazy"):
            collect = {"top_k": 6, "signals": signals, "generation": {"max_tokens": 24}}
            # The target's own answers too, which only a second pass can read.
            select = {"on_policy": {}} if signals == "lazy" else {}
            runs[signals] = stages.make_run(tmp_path / signals, corpus, collect=collect, select=select)
            stages.run_until_select(runs[signals])
        assert concurrent_sources(runs["eager"].recipe) == 1  # one node without a GPU
    eager, both = (stages.whole(run.select()) for run in runs.values())
    lazy = [row for row in both if row["mode"] != "on_policy"]
    stages.check_same(lazy, eager)
    same = np.mean([a["topk_ids"] == b["topk_ids"] for a, b in zip(lazy, eager, strict=True)])
    assert same > 0.8  # except candidates of nearly equal probability
    for run, names in ((runs["eager"], {"collect"}), (runs["lazy"], {"collect", "signals"})):
        teachers = [source.name for source in run.recipe.sources]
        assert {
            stage for stage in names for name in teachers if (run.folder / stage / name).exists("manifest.json")
        } == names
    assert "training_topk_ids" not in runs["lazy"].collect(runs["lazy"].recipe.sources[0]).schema.names
    kept = [sum(map(len, artifact.tables(["row_id"]))) for artifact in runs["lazy"].artifacts("signals")]
    assert sum(kept) == len(both)
    check_on_policy(runs["lazy"], [row for row in both if row["mode"] == "on_policy"])


def check_on_policy(run, rows):
    """Asserts that the target's answers are taught by the other source, with its distributions."""
    counts = run.select().manifest().counts
    assert counts["on_policy_examples"] == len(rows) > 5
    left_out = [counts.get(f"on_policy_{why}", 0) for why in ("without_answer", "without_teacher", "left_out")]
    assert len(rows) + sum(left_out) == counts["rows"]
    target = run.recipe.sources[0]
    assert run.recipe.is_target(target)
    answers = {row["row_id"]: row["answers"][0] for row in stages.whole(run.collect(target))}
    tokenizer = AutoTokenizer.from_pretrained(run.model(run.recipe.target).local())
    for row in rows:
        assert row["teacher"] != target.name
        assert tokenizer.decode(row["response_ids"], skip_special_tokens=True).strip() == answers[row["row_id"]].strip()
        assert np.isfinite(row["topk_logprobs"]).any()


def test_an_exact_condition_collects_and_teaches_the_steps_after_used_up_candidates(tmp_path, corpus):
    with connected():
        runs = {}
        for condition in ("tail", "exact"):
            settings = {
                "name": condition,
                "reuse": ["tail"],
                "select": {"condition": condition, "exclude_target": True},
            }
            lazy = {"top_k": 6, "signals": "lazy", "generation": {"max_tokens": 24}}
            runs[condition] = stages.make_run(tmp_path, corpus, collect=lazy, **settings)
            stages.run_until_select(runs[condition])
        artifact = runs["exact"].artifacts("signals")[1]
        made = stages.whole(artifact)
        artifact.folder.remove("manifest.json")
        artifact.folder.remove("shard-00001.parquet")
        signals(runs["exact"], runs["exact"].recipe.sources[1])
        stages.check_same(stages.whole(artifact), made)
    source = read_tokens(runs["exact"])[1]
    reader = ReadModel(
        str(assets_path() / "sources" / "neox"),
        SourceConfig(name="neox", model="neox", engine={"kind": "transformers", "dtype": "float32"}),
        runs["exact"].recipe.template,
    ).load()
    prompts = {row["row_id"]: row for row in stages.whole(runs["exact"].corpus())}
    num_steps = 0
    for row in made:
        pairs = list(zip(row["step_positions"], row["step_candidates"], strict=True))
        num_steps += len(pairs)
        for place, (position, candidate) in enumerate(pairs[:1]):
            spelt = source[row["response_ids"][position]]
            assert spelt.startswith(source[candidate])
            assert len(spelt) > len(source[candidate])
            # Teacher-forcing any token there gives the same distribution.
            prefix = [*row["response_ids"][:position], candidate, 0]
            (forced,) = reader.force([prompts[row["row_id"]]], [prefix], 6)
            found = np.array(row["step_topk_logprobs"]).reshape(-1, 6)[place]
            np.testing.assert_allclose(found, forced.topk.logprobs[-1], atol=2e-2)
    assert num_steps > 10
    tail, exact = (stages.whole(run.select()) for run in runs.values())
    masses = {"carried": [[], []], "other": [[], []]}
    for rows in zip(tail, exact, strict=True):
        assert rows[0]["rules"] == rows[1]["rules"]
        for which, row in enumerate(rows):
            mass = np.exp(np.array(row["topk_logprobs"], dtype=float)).reshape(-1, 6).sum(axis=1)
            for rule, total in zip(row["rules"], mass, strict=True):
                masses["carried" if rule in (Rule.CONDITION, Rule.CHAIN) else "other"][which].append(total)
    assert max(masses["carried"][1]) < 1.01
    assert np.mean(masses["carried"][1]) > np.mean(masses["carried"][0])
    np.testing.assert_allclose(*masses["other"], atol=2e-2)


def test_held_out_rows_read_with_the_signals_score_as_with_a_separate_engine(tmp_path, corpus):
    with connected():
        run = stages.make_run(tmp_path, corpus, kind="vllm")
        prepare(run)
        # The target has other engine settings than the source of the same model: it is evaluated separately.
        assert [shared_evaluation(run, source) is not None for source in run.recipe.sources] == [False, True]
        collect(run, run.recipe.sources[1])
        assert evaluate(run, "neox").device_seconds == 0
        beside = stages.whole(run.evaluate("neox"))
        delete_stages(run, ["evaluate"])
        assert evaluate(run, "neox").device_seconds > 0
    assert len(beside) == 4
    for mine, other in zip(beside, stages.whole(run.evaluate("neox")), strict=True):
        assert mine.pop("nats") == pytest.approx(other.pop("nats"), rel=1e-3)
        assert mine == other


def test_votes_cover_several_answers_of_each_source(tmp_path, corpus):
    with connected():
        reward = {"kind": "reward_model", "name": "brisk", "model": "lab://rewards/brisk"}
        run = stages.make_run(tmp_path, corpus, collect=SAMPLED, rewards=[reward])
        stages.run_until_select(run)
    for artifact in run.artifacts("collect"):
        answers = [row["answers"] for row in stages.whole(artifact)]
        assert {len(texts) for texts in answers} == {3}
        assert any(len(set(texts)) > 1 for texts in answers), "every sample is the same"
    (scores,) = (stages.whole(artifact) for artifact in run.artifacts("rewards"))
    assert {len(row["scores"]) for row in scores} == {6}
    texts = {source.name: stages.whole(run.collect(source)) for source in run.recipe.sources}
    chosen = [row for row in stages.whole(run.select()) if row["mode"] == "inference"]
    assert {row["sample"] for row in chosen} > {0}
    places = {row["row_id"]: place for place, row in enumerate(texts["llama"])}
    names = [source.name for source in run.recipe.sources]
    for row in chosen:
        assert len(row["advantages"]) == 6
        winner = names.index(row["teacher"]) * 3 + row["sample"]
        assert row["advantages"][winner] == max(row["advantages"])
        assert texts[row["teacher"]][places[row["row_id"]]]["answers"][row["sample"]]


def test_several_samples_at_temperature_0_are_refused(tmp_path, corpus):
    with pytest.raises(UserError, match=r"samples_per_source is 3, but llama samples at temperature 0"):
        stages.make_run(tmp_path, corpus, collect=SAMPLED | {"generation": {"max_tokens": 24}})


def test_a_vanishing_node_loses_no_row(tmp_path, monkeypatch):
    stages.write_corpus(tmp_path / "more.jsonl", 200)
    # One actor fits on each of the two worker nodes; when one node vanishes, the other does the rest.
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    try:
        doomed = cluster.add_node(num_cpus=1)
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        with connected():
            assert len(ray.nodes()) == 3
            run = stages.make_run(tmp_path / "runs", tmp_path / "more.jsonl", pool={"min_actors": 2, "max_actors": 2})
            assert concurrent_sources(run.recipe) == 2
            prepare(run)
            source = run.recipe.sources[0]
            output = run.collect(source)
            vanish = lambda: cluster.remove_node(doomed, allow_graceful=False)  # noqa: E731
            with stages.Meanwhile(lambda: len(output.shards()) >= 1 and len(stages.actors()) == 2, vanish):
                collect(run, source)
            deadline = time.monotonic() + 60
            while sum(node["Alive"] for node in ray.nodes()) == 3:
                assert time.monotonic() < deadline, "the node did not vanish"
                time.sleep(0.5)
    finally:
        cluster.shutdown()
    found = stages.whole(output)
    assert [row["row_id"] for row in found] == sorted(row["row_id"] for row in stages.whole(run.corpus()))
    assert all(row["answers"] and row["training_ids"] for row in found)
    assert not (output.folder / "attempts").names()
