"""Fits engines to the nodes that they run on: CPUs and memory of an actor, and the type that `dtype: auto` is on a CPU."""

import threading
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from profuser.engines.memory import engine_bytes
from profuser.engines.processor import cpu_dtype
from profuser.models.checkpoint import Checkpoint
from profuser.recipe.models import ModelConfig
from profuser.recipe.resources import PoolConfig
from profuser.recipe.rewards import RewardConfig, RewardModelConfig
from profuser.recipe.sources import ServedModelConfig
from profuser.recipe.verifiers import CodeTestsConfig
from profuser.run.fusion_run import FusionRun
from profuser.storage.folder import Folder
from ray_jobs.runtime.cluster import gpus_for, pool_resources
from ray_jobs.runtime.nodes import common_bfloat16_flag, free_cpus, most_memory, share_of_cpus
from ray_jobs.runtime.shards import ActorNeeds

PROCESSOR, FLAG = "processor.json", "bfloat16"
"""File in a run's folder, and its entry: the flag for bfloat16 products that all CPU nodes had when the run began, or null."""
REWARD_CACHE_GIB = 1.0
"""KV cache of a reward model in vLLM."""
ENDPOINT_CPUS = 0.5
"""CPUs of an actor that sends requests to an endpoint, unless its pool sets them."""
_deciding = threading.Lock()
Model = TypeVar("Model", bound=ModelConfig | RewardConfig)


@dataclass(frozen=True)
class FittedEngine(Generic[Model]):
    """A model and the resources of each actor that runs it."""

    model: Model
    """Its settings; the `dtype` of an engine on a CPU is not `auto`."""
    pool: PoolConfig
    """Its pool, with `num_cpus` set."""
    num_gpus: float
    needs: ActorNeeds
    """Memory to request, none if it is unknown or the engine runs on a GPU; and lines on what was chosen."""

    @property
    def resources(self) -> dict[str, Any]:
        """Resources that an actor or task requests from Ray."""
        return pool_resources(self.pool, self.num_gpus, self.needs.memory_bytes)


def fit_engine(run: FusionRun, model: Model, path: str | None, num_at_once: int) -> FittedEngine[Model]:
    """Fits a model's engine to the cluster's nodes; an endpoint only sends requests.

    Args:
        run: the run, whose folder holds what its processors can do.
        model: the model's section of the recipe, or a verifier's.
        path: folder, URI or Hub name of the model; None for a verifier.
        num_at_once: engines that run concurrently, those of other pools included.
    """
    if isinstance(model, ServedModelConfig) and model.endpoint:
        return FittedEngine(model, _with_cpus(model.pool, ENDPOINT_CPUS), 0.0, ActorNeeds())
    if isinstance(model, CodeTestsConfig):
        free = share_of_cpus(free_cpus(), max(1, num_at_once))
        pool = _with_cpus(model.pool, min(model.num_workers or free, free))
        workers = {"num_workers": model.num_workers or max(1, int(pool.num_cpus or 1))}
        return FittedEngine(model.model_copy(update=workers), pool, 0.0, ActorNeeds())
    num_gpus = gpus_for(model)
    if num_gpus or path is None:
        return FittedEngine(model, _with_cpus(model.pool, 1.0), num_gpus, ActorNeeds())
    assert isinstance(model, ModelConfig | RewardModelConfig)
    pool = _with_cpus(model.pool, share_of_cpus(free_cpus(), num_at_once))
    checkpoint = Checkpoint.of(path, model.revision)
    dtype, lines = model.engine.dtype if isinstance(model, ModelConfig) else model.dtype, []
    if dtype == "auto":
        flag = processor_flag(run)
        dtype = cpu_dtype(checkpoint, flag)
        if dtype == "bfloat16":
            lines.append(f"bfloat16, like its checkpoint: the processor has {flag}; on {pool.num_cpus:g} CPUs")
    memory, most = engine_bytes(checkpoint, dtype, _kv_cache_gib(model)) or 0, int(most_memory())
    if memory > most > 0:
        lines.append(
            f"it takes about {memory / 2**30:.1f} GiB, and the largest node has {most / 2**30:.1f} GiB for actors; "
            "if it runs out of memory, lower engine.kv_cache_gib or use a smaller dtype"
        )
    # No more than a node has: Ray would wait forever for one that has it.
    return FittedEngine(_with_dtype(model, dtype), pool, num_gpus, ActorNeeds(min(memory, most), tuple(lines)))


def processor_flag(run: FusionRun) -> str | None:
    """Returns the flag for bfloat16 products that decides the type of this run's engines on CPUs; None for float32.

    It is determined once and kept in the run's folder: a run that continues on another machine mixes no types. A run whose signals
    were collected before there was such a file continues in float32.
    """
    with _deciding:
        if not run.folder.exists(PROCESSOR):
            run.folder.write_json(PROCESSOR, {FLAG: _flag(run)})
        return run.folder.read_json(PROCESSOR)[FLAG]


def _flag(run: FusionRun) -> str | None:
    """Returns the flag of the run, this one or a reused one, that has collected signals; else that of the nodes."""
    for artifact in map(run.collect, run.recipe.sources):
        if artifact.shards():
            folder = Folder.at(artifact.folder.uri.removesuffix(f"/{artifact.stage}"))
            return folder.read_json(PROCESSOR)[FLAG] if folder.exists(PROCESSOR) else None
    return common_bfloat16_flag()


def _with_cpus(pool: PoolConfig, num_cpus: float) -> PoolConfig:
    return pool if pool.num_cpus is not None else pool.model_copy(update={"num_cpus": num_cpus})


def _with_dtype(model: Model, dtype: str) -> Model:
    if isinstance(model, ModelConfig):
        return model.model_copy(update={"engine": model.engine.model_copy(update={"dtype": dtype})})
    return model.model_copy(update={"dtype": dtype})


def _kv_cache_gib(model: ModelConfig | RewardModelConfig) -> float:
    if isinstance(model, ModelConfig):
        return 0.0 if model.engine.kind == "transformers" else model.engine.kv_cache_gib
    return REWARD_CACHE_GIB if model.engine.kind == "vllm" else 0.0
