"""Mixes: several sources of rows in one corpus, each a category, with a share or a limit."""

import json
from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from profuser.config import identity
from profuser.corpus.mix import parts_line
from profuser.corpus.preview import preview
from profuser.corpus.stage import write_corpus
from profuser.errors import UserError
from profuser.recipe.models import CorpusConfig
from profuser.recipe.preparing import PartConfig
from tests.corpus.test_stage import artifacts, write, written

DATA = Path(__file__).parents[3] / "shared" / "data"


def talk(n):
    return {"messages": [{"role": "user", "content": f"Talk {n}"}, {"role": "assistant", "content": f"t{n}"}]}


def mixed(folder, parts, seed=0, **settings):
    """Returns counts, and the rows of the three artifacts of a mix."""
    config = CorpusConfig(parts=parts, **{"heldout_rows": 0, **settings})
    made = artifacts(folder)
    counts = write_corpus(config, seed, made, {})
    return counts, [[row for table in artifact.tables() for row in table.to_pylist()] for artifact in made]


@pytest.fixture
def parts(tmp_path):
    """A part of each kind: known shape, fields by name, conversations; none of one file could be read as another."""
    alpaca = [{"instruction": f"Do {n}", "output": f"d{n}", "skill": "s" if n % 2 else None} for n in range(40)]
    own = [{"ask": {"text": f"Ask {n}"}, "gold": f"g{n}"} for n in range(30)]
    return [
        {"name": "tasks", "path": write(tmp_path / "tasks.jsonl", alpaca), "category_field": "skill"},
        {
            "name": "asked",
            "path": write(tmp_path / "asked.jsonl", own),
            "fields": {"prompt": "ask.text", "response": "gold"},
        },
        {"name": "talks", "path": write(tmp_path / "talks.jsonl", [talk(n) for n in range(20)]), "turns": "all"},
    ]


def test_parts_of_different_shapes_are_one_corpus_and_name_their_rows(tmp_path, parts):
    counts, (train, held, bad) = mixed(tmp_path / "out", parts, heldout_rows=9)
    assert (len(train), len(held), bad) == (81, 9, [])
    assert Counter(row["category"] for row in train + held) == {"s": 20, "tasks": 20, "asked": 30, "talks": 20}
    assert counts[0] == {
        "rows": 81,
        "quarantined": 0,
        "parts/tasks/rows": 40,
        "parts/asked/rows": 30,
        "parts/talks/rows": 20,
    }


def test_a_share_and_a_limit_leave_rows_out_and_count_them(tmp_path, parts):
    limited = [parts[0] | {"share": 0.25}, parts[1] | {"max_rows": 12}, parts[2] | {"max_rows": 500}]
    counts, (train, _, _) = mixed(tmp_path / "out", limited)
    assert len(train) == 10 + 12 + 20
    line = "parts: tasks 10 rows (30 left out by its share or max_rows), "
    line += "asked 12 rows (18 left out by its share or max_rows), talks 20 rows"
    assert parts_line(counts[0]) == line


def test_the_drawn_rows_depend_on_the_seed_and_not_on_the_order_of_the_file(tmp_path, parts):
    def drawn(name, part, seed=0):
        _, (train, _, _) = mixed(tmp_path / name, [part | {"max_rows": 12}], seed)
        return {row["response"] for row in train}

    file = Path(parts[1]["path"])
    first = drawn("a", parts[1])
    assert drawn("b", parts[1], seed=1) != first
    file.write_text("".join(sorted(file.read_text().splitlines(keepends=True), key=lambda line: line[::-1])))
    assert drawn("c", parts[1]) == first
    assert len({int(response[1:]) // 10 for response in first}) == 3


def test_a_prompt_of_two_parts_is_on_one_side_whatever_their_turns(tmp_path):
    alone = [{"instruction": f"Talk {n}", "output": f"other {n}"} for n in range(30)]
    more = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "b"}]
    two = [{"messages": talk(n)["messages"] + more} for n in range(30)]
    parts = [
        {"name": "alone", "path": write(tmp_path / "a.jsonl", alone)},
        {"name": "talks", "path": write(tmp_path / "b.jsonl", two), "turns": "all"},
    ]
    _, (train, held, _) = mixed(tmp_path / "out", parts, heldout_rows=30)
    sides = [{row["messages"][0]["content"] for row in side} for side in (train, held)]
    assert (len(train), len(held)) == (60, 30)
    assert sides[0].isdisjoint(sides[1])


def test_two_shapes_under_one_glob_are_two_parts(tmp_path):
    write(tmp_path / "a.jsonl", [{"instruction": f"Do {n}", "output": f"d{n}"} for n in range(5)])
    write(tmp_path / "b.jsonl", [{"bad": 1}, *(talk(n) for n in range(7))])
    write(tmp_path / "c.jsonl", [{"instruction": f"Do {n}", "output": f"d{n}"} for n in range(5, 8)])
    counts, (train, _, bad) = written(tmp_path / "out", str(tmp_path / "*.jsonl"), heldout_rows=0)
    assert Counter(row["category"] for row in train) == {"alpaca": 8, "messages": 7}
    assert [(row["line"], row["reason"].partition(" (")[0]) for row in bad] == [(1, "no field 'instruction'")]
    assert parts_line(counts[0]) == "parts: alpaca 8 rows, messages 7 rows"


def test_a_file_that_fits_the_shape_of_the_one_before_keeps_it(tmp_path):
    """With `messages` first in the order of shapes, the second file would otherwise lose its instruction."""
    write(tmp_path / "a.jsonl", [{"instruction": "q", "output": "a"}])
    write(tmp_path / "b.jsonl", [{"instruction": "r", "output": "b", "messages": talk(0)["messages"]}])
    _, (train, _, _) = written(tmp_path / "out", str(tmp_path / "*.jsonl"), heldout_rows=0)
    assert [(row["response"], row["category"]) for row in train] == [("a", None), ("b", None)]


def test_a_format_that_the_recipe_names_holds_for_every_file(tmp_path):
    write(tmp_path / "a.jsonl", [{"instruction": "q", "output": "a"}])
    write(tmp_path / "b.jsonl", [talk(0)])
    with pytest.raises(UserError, match=r"1 of 2 rows .* line 1: no field 'instruction'"):
        written(tmp_path / "o", str(tmp_path / "*.jsonl"), format="alpaca", heldout_rows=0, max_quarantined_fraction=0)


def test_a_part_whose_rows_are_refused_is_named(tmp_path, parts):
    broken = {"name": "broken", "path": write(tmp_path / "broken.jsonl", [{"bad": 1}])}
    with pytest.raises(UserError, match=r"corpus .*broken.jsonl: no usable row: 1 read, 1 refused"):
        mixed(tmp_path / "out", [*parts, broken])
    misspelt = parts[0] | {"category_field": "skil"}
    with pytest.raises(UserError, match=r"corpus.parts.tasks.category_field: no record of .* has a field 'skil'"):
        mixed(tmp_path / "out", [misspelt])


def test_a_separate_heldout_corpus_has_its_own_shape_beside_parts(tmp_path, parts):
    own = write(tmp_path / "own.jsonl", [{"frage": "Ask 3", "a": "x"}, {"frage": "new", "a": "y"}])
    _, (train, held, bad) = mixed(
        tmp_path / "out", parts, heldout=own, fields={"prompt": "frage", "response": "a"}, heldout_rows=5
    )
    assert (len(train), [row["response"] for row in held]) == (90, ["y"])
    assert [(row["line"], row["reason"]) for row in bad] == [(1, "prompt of a held-out row is also in the corpus")]


A = {"name": "a", "path": "x"}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "corpus.path: is required, or corpus.parts"),
        (
            {"parts": [A], "path": "x"},
            "corpus.path does not apply to corpus.parts; set it in each part, and leave it out here",
        ),
        ({"parts": [A], "turns": "all"}, "corpus.turns does not apply to corpus.parts"),
        ({"parts": [A], "max_rows": 3}, "corpus.max_rows does not apply to corpus.parts"),
        ({"parts": [A, A]}, "corpus.parts: the name 'a' is used twice"),
        (
            {"parts": [{**A, "share": 0.5, "max_rows": 3}]},
            "corpus.parts.a.share and corpus.parts.a.max_rows both limit",
        ),
        (
            {"parts": [{**A, "format": "qa", "fields": {"prompt": "x", "response": "y"}}]},
            "corpus.parts.a.format and corpus.parts.a.fields both say",
        ),
        ({"parts": [{**A, "share": 0}]}, "greater than 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings, expected):
    with pytest.raises(ValidationError, match=expected):
        CorpusConfig(**settings)


def test_the_preview_of_a_part_is_of_its_own_shape(parts):
    config = CorpusConfig(parts=parts)
    part = config.parts[1]
    assert preview(config, part.path, part=part).line == "fields: 30 rows read, 30 usable"


def test_a_share_gives_at_least_one_row_and_never_more_than_there_are():
    part = PartConfig(name="a", path="x", share=0.001)
    assert [part.num_used(n) for n in (1, 100, 5000)] == [1, 1, 5]
    assert PartConfig(name="a", path="x", max_rows=7).num_used(5) == 5
    assert "parts" not in identity(CorpusConfig(path="x"))


@pytest.mark.skipif(not DATA.is_dir(), reason="the shared data are not available")
def test_a_mix_of_three_public_corpora(tmp_path):
    parts = [
        {"name": "alpaca", "path": f"{DATA}/alpaca_5000.json", "max_rows": 2000},
        {"name": "gsm8k", "path": f"{DATA}/gsm8k_train.jsonl", "share": 0.2},
        {"name": "code", "path": f"{DATA}/code_alpaca_2k.json"},
    ]
    counts, (train, held, bad) = mixed(tmp_path / "out", parts, heldout_rows=300)
    categories = Counter(row["category"] for row in train + held)
    assert categories == {name: counts[0][f"parts/{name}/rows"] for name in ("alpaca", "gsm8k", "code")}
    assert (categories["alpaca"], categories["gsm8k"]) == (2000, round(0.2 * 7473))
    assert categories["code"] + len(bad) >= 2017
    # Each part has its share of the held-out rows.
    own = Counter(row["category"] for row in held)
    assert all(abs(own[name] / 300 - num / len(train + held)) < 0.08 for name, num in categories.items())
    assert json.loads(json.dumps(counts[0])) == counts[0]
