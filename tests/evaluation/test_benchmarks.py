"""The six benchmarks: scores equal the harness's own on local data, and faulty data or recipes are reported first."""

import json
import math
import re
import shutil
from functools import cache
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from lm_eval.api.model import LM

from profuser.config import identity
from profuser.errors import EngineError, UserError
from profuser.evaluation.benchmarks.data import read_pack
from profuser.evaluation.benchmarks.questions import benchmark_questions
from profuser.evaluation.benchmarks.results import benchmark_score, metric_means, standard_error
from profuser.recipe.benchmarks import LEADERBOARD, PRESETS
from profuser.recipe.engine import EngineConfig
from profuser.recipe.evaluating import BenchmarkConfig
from profuser.recipe.loading import parse_recipe
from profuser.recipe.models import EvaluateConfig
from profuser.recipe.template import JinjaTemplate, OwnTemplate
from profuser.run.fusion_run import FusionRun
from profuser.run.results import read_benchmarks
from profuser.run.stages import plan_run
from ray_jobs.cli.plan import UNKNOWN_SIZE
from tests import tiny
from tests.evaluation.packs import SPLITS, SUBJECTS, write_pack

CONTEXT, NUM_ITEMS = 4096, 6
SHARED = Path(__file__).parents[3] / "shared" / "data" / "benchmarks"
TRANSFORMERS = EngineConfig(kind="transformers")


@pytest.fixture(scope="module", autouse=True)
def single_thread():
    """Tiny models lose time to threads, and the harness to recording information about the machine."""
    import lm_eval.evaluator

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lm_eval.evaluator, "add_env_info", lambda results: None)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.llama(tmp_path_factory.mktemp("model"), max_position_embeddings=CONTEXT, num_hidden_layers=1)


@pytest.fixture(scope="module")
def lm(model):
    from profuser.evaluation.benchmarks.models import load_lm

    return load_lm(model, None, TRANSFORMERS, OwnTemplate())


@pytest.fixture(scope="module")
def packs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packs")
    for name in SPLITS:
        write_pack(folder / name, name, NUM_ITEMS)
    return folder


class Calculator(LM):
    """Answers questions like `What is 3 x 4?`: some right and in the expected form, some in words, some wrong."""

    max_length, max_gen_toks, tokenizer = CONTEXT, 256, tiny.byte_level_tokenizer()

    def generate_until(self, requests):
        answers = []
        for request in requests:
            one, other = map(int, re.findall(r"What is (\d+) x (\d+)", request.args[0])[-1])
            form = ("It is {0}.\n#### {0:,}", "That would be {0}", "#### {0}1")[one % 3]
            answers.append(form.format(one * other))
        return answers

    def tok_encode(self, text):
        return text.split()

    def loglikelihood(self, requests):
        raise NotImplementedError

    loglikelihood_rolling = loglikelihood


class Babbler(Calculator):
    """Answers every question with the same number."""

    def generate_until(self, requests):
        return ["#### 42"] * len(requests)


def measured(lm, packs, name, **settings):
    from profuser.evaluation.benchmarks.runs import run_benchmark
    from profuser.evaluation.benchmarks.tasks import load_benchmark

    config = BenchmarkConfig(name=name, path=str(packs / name), **settings)
    return run_benchmark(lm, load_benchmark(config, read_pack(name, config.path, config.shots)))


@pytest.fixture(scope="module")
def table(lm, packs):
    """Returns the items of a benchmark by its name; each is run once."""

    @cache
    def table(name):
        return measured(Calculator() if name == "gsm8k" else lm, packs, name)

    return table


def harness(model, packs, name, **options):
    """Returns the harness's score and standard error when called as its users call it, with data files that it reads itself."""
    import lm_eval
    from lm_eval.api.metrics import aggregate_subtask_metrics, pooled_sample_stderr
    from lm_eval.tasks import TaskManager

    tasks = []
    for task, files in data_files(packs, name).items():
        tasks.append(
            {"task": task, "dataset_path": "json", "dataset_name": None, "dataset_kwargs": {"data_files": files}}
        )
    # All of the harness's tasks would take a minute to index.
    folder = f"{lm_eval.__path__[0]}/tasks/{PRESETS[name].tasks or name}"
    found = lm_eval.simple_evaluate(
        model,
        tasks=[{"group": "pack", "task": tasks}],
        num_fewshot=PRESETS[name].num_fewshot,
        task_manager=TaskManager(include_defaults=False, include_path=folder),
        **options,
    )
    metric, answers = PRESETS[name].metric, PRESETS[name].filter
    results = [found["results"][task["task"]] for task in tasks]
    sizes = [found["n-samples"][task["task"]]["effective"] for task in tasks]
    scores, errors = ([result[f"{key},{answers}"] for result in results] for key in (metric, f"{metric}_stderr"))
    return aggregate_subtask_metrics(scores, sizes), pooled_sample_stderr(errors, sizes)


def data_files(packs, name):
    """Returns the files by split of each of a benchmark's tasks; the harness needs one per MMLU subject."""
    files = {split: str(packs / name / f"{split}.jsonl") for split in SPLITS[name] if split}
    if name != "mmlu":
        return {name: files}
    out = {f"mmlu_{subject}": {} for subject in SUBJECTS}
    for split, file in files.items():
        lines = Path(file).read_text().splitlines(keepends=True)
        for subject in SUBJECTS:
            own = packs / f"{subject}-{split}.jsonl"
            own.write_text("".join(line for line in lines if json.loads(line)["subject"] == subject))
            out[f"mmlu_{subject}"][split] = str(own)
    return out


@pytest.mark.parametrize("name", PRESETS)
def test_scores_equal_those_of_the_harness_called_directly(lm, packs, table, name):
    items, (score, error) = table(name), harness(Calculator() if name == "gsm8k" else lm, packs, name)
    assert benchmark_score(items) == pytest.approx(score, abs=1e-12)
    assert standard_error(items) == pytest.approx(error, abs=1e-12)
    headline = {"truthfulqa_mc2": "mc2"}.get(name, PRESETS[name].metric)
    assert metric_means(items)[headline] == benchmark_score(items)
    assert not any(items["truncated"].to_pylist())
    assert len(set(items["item_id"].to_pylist())) == items.num_rows == NUM_ITEMS


def test_the_recipes_chat_template_is_used_and_scores_equal_the_harnesss(model, packs):
    from profuser.evaluation.benchmarks.models import load_lm

    template = JinjaTemplate(
        kind="jinja", text="{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}[assistant] "
    )
    lm = load_lm(model, None, TRANSFORMERS, template)
    prompts = []
    rate = lm.loglikelihood
    lm.loglikelihood = lambda requests: prompts.extend(r.args[0] for r in requests) or rate(requests)
    table = measured(lm, packs, "mmlu", apply_chat_template=True)
    assert all(prompt.count("[assistant]") == 6 and prompt.endswith("[assistant] ") for prompt in prompts)
    score, error = harness(lm, packs, "mmlu", apply_chat_template=True)
    assert (benchmark_score(table), standard_error(table)) == pytest.approx((score, error), abs=1e-12)


def test_a_prediction_equals_the_target_exactly_where_the_score_is_right(table):
    for name, right in (
        ("mmlu", "acc"),
        ("winogrande", "acc"),
        ("arc_challenge", "acc_norm"),
        ("hellaswag", "acc_norm"),
    ):
        for row in table(name).to_pylist():
            assert (row["prediction"] == row["target"]) == dict(row["metrics"])[right] == row["score"]
    for row in table("gsm8k").to_pylist():
        number = row["target"].split("#### ")[1]
        assert (row["prediction"] == number) == row["score"]
        assert "exact_match_flexible_extract" in dict(row["metrics"])
    masses = table("truthfulqa_mc2")["score"].to_pylist()
    assert all(0 <= mass < 1 + 1e-9 for mass in masses)
    assert any(0 < mass < 1 for mass in masses)


def test_mc2_is_defined_where_all_probabilities_underflow(lm, packs, table, monkeypatch):
    rate = lm.loglikelihood
    monkeypatch.setattr(
        lm, "loglikelihood", lambda requests: [(nats - 2000, greedy) for nats, greedy in rate(requests)]
    )
    found = measured(lm, packs, "truthfulqa_mc2")
    wanted = table("truthfulqa_mc2")
    assert found["score"].to_pylist() == pytest.approx(wanted["score"].to_pylist())
    assert metric_means(found) == pytest.approx(metric_means(wanted))


@pytest.mark.parametrize("alone", [True, False], ids=["one split", "all splits"])
@pytest.mark.parametrize("name", PRESETS)
def test_without_worked_examples_only_the_evaluated_split_is_needed(lm, packs, tmp_path, name, alone):
    shutil.copytree(packs / name, tmp_path / name)
    evaluated, *others = (split for split in SPLITS[name] if split)
    for split in others if alone else ():
        (tmp_path / name / f"{split}.jsonl").unlink()
    found = measured(Calculator() if name == "gsm8k" else lm, tmp_path, name, num_fewshot=0)
    assert found.num_rows == len((tmp_path / name / f"{evaluated}.jsonl").read_text().splitlines())


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the benchmarks' released rows")
@pytest.mark.parametrize("name", PRESETS)
def test_released_rows_are_measured_without_worked_examples(lm, name):
    model = Babbler() if name == "gsm8k" else lm
    found = measured(model, SHARED, name, num_fewshot=0, limit=1)
    assert found.num_rows == (len(set(found["task"].to_pylist())) if name == "mmlu" else 1)
    # One question per MMLU subject has a standard error; a single item has none.
    assert math.isfinite(standard_error(found)) == (name == "mmlu")


def test_the_error_of_one_item_per_task_is_that_of_all_items_together():
    table = pa.table({"task": list("abcd"), "score": [0.0, 1.0, 1.0, 1.0]})
    assert standard_error(table) == pytest.approx(0.25)
    assert math.isnan(standard_error(table.slice(0, 1)))


@pytest.mark.parametrize("batch_size", [None, 3])
def test_one_loaded_model_takes_the_batch_size_of_each_benchmark(lm, batch_size):
    from profuser.evaluation.benchmarks.models import TRANSFORMERS_BATCH_SIZE, set_batch_size

    set_batch_size(lm, batch_size)
    assert lm.batch_size == (batch_size or TRANSFORMERS_BATCH_SIZE)
    set_batch_size(lm, None)


def test_a_limit_selects_a_subset_of_the_items(lm, packs, table):
    whole, some = table("mmlu"), measured(lm, packs, "mmlu", limit=2)
    assert some["item_id"].to_pylist() == [
        f"mmlu_{subject}/{number:06d}" for subject in SUBJECTS for number in range(2)
    ]
    assert set(some["doc_hash"].to_pylist()) < set(whole["doc_hash"].to_pylist())


def test_a_context_that_is_too_short_is_reported(model, packs):
    from profuser.evaluation.benchmarks.models import load_lm

    short = load_lm(model, None, EngineConfig(kind="transformers", max_model_len=200), OwnTemplate())
    assert all(measured(short, packs, "mmlu")["truncated"].to_pylist())
    assert not any(measured(short, packs, "winogrande", num_fewshot=0)["truncated"].to_pylist())
    with pytest.raises(EngineError, match="its context of 200 tokens has no room for the answers of gsm8k"):
        measured(short, packs, "gsm8k", num_fewshot=0)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("mmlu", {"answer": 4}, "4 is not one of its 4 choices"),
        ("mmlu", {"choices": ["a", "b"]}, "at least 4 choices"),
        ("mmlu", {"subject": "cookery"}, "'cookery' is not an MMLU subject"),
        ("hellaswag", {"label": ""}, "'' is not one of its 4 choices"),
        ("hellaswag", {"ctx_b": None}, "no 'ctx_b'; rows of hellaswag have activity_label, ctx_a"),
        ("arc_challenge", {"answerKey": "Z"}, "answerKey 'Z' is not one of"),
        ("winogrande", {"sentence": "No blank."}, "no _ to fill"),
        ("winogrande", {"answer": ""}, "expected '1' or '2'"),
        ("gsm8k", {"answer": "12"}, "does not end with ####"),
        ("truthfulqa_mc2", {"mc2_targets": {"choices": ["a"], "labels": [0]}}, "a 1 among the labels"),
    ],
)
def test_a_row_that_would_be_misread_is_rejected_with_file_and_line(tmp_path, name, change, message):
    write_pack(tmp_path, name)
    file = tmp_path / f"{SPLITS[name][0]}.jsonl"
    lines = file.read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | change)
    file.write_text("\n".join(lines))
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        read_pack(name, str(tmp_path), PRESETS[name].num_fewshot)
    assert str(raised.value).startswith(f"evaluate.benchmarks.{name}.path: ")
    assert "\n" not in str(raised.value)
    if "subject" not in change:
        assert f"{file}:2: " in str(raised.value)


def test_missing_splits_and_too_few_examples_are_rejected(tmp_path):
    write_pack(tmp_path / "few", "gsm8k", examples=3)
    write_pack(tmp_path / "whole", "gsm8k")
    file = tmp_path / "whole" / "test.jsonl"
    for path, message in (
        (tmp_path / "few", "3 rows in the split 'train', but 5 are needed"),
        (file, "is one file, but 5 worked examples are needed"),
        (tmp_path, "no file of the split 'test'"),
        (tmp_path / "none", "no folder or file"),
    ):
        with pytest.raises(UserError, match=message):
            read_pack("gsm8k", str(path), 5)
    assert read_pack("gsm8k", str(file), 0).num_items("test", None) == 6
    assert read_pack("gsm8k", str(tmp_path / "few"), 0).num_items("test", 4) == 4


def test_data_may_be_laid_out_as_on_the_hub(tmp_path):
    folder = Path(write_pack(tmp_path / "plain", "mmlu"))
    wanted = read_pack("mmlu", str(folder), 5).tables
    for split in ("test", "dev"):
        table = pa.Table.from_pylist(
            [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]
        )
        for subject in SUBJECTS:
            own = table.filter(pa.compute.field("subject") == subject)
            bare = own.drop_columns(["subject"])
            for place, rows in (
                (tmp_path / "parquet" / subject / f"{split}-00000-of-00001.parquet", own),
                (tmp_path / "folders" / subject / f"{split}.parquet", bare),
                (tmp_path / "files" / split / f"{subject}.parquet", bare),
            ):
                place.parent.mkdir(parents=True, exist_ok=True)
                pa.parquet.write_table(rows, place)
        (tmp_path / "all" / "all").mkdir(parents=True, exist_ok=True)
        pa.parquet.write_table(table, tmp_path / "all" / "all" / f"{split}-00000-of-00001.parquet")
    for place in ("parquet", "folders", "files", "all"):
        found = read_pack("mmlu", str(tmp_path / place), 5).tables
        assert {task: {split: t.to_pylist() for split, t in splits.items()} for task, splits in found.items()} == {
            task: {split: t.to_pylist() for split, t in splits.items()} for task, splits in wanted.items()
        }


def evaluating(**settings):
    return EvaluateConfig.model_validate({"benchmarks": settings.pop("benchmarks"), **settings}).benchmarks


def test_a_benchmark_is_selected_by_name_and_the_leaderboard_is_all_six():
    assert [b.name for b in evaluating(benchmarks=["mmlu", {"name": "gsm8k", "limit": 5}])] == ["mmlu", "gsm8k"]
    six = evaluating(benchmarks=[{"name": LEADERBOARD, "path": "/data", "limit": 3}])
    assert [b.shots for b in six] == [5, 10, 25, 5, 5, 0]
    assert [b.path for b in six] == [f"/data/{name}" for name in PRESETS]
    assert {b.limit for b in six} == {3}
    assert evaluating(benchmarks=LEADERBOARD) == evaluating(benchmarks=list(PRESETS))
    assert EvaluateConfig().benchmarks == ()
    again = EvaluateConfig.model_validate(EvaluateConfig(benchmarks=six).model_dump(mode="json"))
    assert again.benchmarks == six


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        (["mmlu", LEADERBOARD], "the name 'mmlu' is used twice"),
        ([{"name": "mmlu", "task": "own.yaml"}], "'mmlu' is one of the six"),
        ([{"name": "own", "task": "own.yaml", "path": "data"}], "path is not for your own task"),
        ([{"name": "mmlu", "metric": "acc"}], "the metric of the six is the leaderboard's"),
        ([{"name": "mmlu", "system": "Be brief."}], "a system turn needs the model's chat template"),
        ([{"name": "mmlu", "shots": 3}], "no such setting"),
    ],
)
def test_a_wrong_benchmark_is_reported_in_one_line(make, entries, message):
    with pytest.raises(UserError, match=re.escape(message)) as raised:
        make(entries)
    assert "evaluate" in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.fixture
def make(model, tmp_path):
    def make(benchmarks, **settings):
        (tmp_path / "data.jsonl").write_text('{"question": "a", "answer": "b"}\n')
        evaluate = {"benchmarks": benchmarks} if benchmarks is not None else {}
        recipe = {
            "name": "made",
            "storage": str(tmp_path / "runs"),
            "corpus": {"path": str(tmp_path / "data.jsonl")},
            "sources": [{"name": "a", "model": model}],
            "target": {"model": model},
            "rewards": [{"kind": "exact_match", "name": "exact"}],
            "evaluate": evaluate,
        }
        return FusionRun(parse_recipe(recipe | settings, "the test"))

    return make


def test_a_run_without_the_hub_and_without_a_path_is_rejected_before_it_starts(make, monkeypatch, tmp_path):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"winogrande.*Hub is unreachable.*give local data with path: FOLDER") as raised:
        make(["winogrande"]).check_inputs()
    assert "\n" not in str(raised.value)
    make(None).check_inputs()
    (tmp_path / "cache" / "allenai___winogrande" / "winogrande_xl").mkdir(parents=True)
    make(["winogrande"]).check_inputs()


def test_settings_that_change_a_score_change_its_fingerprint(make, tmp_path):
    def fingerprint(path="here", model="target", **settings):
        run = make([{"name": "gsm8k", "path": str(tmp_path / path), **settings}])
        return run.benchmark(model, run.recipe.evaluate.benchmarks[0]).fingerprint

    write_pack(tmp_path / "here", "gsm8k")
    write_pack(tmp_path / "there", "gsm8k")
    write_pack(tmp_path / "other", "gsm8k", seed=1)
    same = [fingerprint(), fingerprint("there"), fingerprint(batch_size=4), fingerprint(num_fewshot=5)]
    assert len(set(same)) == 1
    others = [fingerprint("other"), fingerprint(num_fewshot=4), fingerprint(limit=3), fingerprint(model="fused")]
    others += [fingerprint(apply_chat_template=True)]
    assert len({same[0], *others}) == 6


def test_benchmarks_do_not_change_the_other_artifacts_of_a_run(make, tmp_path):
    write_pack(tmp_path / "pack", "gsm8k")
    without, having = make(None), make([{"name": "gsm8k", "path": str(tmp_path / "pack")}])
    assert without.artifacts("benchmarks") == []
    assert having.evaluate("target").fingerprint == without.evaluate("target").fingerprint
    assert [a.stage for a in having.artifacts("benchmarks")] == ["benchmarks/target/gsm8k", "benchmarks/fused/gsm8k"]


def test_finished_benchmarks_are_read_item_by_item(make, packs, table):
    run = make([{"name": name, "path": str(packs / name)} for name in ("winogrande", "gsm8k")])
    winogrande, gsm8k = run.recipe.evaluate.benchmarks
    items = table("winogrande")
    assert read_benchmarks(run) == {}
    for name in ("target", "fused"):
        run.benchmark(name, winogrande).write_shard(0, items.take(list(range(NUM_ITEMS))[::-1]), {"rows": NUM_ITEMS})
        run.benchmark(name, winogrande).finish([], 1.0)
    run.benchmark("target", gsm8k).write_shard(0, table("gsm8k"), {"rows": NUM_ITEMS})
    found = read_benchmarks(run)
    assert {name: list(models) for name, models in found.items()} == {"winogrande": ["target", "fused"]}
    for name in ("target", "fused"):
        assert found["winogrande"][name].to_pydict() == items.select(["item_id", "score", "task"]).to_pydict()


def test_the_plan_counts_items(make, packs):
    run = make([{"name": "winogrande", "path": str(packs / "winogrande")}, {"name": "mmlu", "limit": 10}, "gsm8k"])
    rows = {name: line.rows for name, line in plan_run(run, UNKNOWN_SIZE).items()}
    for name in ("target", "fused"):
        assert [rows[f"benchmarks/{name}/{b}"] for b in ("winogrande", "mmlu", "gsm8k")] == [NUM_ITEMS, 570, 1319]


def test_scores_without_items_are_nan():
    empty = pa.table(
        {"item_id": pa.array([], pa.string()), "score": pa.array([], pa.float64()), "task": pa.array([], pa.string())}
    )
    assert math.isnan(benchmark_score(empty))
    assert math.isnan(standard_error(empty))


OWN_TASK = """
task: my_rivers
dataset_path: json
dataset_kwargs:
  data_files: {{test: {data}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
process_docs: !function own.keep
metric_list:
  - metric: acc_norm
    aggregation: mean
    higher_is_better: true
  - metric: mcc
    aggregation: matthews_corrcoef
    higher_is_better: true
"""


@pytest.fixture
def own(tmp_path, packs):
    """A user's own task, with a function beside it."""
    (tmp_path / "own.py").write_text("def keep(dataset):\n    return dataset.select(range(4))\n")
    (tmp_path / "own.yaml").write_text(OWN_TASK.format(data=packs / "mmlu" / "test.jsonl"))
    return str(tmp_path / "own.yaml")


def test_the_questions_of_a_users_own_task_are_read(own, make):
    (config,) = make([{"name": "rivers", "task": own}]).recipe.evaluate.benchmarks
    questions = benchmark_questions(config)
    assert len(questions) == 4
    assert all(text.startswith("Question: ") for (text,) in questions)


def test_decontamination_makes_the_rows_depend_on_the_questions(make, packs):
    def prepared(decontaminate, *benchmarks):
        run = make([{"name": name, "path": str(packs / name)} for name in benchmarks])
        corpus = run.recipe.corpus.model_copy(update={"decontaminate": decontaminate})
        return FusionRun(run.recipe.model_copy(update={"corpus": corpus}))

    one, two = (prepared(True, *names) for names in (["winogrande"], ["winogrande", "mmlu"]))
    assert one.corpus().fingerprint != two.corpus().fingerprint
    assert list(two.benchmark_questions()) == ["winogrande", "mmlu"]
    assert [artifact.stage for artifact in one.artifacts("prepare")][3:] == ["prepare/contaminated"]
    off = prepared(False, "winogrande")
    assert off.corpus().fingerprint == prepared(False, "mmlu").corpus().fingerprint
    assert (off.benchmark_questions(), len(off.artifacts("prepare"))) == ({}, 3)


def test_a_users_own_task_is_run_by_the_harness(own, lm, make, tmp_path):
    from profuser.evaluation.benchmarks.runs import run_benchmark
    from profuser.evaluation.benchmarks.tasks import load_benchmark

    run = make([{"name": "rivers", "task": own}])
    run.check_inputs()
    (config,) = run.recipe.evaluate.benchmarks
    table = run_benchmark(lm, load_benchmark(config))
    assert table["task"].to_pylist() == ["my_rivers"] * 4
    for row in table.to_pylist():
        assert row["score"] == dict(row["metrics"])["acc_norm"] == (row["prediction"] == row["target"])
    before = run.benchmark("target", config).fingerprint
    (tmp_path / "own.py").write_text("def keep(dataset):\n    return dataset.select(range(3))\n")
    assert make([{"name": "rivers", "task": own}]).benchmark("target", config).fingerprint != before


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metric": "mcc"}, "'mcc' of .* is not a mean over items"),
        ({"metric": "bleu"}, "no metric 'bleu'; there are: acc_norm, mcc"),
        ({"task": "nowhere.yaml"}, "nowhere.yaml cannot be read"),
    ],
)
def test_a_users_own_task_that_cannot_be_compared_is_rejected(own, make, settings, message):
    with pytest.raises(UserError, match=message) as raised:
        make([{"name": "rivers", "task": own, **settings}]).check_inputs()
    assert "\n" not in str(raised.value)


def test_the_identity_of_a_benchmark_excludes_its_path_and_batch_size():
    assert {"path", "batch_size"}.isdisjoint(identity(BenchmarkConfig(name="mmlu", path="/data", batch_size=3)))
