"""The held-out split keeps rows of one prompt together, and the preview says what `prepare` would say."""

import pytest

from profuser.corpus import choose_heldout
from profuser.corpus.preview import PREVIEW_ROWS, preview
from profuser.errors import UserError
from profuser.recipe.models import CorpusConfig
from tests.corpus.test_stage import records, write, written

IDS = [f"{n * 7919:016x}" for n in range(40)]


@pytest.mark.parametrize("num", [0, 1, 17])
def test_the_choice_is_as_before_where_no_prompt_repeats(num):
    assert choose_heldout(IDS, num, 3, range(40)) == choose_heldout(IDS, num, 3)


def split(tmp_path, rows, **settings):
    path = write(tmp_path / "a.jsonl", rows)
    counts, (train, held, _) = written(tmp_path / "out", path, **settings)
    sides = [{row["messages"][0]["content"] for row in side} for side in (train, held)]
    assert sides[0].isdisjoint(sides[1])
    return counts, held


def test_rows_of_one_prompt_are_on_one_side(tmp_path):
    rows = [{"question": f"q{n % 10}", "answer": f"{n}"} for n in range(40)]
    counts, held = split(tmp_path, rows, heldout_rows=10)
    assert [count["rows"] for count in counts] == [32, 8, 0]
    assert len({row["messages"][0]["content"] for row in held}) == 2


def test_rows_of_one_conversation_are_on_one_side(tmp_path):
    def talk(n):
        turns = [(f"q{n}", f"a{n}"), (f"more {n}?", f"b{n}")]
        return {
            "messages": [
                {"role": r, "content": t} for qa in turns for r, t in zip(("user", "assistant"), qa, strict=True)
            ]
        }

    counts, _ = split(tmp_path, [talk(n) for n in range(10)], turns="all", heldout_rows=6)
    assert [count["rows"] for count in counts] == [14, 6, 0]


def test_prompts_with_too_many_rows_to_hold_out_are_an_error():
    with pytest.raises(UserError, match=r"every prompt has at least 4 rows, .*more than corpus.heldout_rows=3"):
        choose_heldout(IDS, 3, 0, [n // 4 for n in range(40)])


def test_fields_that_are_not_used_are_counted_in_the_artifact(tmp_path):
    path = write(tmp_path / "a.jsonl", [*records(range(5), choices=["x"]), *records(range(5, 9))])
    counts, _ = written(tmp_path / "out", path, heldout_rows=1)
    assert counts[0] == {"rows": 8, "quarantined": 0, "unused_fields/choices": 5}


def seen(tmp_path, rows, heldout_rows=0, **settings):
    path = write(tmp_path / "a.jsonl", rows)
    return preview(CorpusConfig(path=path, heldout_rows=heldout_rows, **settings), path).line


def test_the_preview_names_shape_rows_refusals_and_fields_that_are_not_used(tmp_path):
    rows = [*records(range(30), tools=["x"]), {"question": "q"}, *records(range(40, 50))]
    assert seen(tmp_path, rows) == (
        "qa: 41 rows read, 40 usable, 1 refused; the first: line 31: no question with an answer (fields: question); "
        "fields not used: tools (30 rows)"
    )


def test_the_preview_reads_only_the_first_rows_and_says_so(tmp_path):
    line = seen(tmp_path, [*records(range(PREVIEW_ROWS)), *({"bad": n} for n in range(PREVIEW_ROWS))])
    assert line == f"qa: the first {PREVIEW_ROWS:,} rows read, {PREVIEW_ROWS:,} usable"


def test_the_preview_counts_turns_that_are_not_used(tmp_path):
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    assert seen(tmp_path, [{"messages": turns}]) == "messages: 1 rows read, 1 usable; 1 turns not used"


@pytest.mark.parametrize(
    ("rows", "settings", "expected"),
    [
        ([{"bad": 1}], {}, "no usable row: 1 read, 1 refused"),
        ([*records(range(9)), {"bad": 1}], {}, "1 of 10 rows .* were refused"),
        (records(range(9)), {"heldout_rows": 9}, "none is left to train on"),
        (records(range(9)), {"category_field": "skill"}, "no record of .* has a field 'skill'"),
    ],
)
def test_what_prepare_would_refuse_the_preview_refuses(tmp_path, rows, settings, expected):
    with pytest.raises(UserError, match=expected):
        seen(tmp_path, rows, **settings)


def test_a_heldout_corpus_may_be_small_and_lack_optional_fields(tmp_path):
    path = write(tmp_path / "a.jsonl", records(range(3)))
    config = CorpusConfig(path=path, heldout=path, category_field="skill")
    assert preview(config, path, is_heldout=True).line == "qa: 3 rows read, 3 usable"
