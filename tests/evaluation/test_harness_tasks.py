"""Tasks of lm-evaluation-harness by their names, beside the six: its own scores on local data, groups, and what is refused."""

import shutil

import datasets
import huggingface_hub
import pytest

from profuser.errors import UserError
from profuser.evaluation.benchmarks.checks import check_data, data_digest, local_data
from profuser.evaluation.benchmarks.results import benchmark_score, metric_means
from profuser.recipe.engine import EngineConfig
from profuser.recipe.evaluating import BenchmarkConfig
from profuser.recipe.template import OwnTemplate
from tests import tiny
from tests.evaluation.packs import write_pack

OWN = """
task: writes_code
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{answer}}}}"
unsafe_code: {unsafe}
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    from profuser.evaluation.benchmarks.models import load_lm

    model = tiny.llama(tmp_path_factory.mktemp("model"), max_position_embeddings=4096, num_hidden_layers=1)
    return load_lm(model, None, EngineConfig(kind="transformers"), OwnTemplate())


def measured(lm, name, path, **settings):
    from profuser.evaluation.benchmarks.runs import run_benchmark
    from profuser.evaluation.benchmarks.tasks import load_benchmark

    config = BenchmarkConfig(name=name, path=str(path), **settings)
    return run_benchmark(lm, load_benchmark(config, local_data(config)))


def test_a_task_is_measured_by_its_name_with_the_harness_metric_and_prompts(lm, tmp_path):
    # The same rows as of a benchmark whose prompts are the same.
    write_pack(tmp_path, "arc_challenge")
    easy, six = (measured(lm, name, tmp_path, num_fewshot=2) for name in ("arc_easy", "arc_challenge"))
    assert metric_means(easy) == metric_means(six)
    assert easy["doc_hash"].to_pylist() == six["doc_hash"].to_pylist()
    assert set(easy["task"].to_pylist()) == {"arc_easy"}
    # Its first metric, and another one where that is wished for.
    assert benchmark_score(easy) == metric_means(easy)["acc"]
    assert benchmark_score(measured(lm, "arc_easy", tmp_path, num_fewshot=2, metric="acc_norm")) == benchmark_score(six)


def test_a_group_has_a_folder_per_task_and_one_score_over_all_items(lm, tmp_path):
    write_pack(tmp_path / "one", "mmlu", items=6)
    for subject in ("anatomy", "virology"):
        shutil.copytree(tmp_path / "one", tmp_path / "group" / f"mmlu_{subject}")
    found = measured(lm, "mmlu_other", tmp_path / "group", num_fewshot=0, limit=4)
    assert found["task"].to_pylist() == ["mmlu_anatomy"] * 4 + ["mmlu_virology"] * 4
    assert benchmark_score(found) == pytest.approx(sum(found["score"].to_pylist()) / 8)
    digests = [data_digest(BenchmarkConfig(name="mmlu_other", path=str(tmp_path / "group")))]
    (tmp_path / "group" / "mmlu_virology" / "test.jsonl").unlink()
    digests.append(data_digest(BenchmarkConfig(name="mmlu_other", path=str(tmp_path / "group"))))
    assert len({*digests, data_digest(BenchmarkConfig(name="mmlu_other"))}) == 3


def test_a_system_turn_is_in_every_prompt(lm, tmp_path, monkeypatch):
    prompts, score = [], lm.loglikelihood
    monkeypatch.setattr(
        lm, "loglikelihood", lambda requests: (prompts.extend(r.args[0] for r in requests), score(requests))[1]
    )
    write_pack(tmp_path, "arc_challenge")
    chat = {"num_fewshot": 0, "apply_chat_template": True}
    lm.tokenizer.chat_template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    try:
        measured(lm, "arc_easy", tmp_path, **chat, system="Answer with one letter.")
    finally:
        lm.tokenizer.chat_template = None
    assert len(prompts) > 6
    assert all(prompt.startswith("<system>Answer with one letter.<user>") for prompt in prompts)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mlmu", r"evaluate.benchmarks.mlmu: no benchmark of this name, did you mean 'mmlu'"),
        ("hellaswga", r"did you mean 'hellaswag'"),
        ("xxyyzzqqww", r"lm-eval ls tasks lists them"),
        ("boolq", r"the harness cannot load it: .*without the Hub, give its data with path: FOLDER"),
    ],
)
def test_what_cannot_be_measured_is_said_before_the_run(name, message, monkeypatch):
    for module in (datasets.config, huggingface_hub.constants):
        monkeypatch.setattr(module, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match=message) as raised:
        check_data(BenchmarkConfig(name=name))
    assert "\n" not in str(raised.value)


def test_a_task_that_runs_code_of_models_needs_permission(tmp_path):
    (tmp_path / "data.jsonl").write_text('{"question": "1", "answer": "1"}\n')
    for unsafe in ("true", "false"):
        (tmp_path / f"{unsafe}.yaml").write_text(OWN.format(data=tmp_path / "data.jsonl", unsafe=unsafe))
    own = {"name": "own", "task": str(tmp_path / "true.yaml")}
    with pytest.raises(UserError, match=r"own: writes_code runs the code that models write.*set allow_code: true"):
        check_data(BenchmarkConfig(**own))
    check_data(BenchmarkConfig(**own, allow_code=True))
    check_data(BenchmarkConfig(name="own", task=str(tmp_path / "false.yaml")))


def test_a_folder_without_files_and_a_task_that_is_not_there_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"arc_easy.path: no file of a split in .*expected test.jsonl"):
        check_data(BenchmarkConfig(name="arc_easy", path=str(tmp_path)))
    write_pack(tmp_path / "nothing_like_it", "arc_challenge")
    with pytest.raises(
        UserError, match=r"mmlu_other.path: .* has data of 'nothing_like_it', and the harness has no such"
    ):
        check_data(BenchmarkConfig(name="mmlu_other", path=str(tmp_path)))
