"""Sources behind a server on the command line: what a plan and a dry run say, and what they refuse."""

import pytest

from tests import tiny
from tests.cli.small import write_recipe
from tests.cli.test_app import profuser
from tests.openai_server import MODEL, MODELS, Failure, Scripted, serving

KEY = "sk-of-the-test"


def with_endpoint(url, tokenizer=None, **settings):
    """Returns the options that put the second source behind a server."""
    endpoint = {"base_url": url, "model": MODEL, "tokenizer": tokenizer, "retry_seconds": 1} | settings
    listed = ", ".join(f"{name}: {'null' if value is None else value}" for name, value in endpoint.items())
    return ("--set", "sources.b.model=''", "--set", f"sources.b.endpoint={{{listed}}}")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.neox(tmp_path_factory.mktemp("models") / "neox")


@pytest.fixture
def recipe(tmp_path, model):
    return write_recipe(tmp_path, model)


@pytest.fixture
def served():
    script = Scripted(tokenizer=tiny.byte_level_tokenizer(480))
    with serving(script) as url:
        yield script, url


def test_a_plan_says_what_an_endpoint_takes_part_in_and_costs_and_asks_it_nothing(
    monkeypatch, capsys, recipe, model, served
):
    script, url = served
    cost = "{input_per_million: 1000, output_per_million: 2000}"
    lazy = ("--set", "collect.signals=lazy")
    for tokenizer, options, words in (
        (
            None,
            (),
            "no endpoint.tokenizer: no part in Min-CE; whether its answers have distributions is asked when the run",
        ),
        (None, lazy, "no endpoint.tokenizer, and collect.signals is lazy: only the texts of its answers are used"),
        (model, (), "what it gives is asked when the run starts, or by --dry-run"),
    ):
        options = (*with_endpoint(url, tokenizer, cost=cost), *options)
        code, out, err = profuser(monkeypatch, capsys, "plan", recipe, *options)
        assert code == 0, err
        lines = " ".join(out.split())
        assert f"source b: {url} serves {MODEL}; {words}" in lines
        assert "collect/b: about 0.14 USD" in lines
        assert "USD for the endpoint's tokens" in lines
    assert script.asked == []


def test_a_dry_run_asks_the_server_what_it_gives(monkeypatch, capsys, recipe, model, served):
    script, url = served
    code, out, err = profuser(monkeypatch, capsys, "run", recipe, "--dry-run", *with_endpoint(url, model))
    assert code == 0, err
    lines = " ".join(out.split())
    assert (
        f"source b: {url} serves {MODEL} (model /models/big, up to 256 tokens); distributions of its answers" in lines
    )
    assert "it teacher-forces the ground truth" in lines
    script.knows_ids = False
    _, out, _ = profuser(monkeypatch, capsys, "run", recipe, "--dry-run", *with_endpoint(url, model))
    assert "it cannot teacher-force the ground truth: no part in Min-CE" in " ".join(out.split())


@pytest.mark.parametrize(
    ("exact", "options", "words"),
    [
        (
            True,
            (),
            "distributions of its answers, of at most 20 tokens (collect.top_k is 30), aligned by their bytes (no "
            "endpoint.tokenizer); it cannot teacher-force the ground truth: no part in Min-CE",
        ),
        (
            None,
            (),
            "no endpoint.tokenizer, and it gives no log-probabilities with bytes that join to its answers: only the texts of its "
            "answers are used, by cross-entropy where they win the vote; no part in Min-CE",
        ),
        (
            True,
            ("--set", "collect.signals=lazy"),
            "no endpoint.tokenizer, and collect.signals is lazy: only the texts of its answers are used",
        ),
    ],
    ids=["given", "not given", "lazy"],
)
def test_a_dry_run_says_what_a_server_gives_without_a_tokenizer(
    monkeypatch, capsys, recipe, served, exact, options, words
):
    script, url = served
    script.tokenizer = script.tokenizer if exact else None
    options = (*with_endpoint(url), "--set", "collect.top_k=30", *options)
    code, out, err = profuser(monkeypatch, capsys, "run", recipe, "--dry-run", *options)
    assert code == 0, err
    assert f"source b: {url} serves {MODEL} (model /models/big, up to 256 tokens); {words}" in " ".join(out.split())


@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        ({"key_env": "NO_SUCH_KEY"}, (), "sources.b.endpoint.key_env: the environment variable NO_SUCH_KEY is not set"),
        ({"model": "other"}, (), "serves no 'other'; it serves acme/big"),
        ({}, ("--set", "collect.signals=lazy"), "collect.signals: lazy reads the chosen answers a second time"),
        ({"key_env": "BIG_KEY"}, (), "401: a wrong key; check endpoint.base_url, endpoint.model and the key"),
    ],
)
def test_a_dry_run_refuses_a_server_that_the_run_cannot_use(
    monkeypatch,
    capsys,
    recipe,
    model,
    served,
    settings,
    options,
    words,
):
    script, url = served
    script.knows_ids = False
    monkeypatch.setenv("BIG_KEY", KEY)
    script.fail = lambda path, body: Failure(401, "a wrong key") if settings.get("key_env") and path != MODELS else None
    code, out, err = profuser(
        monkeypatch, capsys, "run", recipe, "--dry-run", *with_endpoint(url, model, **settings), *options
    )
    assert code == 2
    assert words in " ".join(err.split())
    assert KEY not in out + err


def test_no_teacher_for_the_ground_truth_is_refused_before_anything_is_paid(monkeypatch, capsys, recipe, model, served):
    script, url = served
    script.knows_ids = False
    options = (*with_endpoint(url, model), "--set", "select.exclude_target=true")
    code, _, err = profuser(monkeypatch, capsys, "run", recipe, "--dry-run", *options)
    assert code == 2
    assert "no source that may teach can teacher-force the ground truth" in " ".join(err.split())
