"""Invented examples and tiny targets of real architectures, for tests of training."""

import copy

import numpy as np
import pyarrow as pa
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    PretrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from profuser.artifacts.schemas import PAIR, select_schema
from profuser.recipe.fusing import FuseConfig
from profuser.training.batches import UpdatePlan, read_packs, read_updates, windows_from
from profuser.training.examples import ExampleIndex, ExampleReader
from profuser.training.loop import Hooks, Trainer
from profuser.training.step import FusionModule
from profuser.training.target import prepare

V, K = 50, 4
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(vocab_size=V, max_position_embeddings=64, **SMALL),
    "gpt_neox": GPTNeoXConfig(vocab_size=V, max_position_embeddings=64, **SMALL),
    "mpt": MptConfig(vocab_size=V, d_model=32, n_heads=2, n_layers=2, max_seq_len=64),
    "qwen2": Qwen2Config(vocab_size=V, max_position_embeddings=64, num_key_value_heads=1, **SMALL),
    "qwen3": Qwen3Config(vocab_size=V, max_position_embeddings=64, num_key_value_heads=1, head_dim=16, **SMALL),
    "mistral, sliding": MistralConfig(vocab_size=V, num_key_value_heads=1, sliding_window=4, **SMALL),
    "gemma2, tied and capped": Gemma2Config(
        vocab_size=V,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=4,
        final_logit_softcapping=2.0,
        pad_token_id=0,
        **SMALL,
    ),
    "gemma3, a layer of windows": Gemma3TextConfig(
        vocab_size=V,
        num_key_value_heads=1,
        head_dim=16,
        sliding_window=4,
        layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=64,
        pad_token_id=0,
        **SMALL,
    ),
}


def model(name="llama"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(copy.deepcopy(CONFIGS[name]), dtype=torch.float32)


def make_table(num_rows=11, seed=0, first=0, pairs=False, on_policy=False):
    """Rows grouped by teacher and mode; two in three have an example in both modes, the others only in training mode. With pairs,
    half of the rows have two answers to one prompt too; on policy, all have an answer of the target."""
    rng = np.random.default_rng([seed, first])
    records = []
    for row in range(first, first + num_rows):
        for mode in [*("training", "inference")[: 1 + (row % 3 > 0)], *["on_policy"] * on_policy]:
            prompt, response = rng.integers(1, V, rng.integers(2, 6)), rng.integers(1, V, rng.integers(1, 9))
            logprobs = -np.sort(rng.exponential(2.0, (len(response), K)) + 1.5, axis=1)
            records.append(
                {
                    "row_id": f"row{row:02d}",
                    "mode": mode,
                    "category": None,
                    "teacher": "ab"[row % 2],
                    "sample": 0,
                    "advantages": [1.0, 2.0 + row % 3],
                    "prompt_ids": prompt.tolist(),
                    "response_ids": response.tolist(),
                    "response_bytes": 3 * len(response),
                    "topk_ids": np.stack([rng.permutation(V)[:K] for _ in response]).reshape(-1).tolist(),
                    "topk_logprobs": logprobs.astype(np.float16).reshape(-1),
                    "rules": [1] * len(response),
                }
            )
        if pairs and row % 2:
            prompt = rng.integers(1, V, 3)
            records += [_answer(row, mode, prompt, rng.integers(1, V, rng.integers(2, 9))) for mode in PAIR]
    records.sort(key=lambda record: (record["teacher"], record["mode"]))
    return pa.Table.from_pylist(records, schema=select_schema(V))


def _answer(row, mode, prompt, response):
    """Returns one answer of a pair, without distributions."""
    return {
        "row_id": f"row{row:02d}",
        "mode": mode,
        "category": None,
        "teacher": "b",
        "sample": 0,
        "advantages": [1.0, 0.0],
        "prompt_ids": prompt.tolist(),
        "response_ids": response.tolist(),
        "response_bytes": 3 * len(response),
        "topk_ids": [0] * (K * len(response)),
        "topk_logprobs": np.full(K * len(response), -np.inf, dtype=np.float16),
        "rules": [0] * len(response),
    }


def tables(num_shards=3, num_rows=11, **more):
    return {shard: make_table(num_rows, 0, shard * num_rows, **more) for shard in range(num_shards)}


def config(**settings):
    return FuseConfig.model_validate(
        {
            "duration": {"kind": "steps", "value": 6},
            "batch_tokens": 80,
            "max_tokens": 24,
            "shuffle_rows": 12,
            "checkpoint_every_steps": 3,
            "micro_batch_tokens": 48,
            "validation_rows": 3,
            "optimizer": {"learning_rate": 1.0e-2},
            **settings,
        }
    )


def stream_from(plan, reader, world_size, rank, pad_id):
    """Returns a trainer's stream without Ray: windows are read one after another, on demand."""

    def stream(trainer, only_pairs=False):
        for window in windows_from(plan, trainer.schedule, trainer.step, trainer.cursor, only_pairs):
            yield from read_updates(plan, reader, window, world_size, rank, pad_id)

    return stream


class Setting:
    """Everything that training needs, without Ray: shards, their index, the plan."""

    def __init__(self, settings=None, shards=None, seed=0):
        self.shards = shards or tables()
        self.config = settings or config()
        self.index = ExampleIndex.build(self.shards.items(), self.config.max_tokens, self.config.weighting)
        self.reader = ExampleReader(self.shards.__getitem__, K, V, self.config.max_tokens)
        self.plan = UpdatePlan(self.index, self.config, seed)
        self.seed = seed

    def trainer(self, target=None, module=None):
        """Returns a trainer of the whole run on one worker."""
        module = module or FusionModule(prepare(target or model(), self.config), self.config)
        validation = list(read_packs(self.index, self.reader, self.plan.deal_validation(1, 0), 0))
        return Trainer(module, self.plan, self.config, self.seed, validation)

    def stream(self, world_size=1, rank=0):
        return stream_from(self.plan, self.reader, world_size, rank, 0)

    def run(self, trainer, **hooks):
        return trainer.run(self.stream(), Hooks(**hooks))


def curve(trainer):
    """Returns the history without machine-dependent values."""
    timed = {"tokens_per_second", "model_tflops", "memory_gib"}
    return [{k: v for k, v in record.items() if k not in timed} for record in trainer.history]
