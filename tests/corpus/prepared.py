"""Prepares corpora for tests, up to the tables that the stage `prepare` stores."""

import json
from dataclasses import asdict

import pyarrow as pa

from profuser.artifacts.schemas import CORPUS, QUARANTINE
from profuser.corpus import CorpusRow, RowCounts, check_quarantine, prepare_rows, read_corpus
from profuser.recipe.models import CorpusConfig


def record(**fields):
    return json.dumps(fields, ensure_ascii=False).encode()


def talk(*turns):
    return record(messages=[{"role": role, "content": text} for role, text in turns])


FIRST, LAST = record(question="Say 1.", answer="1"), record(question="Say 2.", answer="2")


def prepared(location, max_fraction=None):
    """Returns kept and refused rows under a recipe's defaults; checks that every row is one of them, and can be stored."""
    config = CorpusConfig(path=str(location))
    summary, kept, refused = RowCounts(), [], []
    raws = list(read_corpus(config.path))
    for row in prepare_rows(raws, config.format, config.category_field, config.max_row_bytes):
        summary.add(row)
        (kept if isinstance(row, CorpusRow) else refused).append(row)
    assert summary.read == len(kept) + len(refused) == len(raws)
    _store(kept, refused)
    check_quarantine(config.path, summary, config.max_quarantined_fraction if max_fraction is None else max_fraction)
    return kept, refused


def _store(kept, refused):
    talks = [[{"role": role, "content": text} for role, text in row.messages] for row in kept]
    pa.Table.from_pylist(
        [asdict(row) | {"messages": talk} for row, talk in zip(kept, talks, strict=True)], schema=CORPUS
    )
    pa.Table.from_pylist([asdict(row) for row in refused], schema=QUARANTINE)
    for row in refused:
        assert row.reason.isprintable()
        assert len(row.reason) < 500
        assert len(row.excerpt) <= 160
