"""The verifiers by library and by sandbox through prepare, collect, rewards and select, on the laboratory's models."""

import gzip
import json

import numpy as np
import pytest

from profuser.errors import UserError
from profuser.models.lab_paths import assets_path
from profuser.recipe.loading import parse_recipe
from profuser.rewards.sandbox import missing_isolation
from profuser.run.fusion_run import FusionRun
from ray_jobs.cli.dry_run import check_recipe
from tests.ray.stages import make_run, select_here, whole

REWARDS = [
    {"kind": "last_number", "name": "number"},
    {"kind": "math_verify", "name": "math"},
    {"kind": "code_tests", "name": "code", "weight": 0, "allow_unsandboxed": True},
    {"kind": "json_schema", "name": "form", "weight": 0, "json_schema": {"type": "integer"}},
    {"kind": "json_schema", "name": "own-form", "weight": 0},
]
FIELDS = {"prompt": "instruction", "response": "answer", "category": "skill", "tests": "tests", "json_schema": "form"}


def write(file):
    """Writes rows of which every second has tests, every third a schema, and half a number as ground truth."""
    with gzip.open(assets_path() / "corpus" / "train.jsonl.gz", "rt") as stream:
        records = [json.loads(next(stream)) for _ in range(24)]
    for number, record in enumerate(records):
        record["tests"] = ["assert 1 == 1", "assert 1 == 2"] if number % 2 else None
        record["form"] = {"type": "string"} if number % 3 else None
    file.write_text("".join(f"{json.dumps(record)}\n" for record in records))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verified")
    write(folder / "data.jsonl")
    corpus = {"path": str(folder / "data.jsonl"), "fields": FIELDS, "heldout_rows": 4, "rows_per_shard": 8}
    settings = make_run(folder / "runs", folder / "data.jsonl").recipe.model_dump(exclude_unset=True)
    run = FusionRun(parse_recipe(settings | {"corpus": corpus, "rewards": REWARDS}, "the test"))
    select_here(run)
    return run


def scores(run, name):
    (reward,) = [each for each in run.recipe.rewards if each.name == name]
    artifact = run.rewards(reward)
    return {row["row_id"]: np.array(row["scores"]) for row in whole(artifact)}, artifact.manifest().counts


def test_math_verify_agrees_with_the_last_number_where_there_is_one(run):
    (number, _), (math, counts) = scores(run, "number"), scores(run, "math")
    rows = {row["row_id"]: row for row in whole(run.corpus())}
    assert {row["response"].isdecimal() for row in rows.values()} == {True, False}
    for row_id, row in rows.items():
        expected = number[row_id] if row["response"].isdecimal() else [np.nan] * 2
        np.testing.assert_array_equal(math[row_id], expected)
    words = sum(not row["response"].isdecimal() for row in rows.values())
    assert counts["refused"] == 2 * words
    judged = np.concatenate([math[row_id] for row_id, row in rows.items() if row["response"].isdecimal()])
    assert counts.get("wrong", 0) + counts.get("without_expression", 0) == (judged == 0).sum() > 0


def test_only_rows_with_tests_or_a_schema_are_judged_and_failures_are_counted_by_kind(run):
    rows = {row["row_id"]: row for row in whole(run.corpus())}
    for name, column in (("code", "tests"), ("own-form", "json_schema")):
        found, counts = scores(run, name)
        assert {row_id for row_id, own in found.items() if not np.isnan(own).any()} == {
            row_id for row_id, row in rows.items() if row[column] is not None
        }
        assert counts["refused"] == 2 * sum(row[column] is None for row in rows.values())
        reasons = {
            key: value
            for key, value in counts.items()
            if key not in ("rows", "answers", "answers_not_judged", "refused")
        }
        assert sum(reasons.values()) == counts["answers"]
    # The specialists answer with a number (`50.` is Python, and passes one of the two tests), or with words.
    found, counts = scores(run, "code")
    values = np.concatenate(list(found.values()))
    assert counts["without_code"] == (values == 0).sum() > 0
    assert counts["wrong"] == (values == 0.5).sum() > 0
    assert scores(run, "form")[1]["without_json"] == scores(run, "form")[1]["answers"] == 2 * len(rows)


def test_the_held_out_rows_carry_their_tests_too(run):
    assert set(whole(run.heldout())[0]) >= {"tests", "json_schema"}


def test_a_dry_run_names_what_the_machine_has(run, capsys):
    check_recipe(run.recipe, "the test")
    out = capsys.readouterr().out
    assert ("rewards.code: isolation is available" if missing_isolation() is None else "cannot isolate code") in out


@pytest.mark.parametrize(
    ("reward", "expected"),
    [
        (
            {"kind": "code_tests", "name": "code"},
            "rewards.code: code_tests needs the tests of each row.*set corpus.fields.tests",
        ),
        (
            {"kind": "json_schema", "name": "f"},
            "rewards.f: json_schema needs the json_schema of each row.*fields.json_schema",
        ),
    ],
)
def test_a_verifier_whose_rows_lack_what_it_needs_is_refused(reward, expected):
    tree = {
        "name": "small",
        "corpus": {"path": "x", "fields": {"prompt": "a", "response": "b"}},
        "sources": [{"name": "a", "model": "m"}],
        "target": {"model": "m"},
        "rewards": [reward],
    }
    with pytest.raises(UserError, match=expected):
        parse_recipe(tree, "small")


def test_a_schema_in_a_file_decides_the_scores_and_not_its_path(run, tmp_path):
    marks = []
    for name, schema in (
        ("a.json", {"type": "integer"}),
        ("b.json", {"type": "integer"}),
        ("a.json", {"type": "null"}),
    ):
        (tmp_path / name).write_text(json.dumps(schema))
        reward = {"kind": "json_schema", "name": "form", "json_schema": str(tmp_path / name)}
        recipe = run.recipe.model_dump(mode="json", exclude_unset=True) | {"rewards": [reward]}
        marks.append(FusionRun(parse_recipe(recipe, "file")).artifacts("rewards")[0].fingerprint)
    assert marks[0] == marks[1] != marks[2]
