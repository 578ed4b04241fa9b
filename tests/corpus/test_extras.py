"""Tests of code and JSON schemas that a record carries for verifiers."""

import json

import pytest

from profuser.artifacts.artifact import Artifact
from profuser.artifacts.schemas import CORPUS, QUARANTINE, corpus_schema
from profuser.config import identity
from profuser.corpus import corpus_rows
from profuser.corpus.preview import preview
from profuser.corpus.rows import RawRow
from profuser.corpus.stage import write_corpus
from profuser.errors import UserError
from profuser.recipe.models import CorpusConfig
from profuser.recipe.preparing import FieldsConfig
from profuser.rewards.sandbox import SandboxLimits, run_tests
from profuser.storage.folder import Folder

MBPP = {
    "text": "Write a function that adds two numbers.",
    "code": "def add(a, b):\n    return a + b",
    "test_list": ["assert add(1, 2) == 3", "assert add(0, 0) == 0"],
}
HUMAN_EVAL = {
    "text": 'def add(a, b):\n    """Adds two numbers."""\n',
    "code": "def add(a, b):\n    return a + b",
    "test_list": "METADATA = {}\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n",
    "function": "add",
}
FIELDS = {"prompt": "text", "response": "code", "tests": "test_list"}


def rows(*records, **fields):
    config = CorpusConfig(path="x", fields={**FIELDS, **fields})
    return list(corpus_rows(config, [RawRow("f", n, record) for n, record in enumerate(records, 1)]))


@pytest.mark.parametrize(("record", "more"), [(MBPP, {}), (HUMAN_EVAL, {"entry_point": "function"})])
def test_the_tests_of_published_datasets_accept_their_own_answers_and_no_others(record, more):
    (row,) = rows(record, **more)
    assert not row.unused_fields
    limits = SandboxLimits(20, 1 << 30, isolate=False)
    assert run_tests(row.response, row.tests, limits) == (len(row.tests), None)
    assert run_tests("def add(a, b):\n    return 7", row.tests, limits) == (0, "wrong")


@pytest.mark.parametrize(
    ("tests", "more", "reason"),
    [
        ("assert add(1, 2 == 3", {}, "test_list is no Python code"),
        ("['assert add(1, 2) == 3']", {}, "test_list checks nothing (neither an assert nor a call is run)"),
        (HUMAN_EVAL["test_list"], {}, "neither an assert nor a call is run; set corpus.fields.entry_point"),
        ("def check(f): pass", {"entry_point": "code"}, "code is no name of a function"),
        ("def check(f): pass", {"entry_point": "nowhere"}, "nowhere is "),
        ([1], {}, "test_list is a number, expected text"),
        ({"a": 1}, {}, "test_list is an object, expected text"),
        ("(" * 5000, {}, "test_list is no Python code"),
    ],
)
def test_tests_that_any_answer_would_pass_refuse_the_row(tests, more, reason):
    (row,) = rows(MBPP | {"test_list": tests}, **more)
    assert reason in row.reason


@pytest.mark.parametrize("blank", [None, "", [], "  ", float("nan")])
def test_a_row_without_tests_is_a_row(blank):
    first, second = rows(MBPP | {"test_list": blank}, {**MBPP, "text": "other"})
    assert first.tests is None
    assert len(second.tests) == 2


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"type": "object"}, '{"type": "object"}'),
        ('{"type": "object"}', '{"type": "object"}'),
        (None, None),
        ("", None),
    ],
)
def test_the_schema_of_a_row(value, expected):
    assert rows({**MBPP, "form": value}, json_schema="form")[0].json_schema == expected


@pytest.mark.parametrize(
    ("value", "reason"), [("{", "form is not JSON"), ("[]", "form is a list"), (3, "form is a number")]
)
def test_what_is_no_schema_refuses_the_row(value, reason):
    assert rows({**MBPP, "form": value}, json_schema="form")[0].reason.startswith(reason)


def test_of_a_conversation_the_last_answer_is_tested():
    answers = [{"role": role, "content": f"{role} {n}"} for n in (1, 2) for role in ("user", "assistant")][1:]
    config = CorpusConfig(path="x", fields=FIELDS, turns="all")
    record = {"text": "user 1", "code": answers, "test_list": ["assert c"]}
    found = list(corpus_rows(config, [RawRow("f", 1, record)]))
    assert [row.tests for row in found] == [None, ["assert c"]]


def test_tests_count_as_part_of_a_row_s_size():
    config = CorpusConfig(path="x", fields=FIELDS, max_row_bytes=200)
    record = MBPP | {"test_list": ["assert add(1, 2) == 3"] * 9}
    (row,) = corpus_rows(config, [RawRow("f", 1, record)])
    assert row.reason.startswith("larger than corpus.max_row_bytes=200")


def test_only_a_recipe_that_names_them_stores_them(tmp_path):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps({**MBPP, "text": f"Add {n}.", "form": {}}) + "\n" for n in range(6)))
    found = {}
    for name, more in {"plain": {"tests": None}, "tests": {}, "both": {"json_schema": "form"}}.items():
        config = CorpusConfig(path=str(file), fields={**FIELDS, **more}, heldout_rows=2)
        schema = corpus_schema(config.columns)
        made = [
            Artifact(Folder.at(tmp_path / name / part), f"prepare/{part}", which, {})
            for part, which in (("train", schema), ("heldout", schema), ("quarantine", QUARANTINE))
        ]
        write_corpus(config, 0, made, {})
        found[name] = [artifact.read_shard(0) for artifact in made[:2]]
    assert found["plain"][0].schema.names == CORPUS.names
    assert found["tests"][0].schema.names == [*CORPUS.names, "tests"]
    for table in found["both"]:
        assert table.schema.names == [*CORPUS.names, "json_schema", "tests"]
        assert set(map(tuple, table["tests"].to_pylist())) == {tuple(MBPP["test_list"])}


def test_the_identity_of_recipes_that_name_none_is_as_before():
    assert list(identity(FieldsConfig(prompt="a", response="b"))) == [
        "prompt",
        "response",
        "context",
        "system",
        "category",
    ]
    assert identity(FieldsConfig(prompt="a", response="b", tests="c"))["tests"] == "c"


def test_a_field_that_no_record_has_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps(MBPP))
    config = CorpusConfig(path="x", heldout_rows=0, fields={**FIELDS, "tests": "tests"})
    with pytest.raises(UserError, match=r"corpus.fields.tests: no record of .* has a field 'tests'"):
        preview(config, str(tmp_path / "a.jsonl"))


def test_an_entry_point_needs_tests():
    with pytest.raises(ValueError, match="set tests too"):
        FieldsConfig(prompt="a", response="b", entry_point="c")
