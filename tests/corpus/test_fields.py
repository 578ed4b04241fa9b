"""Records of any other shape, whose fields the recipe names."""

import json

import pytest

from profuser.config import identity
from profuser.corpus import corpus_rows
from profuser.corpus.preview import preview
from profuser.corpus.rows import RawRow
from profuser.errors import UserError
from profuser.recipe.models import CorpusConfig

NESTED = {
    "data": {"turns": [{"text": "q"}], "note": "c"},
    "gold": ["a"],
    "rules": "s",
    "kind": "k",
    "context": "not used",
}
ALL = {
    "prompt": "data.turns.0.text",
    "context": "data.note",
    "response": "gold.0",
    "system": "rules",
    "category": "kind",
}


def rows(records, **settings):
    config = CorpusConfig(path="x", **settings)
    return list(corpus_rows(config, [RawRow("f", n, record) for n, record in enumerate(records, 1)]))


def test_named_fields_become_prompt_response_and_category():
    (row,) = rows([NESTED], fields=ALL)
    assert [tuple(message) for message in row.messages] == [("system", "s"), ("user", "q\n\nc")]
    assert (row.response, row.category, row.unused_fields) == ("a", "k", ("context",))


def test_a_name_with_a_dot_is_a_name_first():
    (row,) = rows([{"a.b": "q", "a": {"b": "no"}, "r": "a"}], fields={"prompt": "a.b", "response": "r"})
    assert row.messages[0].content == "q"


def test_named_fields_may_hold_turns():
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}, {"role": "user", "content": "r"}]
    (row,) = rows([{"x": turns, "y": "b"}], fields={"prompt": "x", "response": "y"}, turns="all")
    assert ([message.content for message in row.messages], row.response) == (["q", "a", "r"], "b")


def test_a_record_without_a_named_field_is_refused():
    (row,) = rows([{"gold": ["a"]}], fields=ALL)
    assert row.reason == "no field 'data.turns.0.text' (fields: gold)"


def test_an_optional_field_that_no_record_has_is_an_error(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"x": "q", "y": "a"}))
    config = CorpusConfig(path="x", heldout_rows=0, fields={"prompt": "x", "response": "y", "context": "more.text"})
    with pytest.raises(UserError, match=r"corpus.fields.context: no record of .* has a field 'more.text'"):
        preview(config, str(tmp_path / "a.jsonl"))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"format": "qa"}, "corpus.format and corpus.fields both say"),
        ({"category_field": "kind"}, "corpus.category_field and corpus.fields.category name the same"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, expected):
    with pytest.raises(ValueError, match=expected):
        CorpusConfig(path="x", fields=ALL, **settings)


def test_settings_that_older_recipes_lacked_are_not_part_of_the_identity_at_their_defaults():
    known = ["path", "format", "category_field", "max_rows", "heldout", "heldout_rows", "rows_per_shard"]
    assert list(identity(CorpusConfig(path="x"))) == [*known, "max_row_bytes", "max_quarantined_fraction"]
    changed = identity(CorpusConfig(path="x", turns="all", fields=ALL))
    assert (changed["turns"], changed["fields"]["prompt"]) == ("all", "data.turns.0.text")
