"""`profuser demo`: the main job in the laboratory, then one question to the served model."""

import socket
import time

from profuser.recipe.models import Recipe
from profuser.run import FusionRun
from ray_jobs.cluster import connected, total_gpus
from ray_jobs.pipeline import finished_model, run_pipeline
from ray_jobs.progress import clock, console
from ray_jobs.report import print_report
from ray_jobs.serve import ServeOptions, ask, start_server, stop_server


def run_demo(recipe: Recipe, question: str) -> None:
    """Runs the demo recipe, prints its table, serves the fused model and prints its answer."""
    start = time.monotonic()
    with connected():
        run = run_pipeline(recipe)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        options = serve_options(run, "127.0.0.1", port, recipe.name, 1)
        url = start_server(options)
        answer = ask(url, options.served_model_name, question, max_tokens=64)
        stop_server()
    print_report(run)
    console.print(f"\nThe fused model, served at {url}:\n  > {question}\n  {answer.strip()}", markup=False)
    console.print(
        f"\n{clock(time.monotonic() - start)} in all. To serve it: profuser serve {recipe.name}", markup=False
    )


def serve_options(run: FusionRun, host: str, port: int, name: str, num_replicas: int) -> ServeOptions:
    """How a run's fused model is served: with the engine settings of its target."""
    engine = run.recipe.target.engine
    return ServeOptions(
        model=str(finished_model(run)),
        served_model_name=name,
        host=host,
        port=port,
        num_replicas=num_replicas,
        num_gpus=float(engine.tensor_parallel_size) if total_gpus() else 0.0,
        dtype=engine.dtype,
        max_model_len=engine.max_model_len,
        tensor_parallel_size=engine.tensor_parallel_size,
        gpu_memory_utilization=engine.gpu_memory_utilization,
        kv_cache_gib=engine.kv_cache_gib,
    )
