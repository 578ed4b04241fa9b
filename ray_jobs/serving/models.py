"""Resolves the models that `profuser serve` serves: those of finished runs, and others by name."""

from collections.abc import Sequence
from typing import Any

import ray

from profuser.artifacts.tracking import tracking_uri
from profuser.errors import UserError
from profuser.models.reference import ModelRef
from profuser.recipe.models import ModelConfig
from profuser.recipe.template import OwnTemplate
from profuser.run.finding import find_run, finished_model
from profuser.run.fusion_run import FusionRun
from profuser.serving.locate import registered
from profuser.serving.options import NONE, ServeConfig, ServedModel
from ray_jobs.runtime.cluster import total_gpus

TARGET = "target"


def fused_model(run: FusionRun, name: str, **settings: Any) -> ServedModel:
    """Returns the fused model of a finished run, with its target's engine settings.

    Unless the run kept its thinking, it has learnt to answer at once, also where its target's prompt leaves room to think: a
    reasoning parser would take its answers for reasoning.
    """
    target = run.recipe.target
    answers = {} if run.recipe.template_of(target).thinking == "keep" else {"reasoning_parser": NONE}
    # The target's revision is of the target's own repository.
    return _served(name, finished_model(run), target.model_copy(update={"revision": None}), answers | settings)


def compared_models(run: FusionRun, names: Sequence[str], taken: Sequence[str], **settings: Any) -> list[ServedModel]:
    """Returns the target before fusion, and sources, by name; a source that is the target is served once."""
    recipe = run.recipe
    known: dict[str, ModelConfig] = {TARGET: recipe.target, **{source.name: source for source in recipe.sources}}
    missing = [name for name in names if name not in known]
    if missing:
        raise UserError(f"--with {missing[0]}: run {recipe.name} has no such model; there are: {', '.join(known)}")
    out: dict[ModelRef, ServedModel] = {}
    for name in names:
        ref = run.model(known[name])
        title = name if name not in taken else f"{recipe.name}-{name}"
        if ref not in out:
            out[ref] = _served(title, ref.path, known[name], _chat_template(run, known[name]) | settings)
    return list(out.values())


def named_model(text: str, storage: str, **settings: Any) -> ServedModel:
    """Returns the model of `NAME=LOCATION`: a folder, a URI, a Hub name or `models:/NAME@ALIAS`."""
    name, equals, location = text.partition("=")
    if not (equals and name and location):
        raise UserError(f"--model {text}: write NAME=LOCATION, for example champion=models:/fused@champion")
    found = registered(location, tracking_uri(storage))
    return ServeConfig.parse({"models": [{"name": name, "model": found, **settings}]}, f"--model {text}").models[0]


def serve_config(
    runs: Sequence[str],
    storage: str,
    beside: Sequence[str],
    models: Sequence[str],
    name: str | None,
    replicas: dict[str, Any],
    settings: dict[str, Any],
) -> ServeConfig:
    """Returns the serve config for the command line's arguments.

    Args:
        runs: runs whose fused models are served.
        storage: folder or URI where they are stored.
        beside: further models of the first run, by name; or `all`.
        models: further models, `NAME=LOCATION`.
        name: name of the first fused model in the API; by default the run's.
        replicas: settings of every model's replicas.
        settings: settings of the gateway.
    """
    found = [find_run(run, storage) for run in runs]
    titles = [name or run.recipe.name if place == 0 else run.recipe.name for place, run in enumerate(found)]
    served = [fused_model(run, title, **replicas) for run, title in zip(found, titles, strict=True)]
    if found and beside:
        sources = [source.name for source in found[0].recipe.sources]
        wanted = [TARGET, *sources] if "all" in beside else beside
        served += compared_models(found[0], wanted, titles, **replicas)
    served += [named_model(text, storage, **replicas) for text in models]
    if not served:
        raise UserError("serve: name a run, or a model with --model NAME=LOCATION")
    tree = {"models": [model.model_dump() for model in served], **settings}
    return ServeConfig.parse(tree, "serve")


def _gpus() -> float:
    """Returns the GPUs of the cluster, or of this machine where only a config file is written."""
    import torch

    return total_gpus() if ray.is_initialized() else float(torch.cuda.device_count())


def _chat_template(run: FusionRun, config: ModelConfig) -> dict[str, Any]:
    """Returns the template of a model under the recipe's settings, if they change the model's own; its date is not the run's."""
    template = run.recipe.template_of(config)
    if template == OwnTemplate():
        return {}
    from transformers import AutoTokenizer

    from profuser.corpus.rendering import chat_texts

    options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.engine.trust_remote_code}
    tokenizer = AutoTokenizer.from_pretrained(run.model(config).local(weights=False), **options)
    return {"chat_template": chat_texts(tokenizer, template.model_copy(update={"date": None})).asking}


def _served(name: str, path: str, config: ModelConfig, settings: dict[str, Any]) -> ServedModel:
    """Returns a model with the revision and the engine settings of its recipe; `settings` override them."""
    engine = config.engine.model_dump(exclude_defaults=True)
    tree = {
        "name": name,
        "model": path,
        "revision": config.revision,
        "num_gpus": float(config.num_devices) if _gpus() else 0.0,
        # Of the recipe's settings, those that a server has no use for are how its requests are queued and which engine runs.
        **{key: value for key, value in engine.items() if key in ServedModel.model_fields},
        **settings,
    }
    return ServeConfig.parse({"models": [tree]}, f"serve: {name}").models[0]
