"""`json_schema`: what counts as an answer's JSON, schemas of recipe, file and row, and schemas that are refused."""

import json
import math
import socket

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from profuser.errors import UserError
from profuser.recipe.verifiers import JsonSchemaConfig
from profuser.rewards.fenced import last_block
from profuser.rewards.json_answers import NO_JSON, json_of
from profuser.rewards.kinds import kind_of, load_judge

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}
ANN = '{"name": "Ann", "age": 5}'


def config(schema=None):
    return JsonSchemaConfig(kind="json_schema", name="form", json_schema=schema)


def rewards(answers, schema=PERSON, **row):
    judge = load_judge(config(schema))
    found = judge.score([{"row_id": "r", "response": "", "category": None, **row}] * len(answers), answers).tolist()
    return found, dict(judge.reasons)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (ANN, 1),
        (f"  {ANN}\n", 1),
        (f"Here it is:\n```json\n{ANN}\n```\nDone.", 1),
        (f"```JSON\n{ANN}\n```", 1),
        (f"```\n{ANN}\n```", 1),
        (f"~~~json\n{ANN}\n~~~", 1),
        (f"```json\n{ANN}", 1),
        (f'```json\n{{"name": 1}}\n```\nNo:\n```json\n{ANN}\n```', 1),
        (f'```json\n{ANN}\n```\nNo:\n```json\n{{"name": 1}}\n```', 0),
        (f"```json\n{ANN}\n```\n```python\nprint(1)\n```", 1),
        (f"```python\n{ANN}\n```", 0),
        (f"The answer: {ANN}", 0),
        ('{"name": "Ann", "age": 5.5}', 0),
        ('{"name": "Ann", "age": 5.0}', 1),
        ('{"age": 5}', 0),
        ('{"name": "Ann", "more": 1}', 0),
        ("{'name': 'Ann'}", 0),
        ('{"name": "Ann",}', 0),
        ('{"name": "Ann", "age": NaN}', 0),
        ("[]", 0),
        ("", 0),
        ("[" * 100_000, 0),
        ("[" * 900 + "]" * 900, 0),
        ("1" * 10_000, 0),
    ],
)
def test_an_answer_is_right_if_its_json_is_valid(answer, expected):
    assert rewards([answer])[0] == [expected]


def test_reasons():
    assert rewards([ANN, "no", "[]", "{}"])[1] == {"without_json": 1, "against_schema": 2}


def test_the_schema_of_a_row_and_rows_without_one():
    assert rewards([ANN, "3"], None, json_schema=json.dumps(PERSON)) == ([1, 0], {"against_schema": 1})
    found, reasons = rewards([ANN], None, json_schema=None)
    assert math.isnan(found[0])
    assert not reasons
    found, reasons = rewards([ANN], None, json_schema='{"type": "objct"}')
    assert math.isnan(found[0])
    assert reasons == {"without_valid_schema": 1}


@pytest.mark.parametrize("text", [json.dumps(PERSON), "type: object\nrequired: [name]\n"])
def test_a_schema_may_be_a_file_and_is_read_where_the_run_starts(tmp_path, text):
    file = tmp_path / "person.json"
    file.write_text(text)
    resolved = kind_of(config()).resolve(config(str(file)))
    file.unlink()
    assert load_judge(resolved).score([{"row_id": "r", "response": ""}] * 2, [ANN, "[]"]).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("schema", "expected"),
    [
        ({"type": "objct"}, "not a JSON schema: $.type: 'objct' is not valid"),
        ({"properties": {"a": {"pattern": "("}}}, "not a JSON schema: $.properties.a.pattern: '(' is not a 'regex'"),
        ({"$ref": "#/$defs/a"}, "the reference '#/$defs/a' leads nowhere in it; put what it names under $defs"),
        ({"items": [{"$ref": "https://example.org/a.json"}]}, "not a JSON schema: $.items"),
        ({"items": {"$ref": "https://example.org/a.json"}}, "the reference 'https://example.org/a.json' leads nowhere"),
        ({"$schema": "https://example.org/own"}, "its $schema, 'https://example.org/own', is unknown"),
        ({"$schema": 3}, "$schema is not text"),
    ],
)
def test_what_is_no_schema_is_refused_before_the_run(schema, expected, tmp_path):
    file = tmp_path / "s.json"
    file.write_text(json.dumps(schema))
    for given_as in (schema, str(file)):
        with pytest.raises(UserError) as caught:
            kind_of(config()).check(config(given_as))
        assert str(caught.value).startswith("rewards.form.json_schema: ")
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "No such file or directory; give a file, or the schema"),
        ("{", "is neither JSON nor YAML"),
        ("[1]", "holds list, expected an object"),
        ("default: 2026-01-01", "is neither JSON nor YAML"),
    ],
)
def test_a_file_that_holds_no_schema_is_refused_before_the_run(tmp_path, content, expected):
    file = tmp_path / "s.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=expected):
        kind_of(config()).check(config(str(file)))


@pytest.mark.parametrize(
    "schema",
    [
        {"$defs": {"a": {"type": "integer"}}, "$ref": "#/$defs/a"},
        {"$schema": "http://json-schema.org/draft-07/schema#", "definitions": {"a": {}}, "$ref": "#/definitions/a"},
        {"$id": "https://example.org/c", "$defs": {"k": {"$id": "d", "type": "integer"}}, "$ref": "d"},
        {"const": {"$ref": "nowhere"}},
        {"type": ["integer", "array"], "items": {"$ref": "#"}},
    ],
)
def test_references_into_the_schema_are_followed_without_a_network(schema, monkeypatch):
    monkeypatch.setattr(socket, "socket", None)
    kind_of(config()).check(config(schema))
    assert rewards(["1"], schema)[0] == [float(schema.get("const") is None)]


DOCUMENTS = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "age", "x"]), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, st.sampled_from([PERSON, {"type": "array"}, {"not": PERSON}]))
def test_documents_are_judged_as_jsonschema_does(document, schema):
    is_valid = jsonschema.Draft202012Validator(schema).is_valid(document)
    text = json.dumps(document)
    assert rewards([text, f"So:\n```json\n{text}\n```"], schema)[0] == [is_valid, is_valid]


@settings(max_examples=60, deadline=None)
@given(DOCUMENTS, st.text(max_size=20).filter(lambda text: "`" not in text and "~" not in text))
def test_the_last_block_of_any_answer_is_found(document, words):
    text = json.dumps(document, indent=1)
    answer = f"Words.\n```json\n1\n```\n{words}\n```json\n{text}\n```\n"
    assert json_of(answer) == document


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("no block", None),
        ("```python\na\n```", "a\n"),
        ("```py\na\n```\ntext\n```\nb\n```", "a\n"),
        ("```\na\n```\n```text\nb\n```", "a\n"),
        ("```text\nb\n```", None),
        ("  ```python title=x\n  a\n  ```", "  a\n"),
        ("````python\n```\nb\n````", "```\nb\n"),
        ("```python\na", "a"),
        ("use ```x``` here", None),
    ],
)
def test_the_last_block_in_a_language(text, expected):
    assert last_block(text, ("python", "py")) == expected


def test_no_json_is_not_null():
    assert json_of("null") is None
    assert json_of("nul") is NO_JSON
