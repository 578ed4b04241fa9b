"""A source behind vLLM's own server: its signals are those of a local engine, whatever fails in between."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import yaml

from profuser.engines.endpoint.client import EndpointError
from profuser.engines.signal_tables import read_answer_signals, read_signals
from profuser.models.lab_paths import assets_path
from profuser.run.beginning import begin
from profuser.run.endpoints import begin_endpoints
from profuser.run.tokenizers import read_tokens
from ray_jobs.runtime.cluster import connected
from ray_jobs.stages.collect import collect
from ray_jobs.stages.prepare import prepare
from tests.openai_server import CHAT, COMPLETIONS, MODEL, Failure, Proxy, Scripted, serving
from tests.ray import stages
from tests.ray.test_run import BIN, killed, row_ids, rows, shards

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]
NAME = "acme/llama"


@pytest.fixture(scope="module")
def vllm_server(tmp_path_factory):
    """Yields the base URL of vLLM's server of the laboratory's llama."""
    with socket.create_server(("127.0.0.1", 0)) as place:
        port = place.getsockname()[1]
    folder = assets_path() / "sources" / "llama"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--model", str(folder), "--served-model-name", NAME, "--dtype", "float32", "--max-model-len", "128"]
    command += ["--max-num-seqs", "16", "--enforce-eager", "--disable-uvicorn-access-log"]
    variables = {"OMP_NUM_THREADS": "1", "VLLM_LOGGING_LEVEL": "ERROR", "VLLM_CPU_KVCACHE_SPACE": "1"}
    variables |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "VLLM_NO_USAGE_STATS": "1"}
    log = (tmp_path_factory.mktemp("server") / "log").open("w+")
    process = subprocess.Popen(command, env=os.environ | variables, stdout=log, stderr=log, start_new_session=True)
    try:
        deadline = time.monotonic() + 300
        while not _answers(f"http://127.0.0.1:{port}/health"):
            log.seek(0)
            assert process.poll() is None, log.read()[-2000:]
            assert time.monotonic() < deadline, log.read()[-2000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(60)


def _answers(url):
    try:
        return httpx.get(url, timeout=5).is_success
    except httpx.TransportError:
        return False


INFERENCE = {"schedule": [{"until": 1.0, "inference": 1.0, "training": 0.0}]}


def behind(storage, corpus, url, tokenizer="lab://sources/llama", **changes):
    endpoint = {"base_url": url, "model": NAME, "tokenizer": tokenizer, "concurrency": 8}
    lines = []
    run = stages.make_run(storage, corpus, sources=[{"name": "llama", "endpoint": endpoint}], **changes)
    return begin_endpoints(begin(run), lines.append), lines


@pytest.mark.vllm
def test_the_signals_are_those_of_a_local_engine_although_requests_fail_and_the_actor_is_killed(tmp_path, vllm_server):
    corpus = tmp_path / "data.jsonl"
    stages.write_corpus(corpus)
    turn, lock, limited = [0], threading.Lock(), []

    def fail(path, body):
        if path not in (CHAT, COMPLETIONS):
            return None
        with lock:
            turn[0] += 1
            if turn[0] % 9:
                return None
            limited.append(path)
            return Failure(429, headers={"retry-after": "0.3"}) if turn[0] % 2 else Failure(None)

    proxy = Proxy(base_url=vllm_server, fail=fail)
    with connected(), serving(proxy) as url:
        llama = {"model": "lab://sources/llama"}
        # With the engine of the source, whose actor then also reads the held-out rows.
        same = {"engine": {"kind": "vllm", "dtype": "float32", "max_model_len": 128, "max_num_seqs": 16}}
        local = stages.make_run(tmp_path / "local", corpus, {"llama": llama["model"]}, "vllm", target=llama | same)
        prepare(local)
        collect(local, local.recipe.sources[0])
        run, (line,) = behind(tmp_path / "served", corpus, url)
        prepare(run)
        assert line == (
            f"source llama: {url} serves {NAME} (model {assets_path() / 'sources' / 'llama'}, up to 128 tokens); distributions of "
            "its answers, of 6 tokens; it teacher-forces the ground truth"
        )
        output = run.collect(run.recipe.sources[0])
        with stages.Meanwhile(lambda: len(output.shards()) >= 1, stages.kill_an_actor):
            manifest = collect(run, run.recipe.sources[0])
        bare, (line,) = behind(tmp_path / "bare", corpus, url, None, fuse=INFERENCE)
        assert "distributions of its answers, of 6 tokens, aligned by their bytes (no endpoint.tokenizer)" in line
        prepare(bare)
        collect(bare, bare.recipe.sources[0])
    assert limited
    check_same_by_bytes(bare, run)
    assert manifest.counts["rows"] == stages.NUM_ROWS - 4
    assert manifest.counts["input_tokens"] > manifest.counts["output_tokens"] > 0
    assert not (output.folder / "attempts").names()
    stages.check_same(stages.whole(output), stages.whole(local.collect(local.recipe.sources[0])))
    # The held-out rows, read along: only the tokens' own log-probabilities. The local source is the target.
    read = zip(stages.whole(run.evaluate("llama")), stages.whole(local.evaluate("target")), strict=True)
    for mine, other in read:
        assert mine.pop("nats") == pytest.approx(other.pop("nats"), rel=1e-3)
        assert mine == other
    # A run that continues elsewhere: the address is no part of its identity.
    moved, _ = behind(tmp_path / "served", corpus, vllm_server)
    assert moved.collect(moved.recipe.sources[0]).manifest() is not None


def check_same_by_bytes(bare, run):
    """Asserts that a source without its tokenizer has the answers, tokens and probabilities that it has with it."""
    tables = [pa.concat_tables(each.collect(each.recipe.sources[0]).tables()).sort_by("row_id") for each in (bare, run)]
    read = pc.and_(*(table["refused"].combine_chunks().is_null() for table in tables))
    tables = [table.filter(read) for table in tables]
    assert tables[0]["answers"].to_pylist() == tables[1]["answers"].to_pylist()
    first, (tokens,) = [0] * len(tables[0]), read_tokens(run)
    mine, spelt = read_answer_signals(tables[0], first, 6)
    other = read_signals(tables[1], "inference", first, tokens.vocab_size, 6)
    assert [spelt[i] for i in mine.ids.values.tolist()] == [tokens[i] for i in other.ids.values.tolist()]
    np.testing.assert_allclose(mine.logprobs.astype(float), other.logprobs.astype(float), atol=2e-2)
    for place in range(len(mine.logprobs)):
        masses, wanted = (
            {
                table[i]: float(np.exp(v))
                for i, v in zip(found.topk.ids[place].tolist(), found.topk.logprobs[place], strict=True)
            }
            for table, found in ((spelt, mine), (tokens, other))
        )
        likely = {piece: mass for piece, mass in masses.items() if piece and mass > 0.05}
        assert likely == pytest.approx({piece: wanted.get(piece, 0.0) for piece in likely}, abs=2e-2)


def test_a_server_that_fails_in_mid_stage_ends_it_in_one_line_and_the_next_run_continues(tmp_path):
    corpus = tmp_path / "data.jsonl"
    stages.write_corpus(corpus)
    script, lock, num_chats = Scripted(), threading.Lock(), [0]

    def fail(path, body):
        with lock:
            num_chats[0] += path == CHAT
            return Failure(402, "no credit left") if num_chats[0] > 24 else None

    script.fail = fail
    with connected(), serving(script) as url:
        endpoint = {"base_url": url, "model": MODEL, "concurrency": 2}
        sources = [{"name": "big", "endpoint": endpoint, "engine": {"shards_in_flight": 1}}]
        run = stages.make_run(tmp_path / "runs", corpus, sources=sources, fuse=INFERENCE)
        prepare(run)
        run = begin_endpoints(begin(run), lambda line: None)
        source = run.recipe.sources[0]
        output = run.collect(source)
        with pytest.raises(EndpointError, match="402: no credit left"):
            collect(run, source)
        kept = output.shards()
        assert 0 < len(kept) < 5
        # A failed attempt is no death of the engine: it has no note. The next shard may have just begun when the stage ended.
        notes, failed = output.folder / "attempts", min(set(range(5)) - set(kept))
        assert set(notes.names()) <= {f"shard-{failed + 1:05d}.json"}
        num_chats[0] = -1000
        assert collect(run, source).counts["rows"] == stages.NUM_ROWS - 4
    assert num_chats[0] < -1000 + stages.NUM_ROWS


@pytest.mark.vllm
def test_a_fusion_with_an_endpoint_and_a_judge_is_killed_and_continued_and_reports_cost_and_agreement(
    tmp_path, vllm_server
):
    stages.write_corpus(tmp_path / "data.jsonl")
    slow = [True]
    proxy = Proxy(base_url=vllm_server, fail=lambda path, body: time.sleep(0.1) if slow[0] and path == CHAT else None)
    engine = {"kind": "transformers", "dtype": "float32", "max_model_len": 128}
    cost = {"input_per_million": 1000.0, "output_per_million": 2000.0}
    served = {"model": NAME, "concurrency": 4, "cost": cost}
    with serving(proxy) as url:
        # The laboratory's models were never taught to judge: a grammar makes each reply a verdict.
        letters = {"structured_outputs": {"choice": ["A", "B"]}}
        referee = served | {"base_url": url, "options": letters}
        recipe = {
            "name": "whole",
            "storage": str(tmp_path / "runs"),
            "corpus": {
                "path": str(tmp_path / "data.jsonl"),
                "heldout_rows": 4,
                "rows_per_shard": stages.ROWS_PER_SHARD,
            },
            "sources": [
                *({"name": name, "model": path, "engine": engine} for name, path in stages.MODELS.items()),
                {"name": "big", "endpoint": served | {"base_url": vllm_server, "tokenizer": "lab://sources/llama"}},
                {"name": "bare", "endpoint": served | {"base_url": vllm_server}},
            ],
            "target": {"model": stages.MODELS["llama"], "engine": engine},
            "collect": {"top_k": 6, "generation": {"max_tokens": 24}},
            "rewards": [
                {"kind": "chrf", "name": "chrf", "accept_above": None},
                {
                    **{
                        "kind": "llm_judge",
                        "name": "referee",
                        "mode": "pairwise",
                        "tie_margin": 0.0,
                        "endpoint": referee,
                    },
                    "rubric": {"prompt": "{{ response_a[:30] }} or {{ response_b[:30] }}?"},
                },
            ],
            "fuse": {
                **{"duration": {"kind": "steps", "value": 2}, "batch_tokens": 512, "max_tokens": 128},
                **{"validation_rows": 4, "workers": {"num_workers": 1, "num_cpus": 1}},
            },
            "evaluate": {"generation": {"max_tokens": 24}},
        }
        (tmp_path / "whole.yaml").write_text(yaml.safe_dump(recipe))
        command = [str(BIN / "profuser"), "run", str(tmp_path / "whole.yaml")]
        run = tmp_path / "runs" / "whole"
        judged = run / "rewards" / "referee"
        killed(command, tmp_path / "log", lambda: len(shards(judged)) >= 1)
        assert not (judged / "manifest.json").exists()
        kept, slow[0] = shards(judged), False
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-3000:]
    assert shards(judged).items() >= kept.items()
    assert "collect/big: done before" in done.stdout
    assert row_ids(judged) == row_ids(run / "prepare" / "train")
    told = {name: entry["counts"] for name, entry in json.loads((run / "summary.json").read_text())["stages"].items()}
    assert told["select"]["alignment/bare/project"] > told["select"].get("alignment/bare/none", 0)
    assert not [name for name in told["select"] if name.startswith("vocabulary/bare/")]
    questions = [each for row in rows(judged) for each in row["verdicts"]]
    assert told["rewards/referee"]["verdicts"] == len(questions) == 2 * told["rewards/referee"]["pairs_compared"] > 0
    assert {each["reply"] for each in questions} <= {"A", "B"}
    assert all(sum(each["masses"]) == pytest.approx(1, abs=1e-3) for each in questions)
    page = " ".join((run / "report" / "index.html").read_text().split())
    assert f"rewards/referee: {len(questions)} verdicts;" in page
    (agreed,) = re.findall(r"chrf, referee</th><td class=\"num\">(\d+)</td>", page)
    assert int(agreed) > 0
    for stage in ("collect/big", "rewards/referee", "judge/referee"):
        money = (1000 * told[stage]["input_tokens"] + 2000 * told[stage]["output_tokens"]) / 1e6
        assert f"{stage} {money:,.2f}" in page
