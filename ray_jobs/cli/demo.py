"""Implements `profuser demo`: fuses the models of a recipe, then asks the served result one question."""

import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor

from profuser.recipe.models import Recipe
from profuser.run.fusion_run import FusionRun
from profuser.serving.options import ServeConfig
from ray_jobs.pipeline.pipeline import run_pipeline
from ray_jobs.runtime.cluster import connected
from ray_jobs.runtime.progress import format_clock, print_line
from ray_jobs.serving.app import ask, start_server, stop_server
from ray_jobs.serving.models import fused_model
from ray_jobs.stages.report import print_report


def run_demo(recipe: Recipe, question: str | None) -> None:
    """Runs a recipe, prints its table, serves the fused model and prints its answer to a question.

    Without a question, asks the last one of the first held-out row.

    Serving starts as soon as the model is fused, so that it is loaded when the last stage ends.
    """
    start = time.monotonic()
    # Ray is shut down first: a server that is still starting then fails at once.
    with ThreadPoolExecutor(1) as beside, connected():
        serving: list[Future[str]] = []

        def serve(stage: str, run: FusionRun) -> None:
            if stage == "fuse":
                serving.append(beside.submit(_serve, run, recipe.name))
            if stage == "report":
                print_report(run)

        run = run_pipeline(recipe, after_stage=serve)
        url = serving[0].result()
        question = question or run.heldout().read_shard(0)["messages"][0].as_py()[-1]["content"]
        answer = ask(url, recipe.name, question, recipe.evaluate.generation.max_tokens)
        stop_server()
    print_line(f"\nThe fused model, served at {url}:\n  > {question}\n  {answer.strip()}")
    print_line(
        f"\n{format_clock(time.monotonic() - start)} in all. To serve it: profuser serve {recipe.name} --insecure"
    )


def _serve(run: FusionRun, name: str) -> str:
    """Serves a run's fused model on a free port of this machine; returns the URL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # No key for a single question, so only clients on this machine may connect.
    served = ServeConfig(models=(fused_model(run, name),), insecure=True)
    return start_server(served, "127.0.0.1", port)
