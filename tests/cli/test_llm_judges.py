"""Generative judges on the command line: what a plan and a dry run say of them, and what they refuse."""

import pytest

from profuser.rewards.rubrics import RUBRICS
from tests import tiny
from tests.cli.small import write_recipe
from tests.cli.test_app import profuser
from tests.openai_server import MODEL, Failure, Scripted, serving


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.neox(tmp_path_factory.mktemp("models") / "neox")


@pytest.fixture
def run(tmp_path, model, monkeypatch, capsys):
    """Returns a function that runs a command over a recipe with a judge; its result is the exit code, and what is printed."""
    recipe = write_recipe(tmp_path, model)

    def call(command, judge, *options):
        judge = f"{{kind: llm_judge, name: referee, {judge}}}"
        code, out, err = profuser(monkeypatch, capsys, command, recipe, "--set", f"rewards=[{judge}]", *options)
        return code, " ".join((out if code == 0 else err).split())

    return call


def test_a_dry_run_tries_the_rubric_on_the_corpus(run, model):
    code, out = run(
        "run", f"model: {model}, rubric: {{prompt: 'Grade {{{{ response }}}} {{{{ reference }}}}'}}", "--dry-run"
    )
    assert code == 0, out
    assert (
        "judge referee: pointwise, its own rubric; with references as answers, the longest of the first 30 rows takes"
        in out
    )
    assert "of its 256 tokens" in out


@pytest.mark.parametrize(
    ("judge", "words"),
    [
        ("model: {model}", "rewards.referee: none of the first 30 rows fits its 256 tokens; the shortest takes"),
        ("model: nowhere/at-all-here/x", "rewards.referee.model: 'nowhere/at-all-here/x' is not a model"),
        (
            "model: {model}, rubric: {{prompt: '{{{{ response }}}}{{{{ category.upper() }}}}'}}",
            "rewards.referee.rubric: row probe cannot be rendered: 'None' has no attribute 'upper'; correct the template",
        ),
        (
            "model: {model}, rubric: {{prompt: '{{{{ response }}}}', system: s}}, template: {{kind: jinja, text: '"
            + '{{% if messages[0].role == "system" %}}{{{{ raise_exception("no system") }}}}{{% endif %}}x\'}}',
            "its chat template refuses the rubric: no system",
        ),
    ],
)
def test_a_dry_run_refuses_a_judge_that_no_row_can_be_put_to(run, model, judge, words):
    code, err = run("run", judge.format(model=model), "--dry-run")
    assert (code, words in err) == (2, True), err


def test_a_plan_prices_the_verdicts_of_a_judge_behind_a_server_and_a_dry_run_asks_it(run):
    script = Scripted(tokenizer=tiny.byte_level_tokenizer(480), knows_ids=False)
    cost = "cost: {input_per_million: 1000, output_per_million: 0}"
    with serving(script) as url:
        judge = f"endpoint: {{base_url: '{url}', model: {MODEL}, retry_seconds: 1, {cost}}}"
        code, single = run("plan", judge)
        assert code == 0, single
        code, paired = run("plan", f"{judge}, mode: pairwise")
        assert script.asked == []
        assert f"judge referee: {url} serves {MODEL}; what it gives is asked when the run starts" in single
        assert "rewards/referee: about" in single
        assert "judge/referee: about" in single

        # The oracle: four bytes a token; on each of 20 rows two answers, or one pair in both orders, as long as the ground truth.
        prompt, answer = (sum(len(text % n) for n in range(30)) / 30 / 4 for text in ("What is %d?", "It is %d."))
        for out, mode, shown in ((single, "pointwise", 1), (paired, "pairwise", 2)):
            rubric = len(RUBRICS["helpfulness"][mode].prompt) / 4
            money = 20 * 2 * (rubric + prompt + (1 + shown) * answer) * 1000 / 1e6
            found = float(out.partition("rewards/referee: about ")[2].split()[0])
            assert found == pytest.approx(money, rel=0.01)
        code, out = run("run", judge, "--dry-run")
        assert code == 0, out
        served = f"judge referee: {url} serves {MODEL} (model /models/big, up to 256 tokens)"
        assert f"{served}; verdicts by the probabilities of 20 candidates per token" in out
        assert "judge referee: pointwise, helpfulness; the longest of the first 30 prompts is of about" in out
        script.fail = lambda path, body: Failure(401, "a wrong key")
        code, err = run("run", judge, "--dry-run")
        assert (code, "rewards.referee.endpoint: " in err, "401: a wrong key" in err) == (2, True, True)
