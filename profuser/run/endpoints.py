"""The endpoints of a run: keys, what their servers give, and what a run can do with it, before anything is paid."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, replace

from profuser.engines.base import ReadSettings
from profuser.engines.endpoint.access import EndpointAccess, ask_source, read_tokens
from profuser.engines.endpoint.facts import EndpointFacts, text_only_words
from profuser.errors import UserError
from profuser.recipe.models import ModelConfig, SourceConfig
from profuser.recipe.schedule import uses
from profuser.run.fusion_run import FusionRun
from profuser.run.inputs import ENDPOINTS


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


def ask_endpoints(run: FusionRun, parts: Collection[str] | None = None) -> dict[str, EndpointFacts]:
    """Asks every server that the run still needs what it gives.

    Args:
        run: the run.
        parts: names of the parts that are run, e.g. `collect/llama`; by default all.

    Returns:
        Facts by source; those of finished sources as they are known.

    Raises:
        UserError: a key is missing, a server cannot be used, or what it gives has changed or does not fit the recipe.
    """
    out: dict[str, EndpointFacts] = {}
    for source in _endpoints(run):
        known = run.facts(source)
        if known and not _is_needed(run, source, parts):
            out[source.name] = known
            continue
        out[source.name] = found = _ask(run, source)
        if known and (changes := known.differences(found)) and run.collect(source).shards():
            assert source.endpoint is not None
            raise UserError(
                f"sources.{source.name}.endpoint: {source.endpoint.base_url} differs from when the run began: "
                f"{'; '.join(changes)}; serve the same model in the same way, or begin again with --redo collect"
            )
    _check(run, out)
    return out


def endpoint_lines(run: FusionRun, facts: dict[str, EndpointFacts]) -> Iterator[str]:
    """Yields a line per endpoint: what the run gets from its server."""
    for source in _endpoints(run):
        yield facts[source.name].line(source, run.recipe.collect.top_k)
    if _endpoints(run) and run.recipe.evaluate.benchmarks:
        yield f"benchmarks: not run on {', '.join(source.name for source in _endpoints(run))}, whose model is not loaded"


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
    for source in _endpoints(run):
        assert source.endpoint is not None
        known = run.facts(source)
        if known:
            yield known.line(source, run.recipe.collect.top_k)
        else:
            what = (
                text_only_words()
                if source.is_text_only
                else "what it gives is asked when the run starts, or by --dry-run"
            )
            yield f"source {source.name}: {source.endpoint.base_url} serves {source.endpoint.model}; {what}"


def _endpoints(run: FusionRun) -> list[SourceConfig]:
    return [source for source in run.recipe.sources if source.endpoint]


def _how(run: FusionRun, source: SourceConfig) -> ReadSettings:
    """Returns the settings of the source's answers, with the K of the distributions."""
    return replace(run.reading(source), top_k=run.recipe.collect.top_k)


def _is_needed(run: FusionRun, source: SourceConfig, parts: Collection[str] | None) -> bool:
    """Returns whether a part that is run has still to read with the source."""
    artifacts = [run.collect(source)]
    if run.recipe.collect.signals == "lazy":
        artifacts.append(run.signals(source))
    if source.name in run.evaluated():
        artifacts.append(run.evaluate(source.name))
    wanted = [artifact for artifact in artifacts if parts is None or artifact.stage in parts]
    return any(artifact.manifest() is None for artifact in wanted)


def _ask(run: FusionRun, source: SourceConfig) -> EndpointFacts:
    from profuser.engines.endpoint.client import read_key

    assert source.endpoint is not None
    key = read_key(source.endpoint, f"sources.{source.name}.endpoint")
    tokens = read_tokens(run.model(source).path, source, run.template(source), run.vocab_size(source.setting))
    return ask_source(source, key, _how(run, source), tokens)


def _check(run: FusionRun, facts: dict[str, EndpointFacts]) -> None:
    """Raises UserError where the recipe needs what no server gives."""
    recipe = run.recipe
    forcing = [t.name for t in recipe.teachers if t.endpoint is None or facts[t.name].forces]
    if uses(recipe.fuse.schedule, "training") and not forcing:
        raise UserError(
            "sources: no source that may teach can teacher-force the ground truth (vLLM's /v1/completions with prompt_logprobs "
            "can); add one, or set a fuse.schedule without the training mode"
        )
    for source in _endpoints(run):
        found = facts[source.name]
        if recipe.collect.signals == "lazy" and found.top_logprobs is not None and not found.forces:
            raise UserError(
                f"sources.{source.name}.endpoint: collect.signals: lazy reads the chosen answers a second time, and this server "
                "cannot teacher-force them; set collect.signals: eager"
            )
