"""Defines one Arrow schema per artifact. Every stage checks what it writes and reads against these.

Legend of list columns: T response tokens (end-of-turn token included), K top-k. Columns of top-k distributions are those of the
codec (signals/codec.py).
"""

from collections.abc import Sequence

import pyarrow as pa

from profuser.errors import ArtifactError
from profuser.signals.codec import id_dtype, topk_fields

MESSAGE = pa.struct([pa.field("role", pa.string(), nullable=False), pa.field("content", pa.string(), nullable=False)])

CORPUS = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("messages", pa.list_(MESSAGE), nullable=False),
        pa.field("response", pa.string(), nullable=False),
        pa.field("category", pa.string()),
        pa.field("source_file", pa.string(), nullable=False),
        pa.field("source_line", pa.int64(), nullable=False),
    ]
)

_EXTRA_COLUMNS = {"tests": pa.list_(pa.string()), "json_schema": pa.string()}


def corpus_schema(columns: Sequence[str]) -> pa.Schema:
    """Returns the schema of corpus rows with further columns for verifiers (`tests`, `json_schema`); null if a row has none."""
    return pa.schema([*CORPUS, *(pa.field(name, _EXTRA_COLUMNS[name]) for name in columns)])


QUARANTINE = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),
        pa.field("line", pa.int64(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("excerpt", pa.string(), nullable=False),
    ]
)

CONTAMINATED = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("source_file", pa.string(), nullable=False),
        pa.field("source_line", pa.int64(), nullable=False),
        pa.field("found_in", pa.string(), nullable=False),
        pa.field("phrase", pa.string(), nullable=False),
    ]
)
"""Schema of a training row dropped by decontamination, with the phrase that a benchmark or a held-out row shares with it."""

REWARDS = pa.schema([pa.field("row_id", pa.string(), nullable=False), pa.field("scores", pa.list_(pa.float64()))])

VERDICT = pa.struct(
    [
        pa.field("first", pa.int32(), nullable=False),
        pa.field("second", pa.int32()),
        pa.field("messages", pa.list_(MESSAGE), nullable=False),
        pa.field("reply", pa.string(), nullable=False),
        pa.field("masses", pa.list_(pa.float64()), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("refused", pa.string()),
    ]
)
"""Type of one question to a generative judge with its reply.

`first` and `second` are places among the row's answers: the answer that is judged or shown first, and the one shown second (null in
pointwise mode). `masses` holds the probability of each possible verdict (grades, worst first; or A and B), `score` the expected
grade or the probability that the first is preferred, and `refused` why there is none.
"""


def with_verdicts(schema: pa.Schema) -> pa.Schema:
    """Returns the schema of a generative judge's scores: a row also has what the judge was asked about it, and its replies."""
    return schema.append(pa.field("verdicts", pa.list_(VERDICT), nullable=False))


MODES = ("training", "inference")
"""The paper's two modes, each an example with a teacher; arrays with an axis of modes are in this order."""
PAIR = ("preferred", "rejected")
"""The two answers of a pair of preference mode, each a row of the select artifact, without a teacher's distributions."""
ON_POLICY = "on_policy"
"""An answer of the target itself, with the distributions of the row's teacher."""
ANSWER_VOCABULARY_SIZE = 1 << 19
"""Bound of the ids of a row's own vocabulary, which decides their types."""
PARTS = (*MODES, *PAIR, ON_POLICY)
"""What an example in the select artifact can be, in the order of training's arrays."""
MODES_OF_PARTS = (*MODES, *("preference",) * len(PAIR), ON_POLICY)
"""The mode of each entry of `PARTS`, as schedules name it."""


def collect_schema(vocab_size: int, with_topk: bool = True, own_vocabulary: bool = False) -> pa.Schema:
    """Returns the schema of one source's signals per row: `training_*` on the ground truth, `inference_*` on its own answers.

    A row that the source refuses has only the reason. The answers of a row (one, or `samples_per_source`) are concatenated in the
    `inference_*` lists; `answer_tokens` holds their lengths. An answer that is blank or not text is null.

    Args:
        vocab_size: width of the source's logits; decides the types of ids.
        with_topk: whether the distributions are included (not in the first pass if signals are lazy).
        own_vocabulary: whether the ids of a row's answers and their distributions are indices into its `answer_vocabulary`, the
            byte strings of their tokens, as the source's tokenizer is not known. The first, without bytes, is the end of a turn.
    """
    fields = [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("refused", pa.string()),
        pa.field("response_bytes", pa.int32(), nullable=False),
        pa.field("training_nats", pa.float64()),
        pa.field("inference_nats", pa.list_(pa.float64())),
        pa.field("answers", pa.list_(pa.string())),
        pa.field("finish_reasons", pa.list_(pa.string())),
        pa.field("answer_tokens", pa.list_(pa.int32())),
    ]
    for mode in MODES:
        fields += _response_fields(mode, vocab_size, with_topk)
    if own_vocabulary:
        fields.append(pa.field("answer_vocabulary", pa.list_(pa.binary())))
    return pa.schema(fields)


def signals_schema(vocab_size: int, with_steps: bool = False) -> pa.Schema:
    """Returns the schema of a source's signals on the responses that it was chosen to teach: one per row and mode.

    With `with_steps` (`select.condition: exact`) also after used-up candidates: `step_candidates` replace the response tokens
    at `step_positions`, and `step_topk` predicts the token after each.
    """
    fields = [pa.field("row_id", pa.string(), nullable=False), pa.field("mode", pa.string(), nullable=False)]
    fields += _response_fields("response", vocab_size, True)
    if with_steps:
        fields.append(pa.field("step_positions", pa.list_(pa.int32())))
        fields.append(pa.field("step_candidates", pa.list_(_id_type(vocab_size))))
        fields += topk_fields("step_topk", vocab_size)
    return pa.schema(fields)


def _response_fields(prefix: str, vocab_size: int, with_topk: bool) -> list[pa.Field]:
    return [
        pa.field(f"{prefix}_ids", pa.list_(_id_type(vocab_size))),
        pa.field(f"{prefix}_logprobs", pa.list_(pa.float16())),
        *(topk_fields(f"{prefix}_topk", vocab_size) if with_topk else []),
    ]


def _id_type(vocab_size: int) -> pa.DataType:
    return pa.from_numpy_dtype(id_dtype(vocab_size))


def select_schema(vocab_size: int) -> pa.Schema:
    """Returns the schema of training examples: a mode of a corpus row, with its teacher's distributions in the target's vocabulary.

    `advantages` holds one number per source, in the order of the recipe: bits per byte or nats per token in training mode (lower is
    better); in inference mode and for pairs votes, one number per answer, source by source. `sample` is the index of the response
    among the teacher's answers; `teacher` is `average` if all sources teach together, and for an answer of a pair the source that
    gave it. `rules` is the alignment rule that carried each token's distribution.
    """
    return pa.schema(
        [
            pa.field("row_id", pa.string(), nullable=False),
            pa.field("mode", pa.string(), nullable=False),
            pa.field("category", pa.string()),
            pa.field("teacher", pa.string(), nullable=False),
            pa.field("sample", pa.int32(), nullable=False),
            pa.field("advantages", pa.list_(pa.float64()), nullable=False),
            pa.field("prompt_ids", pa.list_(_id_type(vocab_size)), nullable=False),
            pa.field("response_ids", pa.list_(_id_type(vocab_size)), nullable=False),
            pa.field("response_bytes", pa.int32(), nullable=False),
            *topk_fields("topk", vocab_size, nullable=False),
            pa.field("rules", pa.list_(pa.uint8()), nullable=False),
        ]
    )


EVALUATE = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("category", pa.string()),
        pa.field("refused", pa.string()),
        pa.field("prediction", pa.string()),
        pa.field("correct", pa.bool_()),
        pa.field("nats", pa.float64()),
        pa.field("response_bytes", pa.int32(), nullable=False),
    ]
)


BENCHMARK = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("doc_hash", pa.string(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
        pa.field("metrics", pa.map_(pa.string(), pa.float64()), nullable=False),
        pa.field("prediction", pa.string()),
        pa.field("target", pa.string()),
        pa.field("truncated", pa.bool_(), nullable=False),
    ]
)
"""Schema of one benchmark item under one model.

`score` is the item's value of the headline metric, `metrics` its values of all metrics; `task` is the harness's task (a subject of
MMLU); `truncated`: the prompt did not fit the model's context and was cut on the left.
"""


JUDGE = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
    ]
)
"""Schema of a reward's score of a model's answer to a held-out row; null if the model refused the row or the answer is blank."""


def check_schema(table: pa.Table, schema: pa.Schema, where: str) -> None:
    """Raises ArtifactError, naming the first difference, unless a table has exactly the fields of a schema."""
    for field in schema:
        if field.name not in table.column_names:
            raise ArtifactError(f"{where}: the column {field.name!r} is missing")
        if table.schema.field(field.name).type != field.type:
            found = table.schema.field(field.name).type
            raise ArtifactError(f"{where}: column {field.name!r} is {found}, expected {field.type}")
    extra = [name for name in table.column_names if name not in schema.names]
    if extra:
        raise ArtifactError(f"{where}: unknown column {extra[0]!r}")
