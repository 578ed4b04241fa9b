"""The endpoints of a run: keys, what their servers give, and what a run can do with it, before anything is paid."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, replace

from profuser.artifacts.artifact import Artifact
from profuser.engines.base import ReadSettings
from profuser.engines.endpoint.access import EndpointAccess, JudgeAccess, ask_source, read_tokens
from profuser.engines.endpoint.facts import TEXT_ONLY, UNASKED, EndpointFacts
from profuser.errors import UserError
from profuser.recipe.llm_judge import LlmJudgeConfig
from profuser.recipe.models import ModelConfig, SourceConfig
from profuser.recipe.rewards import RewardConfig
from profuser.recipe.schedule import uses
from profuser.run.fusion_run import FusionRun
from profuser.run.inputs import ENDPOINTS
from profuser.run.stages import stage_name


def endpoint_access(run: FusionRun, config: ModelConfig) -> EndpointAccess | None:
    """Returns the access to a source's server; None for a model that is loaded."""
    from profuser.engines.endpoint.client import read_key

    if not isinstance(config, SourceConfig) or config.endpoint is None:
        return None
    facts = run.facts(config)
    if facts is None:
        raise UserError(f"sources.{config.name}.endpoint: not asked yet; start with profuser run")
    key = read_key(config.endpoint, f"sources.{config.name}.endpoint")
    return EndpointAccess(facts, key, _how(run, config), run.vocab_size(config.setting))


def judge_place(run: FusionRun, reward: RewardConfig) -> str | JudgeAccess | None:
    """Returns where a reward's model is: its path, or the access to its server; None for a reward without a model."""
    if not isinstance(reward, LlmJudgeConfig) or reward.endpoint is None:
        return run.reward_path(reward)
    from profuser.engines.endpoint.client import read_key

    facts, setting = run.facts(reward), f"{reward.section}.endpoint"
    if facts is None:
        raise UserError(f"{setting}: not asked yet; start with profuser run")
    return JudgeAccess(facts, read_key(reward.endpoint, setting))


def ask_endpoints(run: FusionRun, parts: Collection[str] | None = None) -> dict[str, EndpointFacts]:
    """Asks every server that the run still needs what it gives.

    Args:
        run: the run.
        parts: names of the parts that are run, e.g. `collect/llama`; by default all.

    Returns:
        Facts by `ServedModelConfig.facts_key`; those of finished sources and judges as they are known.

    Raises:
        UserError: a key is missing, a server cannot be used, or what it gives has changed or does not fit the recipe.
    """
    out: dict[str, EndpointFacts] = {}
    for config in _endpoints(run):
        known, reading = run.facts(config), _reading(run, config)
        wanted = [artifact for artifact in reading if parts is None or artifact.stage in parts]
        if known and all(artifact.manifest() is not None for artifact in wanted):
            out[config.facts_key] = known
            continue
        out[config.facts_key] = found = _ask(run, config)
        if known and (changes := known.differences(found)) and reading[0].shards():
            assert config.endpoint is not None
            raise UserError(
                f"{config.section}.endpoint: {config.endpoint.base_url} differs from when the run began: {'; '.join(changes)}; "
                f"serve the same model in the same way, or begin again with --redo {stage_name(reading[0].stage)}"
            )
    _check(run, out)
    return out


def endpoint_lines(run: FusionRun, facts: dict[str, EndpointFacts]) -> Iterator[str]:
    """Yields a line per endpoint: what the run gets from its server."""
    for config in _endpoints(run):
        yield _line(run, config, facts[config.facts_key])
    sources = [source.name for source in run.recipe.sources if source.endpoint]
    if sources and run.recipe.evaluate.benchmarks:
        yield f"benchmarks: not run on {', '.join(sources)}, whose model is not loaded"


def begin_endpoints(run: FusionRun, show: Callable[[str], None], parts: Collection[str] | None = None) -> FusionRun:
    """Asks the servers, keeps in the run's folder what they give, and returns the run with it; shows a line per endpoint.

    `parts` as in `ask_endpoints`.
    """
    if not _endpoints(run):
        return run
    facts = ask_endpoints(run, parts)
    for line in endpoint_lines(run, facts):
        show(line)
    run.folder.write_json(ENDPOINTS, {name: asdict(found) for name, found in facts.items()})
    return FusionRun(run.recipe)


def unasked_lines(run: FusionRun) -> Iterator[str]:
    """Yields a line per endpoint for a plan, which asks no server."""
    for config in _endpoints(run):
        assert config.endpoint is not None
        if known := run.facts(config):
            yield _line(run, config, known)
            continue
        what = "what it gives is asked when the run starts, or by --dry-run"
        if isinstance(config, SourceConfig) and config.lacks_tokenizer:
            what = UNASKED if _how(run, config).top_k else TEXT_ONLY
        title = f"{'judge' if isinstance(config, LlmJudgeConfig) else 'source'} {config.name}"
        yield f"{title}: {config.endpoint.base_url} serves {config.endpoint.model}; {what}"


def _line(run: FusionRun, config: SourceConfig | LlmJudgeConfig, facts: EndpointFacts) -> str:
    if isinstance(config, LlmJudgeConfig):
        return facts.judge_line(config)
    return facts.line(config, _how(run, config).top_k)


def _endpoints(run: FusionRun) -> list[SourceConfig | LlmJudgeConfig]:
    return [config for config in (*run.recipe.sources, *run.recipe.llm_judges) if config.endpoint]


def _how(run: FusionRun, source: SourceConfig) -> ReadSettings:
    """Returns the settings of the source's answers, with the K of the distributions; 0 without a tokenizer if signals are lazy."""
    how = run.reading(source)
    return how if source.lacks_tokenizer else replace(how, top_k=run.recipe.collect.top_k)


def _reading(run: FusionRun, config: SourceConfig | LlmJudgeConfig) -> list[Artifact]:
    """Returns the artifacts that are made with a source or a judge, in order."""
    if isinstance(config, LlmJudgeConfig):
        return [run.rewards(config), *([run.judge(config)] if run.recipe.evaluate.judged else [])]
    artifacts = [run.collect(config)]
    if run.recipe.collect.signals == "lazy":
        artifacts.append(run.signals(config))
    if config.name in run.evaluated():
        artifacts.append(run.evaluate(config.name))
    return artifacts


def _ask(run: FusionRun, config: SourceConfig | LlmJudgeConfig) -> EndpointFacts:
    from profuser.engines.endpoint.asking import ask_judge
    from profuser.engines.endpoint.client import read_key

    assert config.endpoint is not None
    setting = f"{config.section}.endpoint"
    key = read_key(config.endpoint, setting)
    if isinstance(config, LlmJudgeConfig):
        return ask_judge(config.endpoint, setting, key)
    tokens = read_tokens(run.model(config).path, config, run.template(config), run.vocab_size(config.setting))
    return ask_source(config, key, _how(run, config), tokens)


def _check(run: FusionRun, facts: dict[str, EndpointFacts]) -> None:
    """Raises UserError where the recipe needs what no server gives."""
    recipe = run.recipe
    forcing = [t.name for t in recipe.teachers if t.endpoint is None or facts[t.name].forces]
    if uses(recipe.fuse.schedule, "training") and not forcing:
        raise UserError(
            "sources: no source that may teach can teacher-force the ground truth (vLLM's /v1/completions with prompt_logprobs "
            "can); add one, or set a fuse.schedule without the training mode"
        )
    for source in recipe.sources:
        if not source.endpoint:
            continue
        found = facts[source.name]
        if recipe.collect.signals == "lazy" and found.top_logprobs is not None and not found.forces:
            raise UserError(
                f"sources.{source.name}.endpoint: collect.signals: lazy reads the chosen answers a second time, and this server "
                "cannot teacher-force them; set collect.signals: eager"
            )
