"""The command line: its help, its light imports, and user errors reported in one line with exit code 2."""

import json
import subprocess
import sys

import pytest
import yaml

from profuser.run.stages import STAGES
from ray_jobs.cli import app as cli
from tests import tiny
from tests.cli.small import write_recipe

VERBS = ("demo", "doctor", "plan", "run", "status", "compare", "report", "evaluate", "serve", "lab")
HEAVY = ("ray", "torch", "transformers", "vllm", "mlflow", "datasets", "matplotlib")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.llama(tmp_path_factory.mktemp("models") / "llama")


@pytest.fixture
def recipe(tmp_path, model):
    return write_recipe(tmp_path, model)


def profuser(monkeypatch, capsys, *arguments):
    """Returns exit code, standard output and standard error of the command."""
    monkeypatch.setattr(sys, "argv", ["profuser", *arguments])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    captured = capsys.readouterr()
    return ended.value.code or 0, captured.out, captured.err


def test_help_lists_every_verb(monkeypatch, capsys):
    code, out, _ = profuser(monkeypatch, capsys, "--help")
    assert code == 0
    assert all(f"\n  {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help(monkeypatch, capsys, verb):
    code, out, _ = profuser(monkeypatch, capsys, verb, "--help")
    assert code == 0
    assert "Usage: profuser" in out


def test_help_of_run_names_every_stage_in_order(monkeypatch, capsys):
    _, out, _ = profuser(monkeypatch, capsys, "run", "--help")
    assert ", ".join(STAGES) in " ".join(out.split())


def test_help_and_plan_load_nothing_heavy():
    code = (
        "import sys, ray_jobs.cli.app, ray_jobs.cli.plan, profuser.run.fusion_run\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


@pytest.mark.parametrize("verb", ["run", "plan"])
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["fuse.optimiser.learning_rate=1"], "did you mean 'optimizer'?"),
        (["corpus.path=nowhere.jsonl"], "nowhere.jsonl: no such file or folder"),
        (["sources.b.model=./nowhere"], "sources.b.model: './nowhere' is not a model: no such folder"),
        (["lab=nowhere", "target.model=lab://sources/llama"], "lab: 'nowhere' contains no lab"),
    ],
)
def test_a_recipe_error_is_one_line_and_exit_2(monkeypatch, capsys, recipe, tmp_path, verb, settings, expected):
    overrides = [part for setting in settings for part in ("--set", setting)]
    code, out, err = profuser(monkeypatch, capsys, verb, recipe, *overrides)
    assert (code, out) == (2, "")
    assert expected in err
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_plan_rejects_a_corpus_without_usable_rows(monkeypatch, capsys, recipe, tmp_path):
    (tmp_path / "data.jsonl").write_text('{"a": 1}\nnot json\n')
    code, _, err = profuser(monkeypatch, capsys, "plan", recipe)
    assert code == 2
    assert "no usable row" in err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("run", "nowhere"), "shipped recipes: alpaca-lab, demo, open-trio, open-trio-demo, profuser-7b"),
        (("status", "nobody"), "run 'nobody' not found"),
        (("report", "nobody"), "run 'nobody' not found"),
        (("serve", "nobody"), "run 'nobody' not found"),
        (("compare", "nobody"), "run 'nobody' not found"),
    ],
)
def test_an_unknown_name_is_reported_in_one_line(monkeypatch, capsys, tmp_path, arguments, expected):
    monkeypatch.chdir(tmp_path)
    code, _, err = profuser(monkeypatch, capsys, *arguments)
    assert code == 2
    assert expected in err
    assert err.count("\n") == 1


def test_an_unknown_option_is_a_user_error(monkeypatch, capsys):
    code, _, err = profuser(monkeypatch, capsys, "run", "demo", "--bogus")
    assert code == 2
    assert "No such option" in err


def test_a_dry_run_validates_without_starting_anything(monkeypatch, capsys, recipe, tmp_path):
    code, out, _ = profuser(monkeypatch, capsys, "run", recipe, "--dry-run")
    assert code == 0
    assert "valid" in out
    assert "corpus: qa: 30 rows read, 30 usable" in out
    assert not (tmp_path / "runs").exists()


def test_a_dry_run_names_ends_of_turn_thinking_and_the_rows_that_a_template_refuses(
    monkeypatch, capsys, recipe, tmp_path
):
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write('{"question": "q", "answer": "a", "system": "Be brief."}\n')
    text = (
        "{{ strftime_now('%Y') if x else '' }}{% if messages[0].role == 'system' %}"
        "{{ raise_exception('System role not supported') }}{% endif %}"
        "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}<think>\n{% endif %}"
    )
    template = f"sources.b.template={{kind: jinja, arguments: {{x: true, typo: 1}}, text: {json.dumps(text)}}}"
    code, out, _ = profuser(monkeypatch, capsys, "run", recipe, "--dry-run", "--set", template)
    assert code == 0
    found = next(line for line in " ".join(out.split()).split("source ") if line.startswith("b: "))
    for words in (
        "turns end with </s>",
        "the prompt opens <think>; its answer is what follows its thinking (template.thinking: strip)",
        "the template does not use typo",
        "the template writes the date of the day",
        "its template refuses 1 of the first 31 rows, e.g. ",
        "data.jsonl:31: System role not supported (for turns of system, user)",
    ):
        assert words in found


def test_a_dry_run_names_the_rows_whose_tools_a_template_leaves_out(monkeypatch, capsys, recipe, tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "w", "arguments": "{}"}}]}
    turns = [{"role": "user", "content": "q"}, call]
    rows = [
        [*turns, {"role": "tool", "content": "3"}, {"role": "assistant", "content": "a"}],
        turns,
    ]
    plain = [[{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": "a"}] for n in range(30)]
    lines = [{"messages": row} for row in plain] + [{"messages": row, "tools": [{"name": "w"}]} for row in rows]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code, out, _ = profuser(
        monkeypatch, capsys, "run", recipe, "--dry-run", "--set", "corpus.max_quarantined_fraction=0.5"
    )
    assert code == 0
    found = " ".join(out.split())
    assert "32 rows read, 31 usable, 1 refused" in found
    assert "line 32: the response is a tool call, which each template writes differently (user, tool_calls)" in found
    assert "fields not used: tools (1 rows)" in found
    reason = "data.jsonl:31: it leaves out a tool call (for turns of user, tool_calls, tool)"
    for model in ("source a", "source b", "target"):
        line = found.split(f"{model}: ")[1]
        assert line.index("its template refuses 1 of the first 31 rows, e.g. ") < line.index(reason)


@pytest.mark.parametrize("verb", [("run", "--dry-run"), ("plan",)])
def test_what_prepare_would_refuse_is_refused_before_anything_starts(monkeypatch, capsys, recipe, tmp_path, verb):
    with (tmp_path / "data.jsonl").open("a") as file:
        file.write('{"question": "q"}\n' * 20)
    code, _, err = profuser(monkeypatch, capsys, verb[0], recipe, *verb[1:])
    assert code == 2
    assert "20 of 50 rows (40 %) were refused" in err


def test_the_plan_counts_rows_updates_and_all_stages(monkeypatch, capsys, recipe):
    code, out, _ = profuser(monkeypatch, capsys, "plan", recipe, "--set", "fuse.duration={kind: epochs, value: 2}")
    assert code == 0
    assert "30 rows" in out
    assert "corpus: qa: 30 rows read, 30 usable" in out
    for stage in ("prepare/train", "collect/a", "collect/b", "rewards/match", "select", "fuse", "evaluate/fused"):
        assert stage in out
    # 20 rows of about 5 tokens, in both modes, twice.
    assert "about 7 updates of 64 tokens" in out


def test_an_arm_has_its_own_name_and_schedule(monkeypatch, capsys, recipe):
    settings = ("--set", "fuse.duration={kind: steps, value: 90}")
    code, out, _ = profuser(monkeypatch, capsys, "plan", recipe, "--arm", "reversed", *settings)
    assert code == 0
    assert "small-reversed: 30 rows" in out
    assert [line.split() for line in out.splitlines()[-2:]] == [
        ["1", "0", "45", "0", "1"],
        ["2", "45", "45", "1", "0.1"],
    ]
    code, out, _ = profuser(monkeypatch, capsys, "plan", recipe, "--arm", "reversed", "--set", "name=mine")
    assert code == 0
    assert "mine: 30 rows" in out


@pytest.mark.parametrize("verb", ["run", "plan"])
def test_a_misspelt_arm_is_reported_with_the_existing_arms(monkeypatch, capsys, recipe, tmp_path, verb):
    code, out, err = profuser(monkeypatch, capsys, verb, recipe, "--arm", "revesed")
    assert (code, out) == (2, "")
    assert err.startswith("profuser: --arm revesed: no such arm; there are: average-teacher, competence,")
    assert err.count("\n") == 1
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("num_rows", ["0", "-3"])
def test_a_probe_of_no_rows_is_a_user_error(monkeypatch, capsys, recipe, tmp_path, num_rows):
    code, out, err = profuser(monkeypatch, capsys, "plan", recipe, "--probe", num_rows)
    assert (code, out) == (2, "")
    assert err == f"profuser: --probe {num_rows}: give the number of rows to run through every source, at least 1\n"
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("option", ["--until", "--redo"])
def test_an_unknown_stage_is_reported_with_the_existing_stages(monkeypatch, capsys, recipe, option):
    code, _, err = profuser(monkeypatch, capsys, "run", recipe, option, "colect")
    assert code == 2
    assert err.startswith(f"profuser: {option} colect: no such stage; there are: prepare, collect,")


def test_a_failed_run_exits_1_without_traceback(monkeypatch, capsys, recipe):
    from profuser.errors import EngineError

    def fail(*_):
        raise EngineError("collect/a: out of memory; lower engine.max_model_len")

    monkeypatch.setattr("ray_jobs.pipeline.pipeline.run_pipeline", fail)
    code, _, err = profuser(monkeypatch, capsys, "run", recipe)
    assert (code, err) == (1, "profuser: collect/a: out of memory; lower engine.max_model_len\n")


def test_an_interrupted_run_prints_how_to_continue(monkeypatch, capsys, recipe):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("ray_jobs.pipeline.pipeline.run_pipeline", interrupt)
    code, _, err = profuser(monkeypatch, capsys, "run", recipe)
    assert code == 130
    assert "run again to continue" in err


def test_a_dry_run_says_what_each_part_of_a_mix_is_and_what_it_is_compared_with(monkeypatch, capsys, recipe, tmp_path):
    (tmp_path / "own.csv").write_text("ask,reply\nWhy?,Because.\n")
    part = {"name": "asked", "path": str(tmp_path / "own.csv"), "fields": {"prompt": "ask", "response": "reply"}}
    parts = [{"name": "numbers", "path": str(tmp_path / "data.jsonl"), "share": 0.5}, part]
    given = [f"corpus.parts={yaml.safe_dump(parts, default_flow_style=True).strip()}", "corpus.path=null"]
    settings = [word for setting in (*given, "corpus.decontaminate=true") for word in ("--set", setting)]
    code, out, err = profuser(monkeypatch, capsys, "run", recipe, *settings, "--dry-run")
    assert (code, err) == (0, "")
    assert out.splitlines()[:3] == [
        "corpus, numbers: qa: 30 rows read, 30 usable",
        "corpus, asked: fields: 1 rows read, 1 usable",
        "decontamination: rows that share 13 words with held-out rows are dropped",
    ]
    code, _, err = profuser(monkeypatch, capsys, "run", recipe, *settings[:2], "--dry-run")
    assert code == 2
    assert "corpus.path does not apply to corpus.parts" in err
