"""Bytes per response token of a laboratory source's real top-10 distributions, in memory and in a shard on disk."""

import tempfile

import pyarrow as pa

from profuser.artifacts.schemas import CORPUS
from profuser.corpus import prepare_rows, read_corpus
from profuser.engines.base import ReadSettings
from profuser.engines.collecting import SourceReader
from profuser.engines.transformers import TransformersEngine
from profuser.models.lab_paths import assets_path
from profuser.recipe.engine import EngineConfig
from profuser.recipe.models import GenerationConfig, OwnTemplate
from profuser.signals.codec import to_columns
from profuser.storage.folder import Folder
from tests.benchmarks.measure import Row

K, NUM_ROWS = 10, 192


def run() -> list[Row]:
    engine = TransformersEngine(str(assets_path() / "sources" / "llama"), None, EngineConfig())
    rows = prepare_rows(read_corpus(str(assets_path() / "corpus" / "train.jsonl.gz")))
    records = [next(rows).__dict__ for _ in range(NUM_ROWS)]
    for record in records:
        record["messages"] = [message._asdict() for message in record["messages"]]
    reader = SourceReader(engine, OwnTemplate())
    how = ReadSettings(GenerationConfig(max_tokens=1), K, seed=0)
    read = reader.read(pa.Table.from_pylist(records, schema=CORPUS), how)
    reader.loop.close()
    topk = [entry.training.topk for entry in read if entry.training]
    num = sum(row.num_positions for row in topk)
    table = pa.table(to_columns("topk", topk, engine.vocab_size))
    with tempfile.TemporaryDirectory() as folder:
        Folder.at(folder).write_table("shard", table)
        on_disk = len(Folder.at(folder).read_bytes("shard"))
    # 4 bytes per id and 4 per log-probability, as in an engine's arrays.
    plain = 8.0 * K
    return [
        Row("codec, in memory, against int32 and float32", table.nbytes / num, "bytes/token", plain, "<= 44"),
        Row("codec, on disk, against the same", on_disk / num, "bytes/token", plain, "<= 36"),
    ]
