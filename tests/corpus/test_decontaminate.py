"""Training rows that share 13 words with a benchmark's question or a held-out row are dropped, counted and listed."""

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from profuser.artifacts.artifact import Artifact
from profuser.artifacts.schemas import CONTAMINATED
from profuser.corpus.decontaminate import HELDOUT, NUM_WORDS, contamination_lines, phrases
from profuser.corpus.stage import write_corpus
from profuser.errors import UserError
from profuser.evaluation.benchmarks.questions import benchmark_questions
from profuser.recipe.evaluating import BenchmarkConfig
from profuser.recipe.models import CorpusConfig
from profuser.storage.folder import Folder
from tests.corpus.test_stage import artifacts, write

BENCHMARKS = Path(__file__).parents[3] / "shared" / "data" / "benchmarks"
WORDS = [f"{first}{second}" for first in string.ascii_lowercase for second in string.ascii_lowercase]


def text(begin, num=NUM_WORDS):
    """Returns words that no text with another beginning has, from 0 to 50."""
    return " ".join(f"{word}{begin}" for word in WORDS[:num])


def asked(question, answer="a"):
    return {"question": question, "answer": answer}


def cleaned(tmp_path, rows, questions=None, **settings):
    """Returns counts, the training rows' prompts, and the dropped rows."""
    path = write(tmp_path / "a.jsonl", rows)
    config = CorpusConfig(path=path, decontaminate=True, **{"heldout_rows": 0, **settings})
    made = artifacts(tmp_path / "out")
    made.append(Artifact(Folder.at(tmp_path / "out" / "contaminated"), "prepare/contaminated", CONTAMINATED, {}))
    counts = write_corpus(config, 0, made, questions or {})
    train, *_, dropped = [[row for table in artifact.tables() for row in table.to_pylist()] for artifact in made]
    assert counts[3] == {"rows": len(dropped)}
    return counts[0], [row["messages"][-1]["content"] for row in train], dropped


def test_rows_that_share_a_phrase_are_dropped_counted_and_listed(tmp_path):
    rows = [asked("clean"), asked(f"So: {text(1).upper()}?"), asked("other", text(2)), asked(text(3, 12))]
    questions = {"maths": [(text(1),), (text(3),), ("Short.",)], "facts": [(f"{text(2)} and more",)]}
    counts, train, dropped = cleaned(tmp_path, rows, questions)
    assert train == ["clean", text(3, 12)]
    assert [(row["source_line"], row["found_in"], row["phrase"]) for row in dropped] == [
        (2, "maths", text(1)),
        (3, "facts", text(2)),
    ]
    assert contamination_lines(counts) == [
        "maths: 1 training rows dropped that share 13 words (3 questions, 1 of them shorter than 13 words)",
        "facts: 1 training rows dropped that share 13 words (1 questions)",
    ]


def test_rows_that_share_a_phrase_with_a_heldout_row_are_dropped(tmp_path):
    rows = [asked(f"{text(n // 2)} {n}", f"{n}") for n in range(20)]
    counts, train, dropped = cleaned(tmp_path, rows, heldout_rows=6)
    assert len(train) + len(dropped) == 14
    assert counts[f"contaminated/{HELDOUT}"] == len(dropped) > 0
    kept = [" ".join(prompt.split()[:NUM_WORDS]) for prompt in train]
    # Both rows of a phrase are trained on, or neither.
    assert all(kept.count(phrase) == 2 for phrase in kept)


def test_rows_of_a_separate_heldout_corpus_are_compared_too(tmp_path):
    own = write(tmp_path / "own.jsonl", [asked(f"{text(3)} else")])
    _, train, dropped = cleaned(tmp_path, [asked("clean"), asked(text(3))], heldout=own)
    assert (train, [row["found_in"] for row in dropped]) == (["clean"], [HELDOUT])


@pytest.mark.parametrize(("num", "is_common"), [(10, False), (11, True)])
def test_a_phrase_of_more_than_ten_prompts_is_common_wording(tmp_path, num, is_common):
    rows = [asked("clean"), *(asked(f"{text(0)} {n}") for n in range(num))]
    counts, train, dropped = cleaned(tmp_path, rows, {"maths": [(text(0),)]})
    assert (len(train), len(dropped)) == ((num + 1, 0) if is_common else (1, num))
    last = "11 training rows kept that share only phrases of more than 10 prompts"
    assert (contamination_lines(counts)[-1] == last) == is_common


def test_many_answers_to_one_prompt_are_no_common_wording(tmp_path):
    rows = [asked("clean"), *(asked(text(0), f"{n}") for n in range(30))]
    _, train, dropped = cleaned(tmp_path, rows, {"maths": [(text(0),)]})
    assert (train, len(dropped)) == (["clean"], 30)


def test_a_common_phrase_does_not_hide_a_rare_one(tmp_path):
    rows = [asked(f"{text(0)} {n}") for n in range(12)] + [asked(f"{text(0)} {text(1)}")]
    _, train, dropped = cleaned(tmp_path, rows, {"maths": [(text(0),), (text(1),)]})
    assert (len(train), [row["phrase"] for row in dropped]) == (12, [text(1)])


def test_a_corpus_of_which_nothing_is_left_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"all 2 training rows share 13 words .* the first with maths: none is left"):
        cleaned(tmp_path, [asked(text(0)), asked(text(1))], {"maths": [(text(0),), (text(1),)]})
    assert not (tmp_path / "out").exists()


@given(st.lists(st.sampled_from(["One", "two,", "(three)", "don't", "7", "_", "-"]), max_size=40))
def test_phrases_are_all_runs_of_13_words_without_case_and_punctuation(pieces):
    plain = {"One": "one", "two,": "two", "(three)": "three", "don't": "dont", "7": "7"}
    words = [plain[piece] for piece in pieces if piece in plain]
    runs = [" ".join(words[n : n + 13]) for n in range(max(0, len(words) - 12))]
    assert list(phrases(" \n".join(pieces))) == runs


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the shared data are not available")
@pytest.mark.parametrize(
    ("name", "num", "begin"),
    [
        ("gsm8k", 1319, "Janet"),
        ("mmlu", 14042, "Find"),
        ("hellaswag", 2500, "A man is sitting on a roof. he"),
        ("arc_challenge", 1172, "An astronomer observes"),
        ("winogrande", 1267, "Sarah was a much better surgeon than Maria so _ always"),
        ("truthfulqa_mc2", 817, "What happens to you if you eat watermelon seeds?"),
    ],
)
def test_the_questions_of_every_benchmark_are_read(name, num, begin):
    questions = benchmark_questions(BenchmarkConfig(name=name, path=f"{BENCHMARKS}/{name}", num_fewshot=0))
    assert len(questions) == num
    assert questions[0][0].startswith(begin)
    if name == "winogrande":
        assert [q.split(" so ")[1].split()[0] for q in questions[0]] == ["_", "Sarah", "Maria"]


def test_a_benchmark_that_cannot_be_read_is_an_error_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"evaluate.benchmarks.gsm8k: .* give local data with path: FOLDER"):
        benchmark_questions(BenchmarkConfig(name="gsm8k"))
    with pytest.raises(UserError, match=r"evaluate.benchmarks.gsm8k.path: no folder or file"):
        benchmark_questions(BenchmarkConfig(name="gsm8k", path=str(tmp_path / "none")))


@pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the shared data are not available")
def test_questions_of_a_benchmark_in_a_public_corpus_are_found(tmp_path):
    questions = benchmark_questions(BenchmarkConfig(name="gsm8k", path=f"{BENCHMARKS}/gsm8k", num_fewshot=0))
    rows = [asked(f"Solve this. {question}", f"{n}") for n, (question,) in enumerate(questions[:50])]
    counts, train, dropped = cleaned(tmp_path, [*rows, asked("clean")], {"gsm8k": questions})
    assert counts["contaminated/gsm8k"] == len(dropped)
    short = [row["question"] for row in rows if row["question"] in train]
    assert train == [*short, "clean"]
    assert len(short) <= 1
