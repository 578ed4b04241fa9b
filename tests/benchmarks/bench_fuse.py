"""The fuse stage (Ray Train and Data, FSDP2, MLflow, checkpoints) against plain loops on the same model, on Alpaca-like lengths."""

import math
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchTrainer
from transformers import LlamaConfig, LlamaForCausalLM

from profuser.artifacts.artifact import Artifact
from profuser.artifacts.schemas import select_schema
from profuser.artifacts.stage_time import DeviceClock
from profuser.artifacts.tracking import Tracker
from profuser.recipe.fusing import FuseConfig
from profuser.recipe.loading import parse_recipe
from profuser.storage.folder import Folder
from profuser.training.batches import UpdatePlan
from profuser.training.examples import ExampleIndex, ExampleReader
from profuser.training.loop import Hooks, Trainer
from profuser.training.step import FusionModule
from ray_jobs.runtime.cluster import connected
from ray_jobs.training.board import TrainingMonitor
from tests.benchmarks.examples import BOTH, K, Updates, table
from tests.benchmarks.measure import Row, by_turns
from tests.training.made import stream_from

V, NUM_ROWS, ROWS_PER_SHARD = 4096, 768, 64
MAX_TOKENS, BATCH_TOKENS, NUM_STEPS = 512, 2048, 12
STEP_TOKENS = 8192
"""Tokens of the updates that are timed one by one: 80 examples, for average padding. (In an update of 2,048 tokens, 22
examples, the longest has 223 tokens, and padding costs a third less than in the whole table.)"""
SHAPE: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 12,
}


def config(**settings) -> FuseConfig:
    return FuseConfig.model_validate(
        {
            "schedule": list(BOTH),
            "duration": {"kind": "steps", "value": NUM_STEPS},
            "batch_tokens": BATCH_TOKENS,
            "max_tokens": MAX_TOKENS,
            "micro_batch_tokens": 2048,
            "checkpoint_every_steps": NUM_STEPS // 2,
            "validation_rows": 0,
            **settings,
        }
    )


def target() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, max_position_embeddings=MAX_TOKENS, **SHAPE))


class Sft:
    """Plain hand-written SFT: the model's own loss, AdamW, clipping."""

    def __init__(self):
        self.model = target()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, fused=True)

    def step(self, batches) -> None:
        total = sum(len(batch.targets) for batch in batches)
        for batch in batches:
            ids = torch.from_numpy(batch.input_ids).long()
            labels = torch.full_like(ids, -100).view(-1)
            labels[torch.from_numpy(batch.places).long() + 1] = torch.from_numpy(batch.targets).long()
            positions = torch.from_numpy(batch.position_ids).long()
            self.model(
                ids, position_ids=positions, labels=labels.view_as(ids), num_items_in_batch=total, use_cache=False
            ).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()


def run() -> list[Row]:
    return [*_steps(), _stage({s: table(s, ROWS_PER_SHARD, MAX_TOKENS, V) for s in range(NUM_ROWS // ROWS_PER_SHARD)})]


def _steps() -> list[Row]:
    settings = config(batch_tokens=STEP_TOKENS)
    made = Updates(settings, NUM_ROWS, V)
    plan, update, packed, padded = made.plan, made.update, made.packed, made.padded(16)
    sft = Sft()
    trainer = Trainer(FusionModule(target(), settings), plan, settings, 0)
    ways = {
        "fusion": lambda: trainer.train_step(update, packed),
        "sft": lambda: sft.step(packed),
        "padded": lambda: trainer.train_step(update, padded),
    }
    seconds = by_turns(ways, rounds=3)
    rate = {name: update.sequence_tokens / value for name, value in seconds.items()}
    return [
        Row("fusion step, seconds, against plain SFT", seconds["fusion"], "s", seconds["sft"], "<= 1.10 x"),
        Row(
            "useful tokens/s, packed against padded (16 rows as they come)",
            rate["fusion"],
            "/s",
            rate["padded"],
            ">= 2 x",
        ),
    ]


def _stage(tables: dict[int, pa.Table]) -> Row:
    """Runs both loops in one Ray Train worker: the hand-written one before and after the stage's."""
    with tempfile.TemporaryDirectory() as place, connected():
        folder = Path(place)
        target().save_pretrained(folder / "target")
        select = Artifact(Folder.at(folder / "select"), "select", select_schema(V))
        for shard, each in tables.items():
            select.write_shard(shard, each, {"rows": ROWS_PER_SHARD})
        tracker = Tracker.open(f"sqlite:///{folder}/mlflow.db", "bench", "bench", {}, str(folder))
        recipe = parse_recipe(
            {
                "name": "bench",
                "storage": str(folder),
                "corpus": {"path": "none"},
                "sources": [{"name": name, "model": str(folder / "target")} for name in ("a", "b")],
                "target": {"model": str(folder / "target")},
                "collect": {"top_k": K},
                "rewards": [{"kind": "exact_match", "name": "exact"}],
                "fuse": config().model_dump(),
            },
            "the benchmark",
        )
        with tracker.stage("fuse") as handle:
            watch = TrainingMonitor(select, lambda: "its workers have not begun")
            work = {"recipe": recipe, "select": select, "folder": folder, "handle": handle, "board": watch.board}
            trainer = TorchTrainer(
                _worker,
                train_loop_config=work,
                scaling_config=ScalingConfig(num_workers=1, resources_per_worker={"CPU": 2}),
                run_config=RunConfig(name="bench", storage_path=str(folder / "train")),
            )
            trainer.fit()
        hand, stage = (float(each) for each in (folder / "rates").read_text().split())
    return Row("tokens/s of the stage, against plain SFT by hand", stage, "/s", hand, ">= 0.90 x")


def _worker(work: dict) -> None:
    import ray

    from ray_jobs.training.worker import Logger, Saver, WorkerTask, make_trainer

    select, recipe = work["select"], work["recipe"]
    index = ExampleIndex.build(((shard, select.read_shard(shard)) for shard in select.shards()), MAX_TOKENS)
    plan = UpdatePlan(index, recipe.fuse, 0)
    reader = ExampleReader(select.read_shard, K, V, MAX_TOKENS)
    path = str(work["folder"] / "target")
    output = Artifact(Folder.at(work["folder"] / "fuse"), "fuse", pa.schema([]))
    task = WorkerTask(recipe, ray.put(plan), reader, path, output, time.time(), 2, work["handle"], work["board"])
    trainer, ingest = make_trainer(task)
    kept = [(u.sequence_tokens, b) for u, b in stream_from(plan, reader, 1, 0, 0)(trainer)]
    sft, ends = Sft(), [0.0]
    rates = [_by_hand(sft, kept)]
    logger, saver = Logger(task, True), Saver(task, True, DeviceClock(output, 2, time.time()))

    def on_step(record: dict[str, float]) -> None:
        logger(record)
        ends.append(time.perf_counter())

    trainer.run(ingest, Hooks(on_step, saver))
    saver.wait()
    rates.append(_by_hand(sft, kept))
    stage = sum(tokens for tokens, _ in kept[1:]) / (ends[-1] - ends[1])
    hand = math.sqrt(rates[0] * rates[1])
    (work["folder"] / "rates").write_text(f"{hand} {stage}")


def _by_hand(sft: Sft, kept: list) -> float:
    """Returns the tokens per second over all updates but the first."""
    sft.step(kept[0][1])
    start = time.perf_counter()
    for _, batches in kept[1:]:
        sft.step(batches)
    return sum(tokens for tokens, _ in kept[1:]) / (time.perf_counter() - start)
