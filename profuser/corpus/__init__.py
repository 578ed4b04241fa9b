"""Reads, validates and tokenizes instruction corpora."""

from profuser.corpus.formats import CorpusFormat
from profuser.corpus.heldout import choose_heldout
from profuser.corpus.locations import corpus_files
from profuser.corpus.prepare import (
    CorpusRow,
    QuarantinedRow,
    RowCounts,
    check_quarantine,
    corpus_rows,
    prepare_rows,
    unused_line,
)
from profuser.corpus.readers import read_corpus
from profuser.corpus.rendering import Refusal
from profuser.corpus.rows import RawRow
from profuser.corpus.template import (
    EncodedExample,
    encode_example,
    encode_examples,
    end_token_id,
    render_prompt,
    render_prompts,
)
from profuser.corpus.turns import Message

__all__ = [
    "CorpusFormat",
    "CorpusRow",
    "EncodedExample",
    "Message",
    "QuarantinedRow",
    "RawRow",
    "Refusal",
    "RowCounts",
    "check_quarantine",
    "choose_heldout",
    "corpus_files",
    "corpus_rows",
    "encode_example",
    "encode_examples",
    "end_token_id",
    "prepare_rows",
    "read_corpus",
    "render_prompt",
    "render_prompts",
    "unused_line",
]
