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
    reasoning_parser: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL=]NAME",
            help="vLLM's parser that separates reasoning from answers (qwen3, deepseek_r1, openai_gptoss ...); auto: by the "
            "model's chat template and type; none. An unknown name lists all. Repeatable.",
            show_default="auto",
        ),
    ] = None,
    tool_parser: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL=]NAME",
            help="vLLM's parser of tool calls (hermes, llama3_json, mistral, openai ...), auto or none. Repeatable.",
            show_default="auto",
        ),
    ] = None,
    chat_template: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL=]FILE",
            help="Chat template, a Jinja file. Default: what the run was trained with; else the tokenizer's. Repeatable.",
        ),
    ] = None,
    template_arguments: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL=]MAPPING",
            help="Variables of the template, e.g. '{enable_thinking: false}'; a request may override them. Repeatable.",
        ),
    ] = None,
    lora: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL=]NAME=FOLDER",
            help="Serve a LoRA adapter of a model, of the first by default, under its own NAME. Repeatable.",
        ),
    ] = None,
    quantization: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[MODEL=]METHOD",
            help="Quantize the weights when they are loaded (fp8, bitsandbytes ...). Default: as stored. Repeatable.",
        ),
    ] = None,
    write_config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Only write a config file for `serve deploy` and KubeRay.")
    ] = None,
) -> None:
    """Serve models behind an OpenAI-compatible API. Includes a playground web page; runs until Ctrl-C.

    Settings with [MODEL=] apply to all served models, or to the one named: --tool-parser hermes --tool-parser target=none.
    """
    from profuser.serving.resolve import check_known, resolve_serving
    from ray_jobs.runtime.cluster import connected
    from ray_jobs.serving.app import check_serving, serve_file, start_server, wait_until_interrupted
    from ray_jobs.serving.models import serve_config
    from ray_jobs.serving.settings import with_model_settings

    replicas: dict[str, Any] = {"min_replicas": min_replicas, "max_replicas": max(min_replicas, max_replicas)}
    replicas |= {} if num_gpus is None else {"num_gpus": num_gpus}
    settings = {"insecure": insecure, "keys_file": str(keys.absolute()) if keys else None}
    arguments = (names or (), storage, beside or (), models or (), served_name, replicas, settings)
    given = {
        "reasoning_parser": reasoning_parser or (),
        "tool_parser": tool_parser or (),
        "chat_template": chat_template or (),
        "template_arguments": template_arguments or (),
        "adapters": lora or (),
        "quantization": quantization or (),
    }
    config = with_model_settings(serve_config(*arguments), given)
    for model in config.models:
        check_known(model)
    if write_config:
        write_config.write_text(serve_file(config, host, port))
        print_line(f"written to {write_config}; deploy it with: serve deploy {write_config}")
        return
    with connected():
        config = with_model_settings(serve_config(*arguments), given)  # with the cluster's GPUs
        check_serving(config, host)
        config, lines = resolve_serving(config)
        for line in lines:
            print_line(line)
        url = start_server(config, host, port)
        names = [name for model in config.models for name in (model.name, *model.adapters)]
        print_line(f"{', '.join(names)}: {url} (Ctrl-C stops it)")
        print_line(f"playground: {url.removesuffix('v1')}")
        wait_until_interrupted()
