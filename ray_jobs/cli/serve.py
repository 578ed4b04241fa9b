"""Defines `profuser serve`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from ray_jobs.cli.options import Storage
from ray_jobs.runtime.progress import print_line


def serve(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="RUN", help="Runs whose fused models are served.")
    ] = None,
    storage: Storage = "runs",
    beside: Annotated[
        list[str] | None,
        typer.Option(
            "--with", metavar="NAME", help="Also serve from the first run: target, a source or all. Repeatable."
        ),
    ] = None,
    models: Annotated[
        list[str] | None,
        typer.Option(
            "--model",
            metavar="NAME=LOCATION",
            help="Also serve this model as NAME: a folder, URI, Hub name or models:/NAME@ALIAS. Repeatable.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8000,
    served_name: Annotated[
        str | None, typer.Option("--name", help="Name of the first run's model in the API; by default the run's.")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="YAML file of API keys. Without it: PROFUSER_API_KEYS, comma-separated.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Require no key; accept only local clients.")] = False,
    min_replicas: Annotated[int, typer.Option(min=0, help="Minimum replicas per model; 0: none while idle.")] = 1,
    max_replicas: Annotated[int, typer.Option(min=1, help="Maximum replicas per model.")] = 1,
    num_gpus: Annotated[
        float | None,
        typer.Option(min=0, help="GPUs per replica. Default: what its parallelism needs, 0 without GPUs."),
    ] = None,
    write_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Only write a config file for `serve deploy` and KubeRay.")
    ] = None,
) -> None:
    """Serve models behind an OpenAI-compatible API. Includes a playground web page; runs until Ctrl-C."""
    from ray_jobs.runtime.cluster import connected
    from ray_jobs.serving.app import check_serving, serve_file, start_server, wait_until_interrupted
    from ray_jobs.serving.models import serve_config

    replicas: dict[str, Any] = {"min_replicas": min_replicas, "max_replicas": max(min_replicas, max_replicas)}
    replicas |= {} if num_gpus is None else {"num_gpus": num_gpus}
    settings = {"insecure": insecure, "keys_file": str(keys.absolute()) if keys else None}
    arguments = (names or (), storage, beside or (), models or (), served_name, replicas, settings)
    if write_config:
        write_config.write_text(serve_file(serve_config(*arguments), host, port))
        print_line(f"written to {write_config}; deploy it with: serve deploy {write_config}")
        return
    with connected():
        config = serve_config(*arguments)
        check_serving(config, host)
        url = start_server(config, host, port)
        print_line(f"{', '.join(model.name for model in config.models)}: {url} (Ctrl-C stops it)")
        print_line(f"playground: {url.removesuffix('v1')}")
        wait_until_interrupted()
