"""Measurements of a probe, with an engine whose answers vary in length."""

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from profuser.artifacts.artifact import Artifact
from profuser.artifacts.schemas import CORPUS, collect_schema, signals_schema
from profuser.engines.base import ReadSettings, Response
from profuser.engines.collecting import SourceReader
from profuser.engines.signal_tables import collect_table, count
from profuser.errors import UserError
from profuser.planning.probe import probe_rows
from profuser.recipe.models import GenerationConfig, OwnTemplate
from profuser.signals.codec import TopK
from profuser.storage.folder import Folder
from tests.engines.test_endpoint import reader, source
from tests.openai_server import Scripted, serving
from tests.tiny import byte_level_tokenizer

K, VOCABULARY = 6, 400


@dataclass
class Rambling:
    """An engine with answers of random length, and distributions that zstd cannot compress well."""

    tokenizer: Any = field(default_factory=byte_level_tokenizer)
    max_model_len: int = 200
    vocab_size: int = VOCABULARY
    draw: np.random.Generator = field(default_factory=lambda: np.random.default_rng(0))
    done: list = field(default_factory=list)

    def add(self, number, request):
        ids = request.response_ids or self.draw.integers(60, VOCABULARY, self.draw.integers(1, 24)).tolist()
        topk = TopK(
            self.draw.integers(0, VOCABULARY, (len(ids), request.top_k)),
            -np.sort(self.draw.random((len(ids), request.top_k))).astype(np.float32),
        )
        self.done.append((number, Response(np.array(ids), -self.draw.random(len(ids)), topk, "stop")))

    def step(self):
        done, self.done = self.done, []
        return done

    def close(self):
        pass


def corpus(num_rows):
    draw = np.random.default_rng(1)
    rows = [
        {
            "row_id": str(number),
            "messages": [{"role": "user", "content": f"Say {number}."}],
            "response": "".join(draw.choice(list("abcdefgh "), 5 + 9 * (number % 7))),
            "category": None,
            "source_file": "f",
            "source_line": number,
        }
        for number in range(num_rows)
    ]
    return pa.Table.from_pylist(rows, schema=CORPUS)


def artifacts(folder, top_k):
    collect = Artifact(Folder.at(folder), "collect/a", collect_schema(VOCABULARY, with_topk=top_k > 0), {"x": "y" * 99})
    return collect, Artifact(Folder.at(folder), "signals/a", signals_schema(VOCABULARY))


def reading(top_k, num_samples=1):
    return ReadSettings(GenerationConfig(max_tokens=32, temperature=1.0), top_k, 0, num_samples)


@pytest.mark.parametrize("top_k", [K, 0], ids=["eager", "lazy"])
def test_file_sizes_match_the_probes_prediction(tmp_path, top_k):
    source, (collect, signals) = SourceReader(Rambling(), OwnTemplate()), artifacts(tmp_path, top_k)
    probe, _ = probe_rows(source, corpus(64), reading(top_k), K, collect, signals)
    assert not list(tmp_path.iterdir())
    assert (probe.signals_seconds > 0) == (top_k == 0)
    found = source.read(corpus(200), reading(top_k))
    collect.write_shard(0, collect_table(found, VOCABULARY, top_k), count(found))
    tokens = count(found)["training_tokens"] + count(found)["inference_tokens"]
    (size,) = collect.folder.sizes().values()
    file = probe.with_topk if top_k else probe.without_topk
    assert file.fixed + file.per_token * tokens == pytest.approx(size, rel=0.1)
    assert probe.with_topk.per_token > probe.distributions.per_token > 2 * probe.without_topk.per_token


def test_a_server_without_a_tokenizer_is_probed_with_the_vocabularies_of_its_answers(tmp_path):
    server = Scripted(tokenizer=byte_level_tokenizer(), answer=lambda body: "The answer is 7.")
    with serving(server) as url:
        probe, _ = probe_rows(reader(source(url)), corpus(8), reading(4), 4, *artifacts(tmp_path, 4))
    assert probe.inference_tokens.tolist() == [server.usage[1]] * 8
    assert probe.with_topk.per_token > probe.without_topk.per_token > 0


def test_next_steps_are_planned_and_not_probed(tmp_path):
    source, (collect, signals) = SourceReader(Rambling(), OwnTemplate()), artifacts(tmp_path, 0)
    with_steps = replace(signals, schema=signals_schema(VOCABULARY, with_steps=True))
    sizes = [
        probe_rows(source, corpus(16), reading(0), K, collect, artifact)[0].distributions.per_token
        for artifact in (signals, with_steps)
    ]
    assert sizes[1] == pytest.approx(sizes[0], rel=0.2)


def test_tokens_are_counted_row_by_row_and_a_rejected_row_has_none(tmp_path):
    engine = Rambling()
    source = SourceReader(engine, OwnTemplate())
    rows = corpus(3)
    long = corpus(1).to_pylist()[0] | {"row_id": "long", "response": "x" * 300}
    rows = pa.concat_tables([rows, pa.Table.from_pylist([long], schema=CORPUS)])
    probe, _ = probe_rows(source, rows, reading(K, num_samples=3), K, *artifacts(tmp_path, K))
    responses = [len(engine.tokenizer.encode(text)) + 1 for text in rows["response"].to_pylist()[:3]]
    assert probe.training_tokens.tolist() == [*responses, 0]
    assert (probe.prompt_tokens[:3] > 0).all()
    assert probe.prompt_tokens[3] == probe.inference_tokens[3] == 0
    assert (probe.inference_tokens[:3] >= 3).all()
    with pytest.raises(
        UserError, match=r"collect/a: the source refuses all 1 rows of the probe: prompt and response are"
    ):
        probe_rows(source, rows.slice(3), reading(K), K, *artifacts(tmp_path, K))
