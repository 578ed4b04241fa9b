"""Runs with a source behind a server: what is asked again, and what of a run from before is kept."""

import pyarrow as pa
import pytest

from profuser.artifacts.schemas import ANSWER_VOCABULARY_SIZE, REWARDS, collect_schema
from profuser.engines.loading import ReadModel
from profuser.engines.signal_tables import collect_table
from profuser.errors import UserError
from profuser.recipe.loading import parse_recipe
from profuser.report.row_story import RowStory
from profuser.rewards.voting import RewardScale
from profuser.run.choosing import make_chooser
from profuser.run.endpoints import begin_endpoints, endpoint_access
from profuser.run.fusion_run import FusionRun
from profuser.run.tokenizers import read_tokenizer_pairs
from profuser.selection.examples import Selector
from tests import tiny
from tests.engines.test_endpoint import rows
from tests.openai_server import MODEL, Scripted, serving


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.llama(tmp_path_factory.mktemp("model"))


@pytest.fixture
def texts():
    """A server that gives texts alone, until it has a tokenizer."""
    script = Scripted()
    with serving(script) as url:
        yield script, url


def make_run(tmp_path, model, url, **collect):
    (tmp_path / "data.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    recipe = {
        "name": "run",
        "storage": str(tmp_path),
        "corpus": {"path": str(tmp_path / "data.jsonl")},
        "sources": [{"name": "big", "endpoint": {"base_url": url, "model": MODEL}}],
        "target": {"model": model},
        "collect": {"top_k": 4, **collect},
        "rewards": [{"kind": "exact_match", "name": "exact"}],
        "fuse": {"schedule": [{"until": 1.0, "inference": 1.0, "training": 0.0}]},
    }
    return FusionRun(parse_recipe(recipe, "the test"))


def begun(run):
    lines = []
    run = begin_endpoints(run, lines.append)
    return run, run.collect(run.recipe.sources[0]), lines[0]


def test_the_answers_vocabulary_is_part_of_the_artifact_where_the_server_gives_bytes(tmp_path, model, texts):
    script, url = texts
    _, before, _ = begun(make_run(tmp_path, model, url))
    assert before.schema == collect_schema(257)
    assert "vocabulary" not in before.config
    script.tokenizer = tiny.byte_level_tokenizer()
    _, after, line = begun(make_run(tmp_path, model, url))
    assert "distributions of its answers, of 4 tokens, aligned by their bytes" in line
    assert after.schema == collect_schema(ANSWER_VOCABULARY_SIZE, own_vocabulary=True)
    assert after.fingerprint != before.fingerprint


def test_lazy_signals_ask_a_server_for_no_log_probabilities_without_a_tokenizer(tmp_path, model, texts):
    script, url = texts
    script.tokenizer = tiny.byte_level_tokenizer()
    _, artifact, line = begun(make_run(tmp_path, model, url, signals="lazy"))
    assert "collect.signals is lazy: only the texts of its answers are used" in line
    assert artifact.schema == collect_schema(257, with_topk=False)
    assert not [body for _, body, _ in script.asked if "logprobs" in body]


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_texts_alone_is_kept_if_finished_and_else_refused_with_the_reason(tmp_path, model, texts, finished):
    script, url = texts
    run, artifact, _ = begun(make_run(tmp_path, model, url))
    artifact.write_shard(0, artifact.schema.empty_table(), {"rows": 0})
    script.tokenizer = tiny.byte_level_tokenizer()
    again = make_run(tmp_path, model, url)
    if finished:
        artifact.finish([{"rows": 0}], 1.0)
        run.evaluate("big").finish([{"rows": 0}], 1.0)
        _, same, line = begun(again)
        assert same.fingerprint == artifact.fingerprint
        assert same.is_complete()
        assert "only the texts of its answers are used" in line
    else:
        with pytest.raises(UserError, match=r"top_logprobs was None, is now 4; .*begin again with --redo collect"):
            begun(again)


def test_answers_are_collected_selected_and_shown_in_the_tokens_of_their_rows(tmp_path, model, texts):
    script, url = texts
    script.tokenizer, script.exact_bytes = tiny.byte_level_tokenizer(), True
    script.answer = lambda body: "It is \u6f22."
    run, collected, _ = begun(make_run(tmp_path, model, url))
    source, corpus = run.recipe.sources[0], rows("Sort.", "Say 7.")
    access = endpoint_access(run, source)
    assert access is not None
    reader = ReadModel(run.model(source).path, source, run.template(source), access).load()
    table = collect_table(
        reader.read(corpus, run.reading(source)), reader.engine.vocab_size, 4, reader.own_vocabularies
    )
    collected.write_shard(0, table, {"rows": 2})
    pairs = read_tokenizer_pairs(run)
    chooser = make_chooser(run.recipe, [each.source for each in pairs.projections], [RewardScale(0.0, 1.0)])
    scores = pa.table({"row_id": corpus["row_id"], "scores": [[1.0]] * 2}, schema=REWARDS)
    chosen, counts = Selector(chooser, pairs.projections, pairs.target, 4).select(corpus, [table], [scores])
    assert counts["alignment/big/project"] > counts["alignment/big/none"] == 0
    run.select().write_shard(0, chosen, counts)
    aligned, carried = RowStory(run, corpus["row_id"][1].as_py()).transported("inference", pairs.projections)
    assert aligned.source.tokens.spell(aligned.source.ids) == "It is \u6f22.".encode()
    assert len(carried.rules) == len(aligned.target.ids)
