"""Runs prepare, collect, rewards and select over ROWS synthetic rows, in a separate process; prints the figures as JSON.

`python -m tests.benchmarks.scale_run ROWS`
"""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import ray_jobs.runtime.progress
import ray_jobs.stages.collect
from profuser.artifacts.artifact import Manifest
from profuser.recipe.models import Recipe
from profuser.run.fusion_run import FusionRun
from ray_jobs.runtime.cluster import connected
from ray_jobs.stages.collect import collect
from ray_jobs.stages.prepare import prepare
from ray_jobs.stages.rewards import rewards
from ray_jobs.stages.select import select
from tests.benchmarks.memory import Sampler
from tests.benchmarks.pretending import PretendingWorker

SOURCES, TOP_K = ("llama", "neox"), 4


def recipe(folder: Path, file: Path) -> Recipe:
    engine = {"max_model_len": 256}
    return Recipe.model_validate(
        {
            "name": "scale",
            "storage": str(folder / "runs"),
            "corpus": {"path": str(file), "category_field": "skill"},
            "sources": [{"name": name, "model": f"lab://sources/{name}", "engine": engine} for name in SOURCES],
            "target": {"model": f"lab://sources/{SOURCES[0]}", "engine": engine},
            "collect": {"top_k": TOP_K, "generation": {"max_tokens": 8}},
            "rewards": [{"kind": "last_number", "name": "number"}],
        }
    )


def write_rows(file: Path, num_rows: int) -> None:
    with file.open("w") as stream:
        for number in range(num_rows):
            first, second = number % 97, number % 89
            row = {"instruction": f"Task {number}: add {first} and {second}.", "output": f"{first + second}"}
            stream.write(json.dumps(row | {"skill": f"skill {number % 6}"}) + "\n")


def measured(job: Callable[[], Manifest]) -> dict:
    with Sampler() as sampler:
        manifest = job()
    memory = [{"name": s.name, "peak": s.peak, "growth": s.growth} for s in sampler.series if len(s.bytes) > 1]
    return {
        "stage": manifest.stage,
        "rows": manifest.counts["rows"],
        "seconds": manifest.seconds,
        "cpu_seconds": sum(s.cpu_seconds for s in sampler.series),
        "memory": memory,
    }


def main(num_rows: int) -> None:
    ray_jobs.stages.collect.CollectWorker = PretendingWorker
    with tempfile.TemporaryDirectory() as folder, connected():
        file = Path(folder, "rows.jsonl")
        write_rows(file, num_rows)
        run = FusionRun(recipe(Path(folder), file))
        jobs: list[Callable[[], Manifest]] = [lambda: prepare(run)]
        jobs += [lambda s=source: collect(run, s) for source in run.recipe.sources]
        jobs += [lambda: rewards(run, run.recipe.rewards[0]), lambda: select(run)]
        done = [measured(job) for job in jobs]
        disk = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())
    print(json.dumps({"rows": num_rows, "stages": done, "disk_bytes": disk}))


if __name__ == "__main__":
    # Standard output has only the result.
    ray_jobs.runtime.progress.console.file = sys.stderr
    main(int(sys.argv[1]))
