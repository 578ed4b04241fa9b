"""Completes the settings of a served model from its files, and checks them, before its engine starts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from profuser.errors import UserError, one_line
from profuser.models.formats import quantization, quantization_name
from profuser.models.reference import ModelRef
from profuser.recipe.template import JinjaTemplate
from profuser.serving.adapters import Adapter, read_adapter
from profuser.serving.options import AUTO, NONE, ServeConfig, ServedModel
from profuser.serving.parsers import Parsers, check_names, choose_parsers

STORED_ONLY = ("awq", "auto_awq", "awq_marlin", "gptq", "auto_gptq", "gptq_marlin", "compressed-tensors")
"""Quantization methods for which the checkpoint must have been made."""


def resolve_serving(config: ServeConfig) -> tuple[ServeConfig, list[str]]:
    """Completes the settings of all served models.

    Returns:
        The settings, and a line on each model: its parsers, and its adapters.

    Raises:
        UserError: a setting is not known to vLLM, or does not fit its model.
    """
    models, lines = [], []
    for each in config.models:
        model, parsers = resolve_model(each)
        models.append(model)
        lines.append(f"{each.name}: {parsers}")
        for adapter in read_adapters(model):
            lines.append(f"{adapter.name}: a LoRA adapter of rank {adapter.rank} on {each.name}")
            lines += [adapter.note] if adapter.note else []
    return config.model_copy(update={"models": tuple(models)}), lines


def check_known(model: ServedModel) -> None:
    """Raises UserError if vLLM does not know a parser or a quantization method of a model; it needs none of its files."""
    where = f"serve: {model.name}"
    try:
        check_names(model.reasoning_parser, model.tool_parser)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    if model.quantization is not None:
        from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS as KNOWN

        if model.quantization not in KNOWN:
            raise UserError(
                f"{where}: quantization: {model.quantization!r} is not known to vLLM; there are: {', '.join(KNOWN)}"
            )


def resolve_model(model: ServedModel) -> tuple[ServedModel, Parsers]:
    """Returns a model's settings with the text of its template and with the names of its parsers, and why it is those.

    Raises:
        UserError: see `resolve_serving`.
    """
    where, ref = f"serve: {model.name}", ModelRef(model.model, model.revision)
    check_known(model)
    config = ref.config(where)
    _check_quantization(where, model.quantization, config)
    template = None if model.chat_template is None else read_template(model.chat_template, where)
    tokenizer, text = _tokenizer(ref, model), template
    if text is None and getattr(tokenizer, "chat_template", None):
        text = tokenizer.get_chat_template()
    model_type = str(config.get("model_type", ""))
    try:
        parsers = choose_parsers(
            model.reasoning_parser, model.tool_parser, tokenizer, model_type, text, model.template_arguments
        )
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    found = {"reasoning_parser": parsers.reasoning or NONE, "tool_parser": parsers.tools or NONE}
    return model.model_copy(
        update={**found, "chat_template": template, "template_arguments": parsers.arguments}
    ), parsers


def read_adapters(model: ServedModel) -> list[Adapter]:
    """Reads and checks a model's adapters; raises UserError, see `read_adapter`."""
    ref = ModelRef(model.model, model.revision)
    return [read_adapter(name, location, ref) for name, location in model.adapters.items()]


def read_template(given: str, where: str) -> str:
    """Returns the source of a chat template that is given as such or as a file.

    Raises:
        UserError: there is no such file, or it is not a Jinja template.
    """
    if "{" not in given:
        try:
            given = Path(given).expanduser().read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            why = getattr(error, "strerror", None) or one_line(error)
            raise UserError(f"{where}: chat_template: {given}: neither a Jinja source nor a file: {why}") from None
    try:
        return JinjaTemplate(kind="jinja", text=given).text
    except ValidationError as error:
        raise UserError(f"{where}: chat_template: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from None


def _tokenizer(ref: ModelRef, model: ServedModel) -> Any:
    """Returns the model's tokenizer; None if Transformers cannot read it and no parser is named that needs it."""
    from transformers import AutoTokenizer

    options: dict[str, Any] = {"revision": model.revision, "trust_remote_code": model.trust_remote_code}
    try:
        return AutoTokenizer.from_pretrained(ref.local(weights=False), **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        if {model.reasoning_parser, model.tool_parser} <= {AUTO, NONE}:
            return None
        raise UserError(f"serve: {model.name}: its tokenizer cannot be read: {one_line(error)}") from None


def _check_quantization(where: str, method: str | None, config: Mapping[str, Any]) -> None:
    """Raises UserError if the checkpoint's weights are not stored as the method needs them."""
    if method is None:
        return
    stored = quantization(config)
    if stored is None and method in STORED_ONLY:
        raise UserError(
            f"{where}: quantization: {method} reads weights that were quantized with it, and this checkpoint's are not; name a "
            "checkpoint that is, or a method that quantizes when it loads, such as fp8"
        )
    if stored is not None and (found := str(stored.get("quant_method", ""))) and not _fits(method, found):
        raise UserError(
            f"{where}: quantization: the checkpoint is quantized with {quantization_name(stored)}, not with {method}; leave it out"
        )


def _fits(method: str, stored: str) -> bool:
    """Returns whether a method reads weights of another name: `awq_marlin` those of `awq`."""
    short = stored.replace("compressed_tensors", "compressed-tensors")
    return short in method or method in short or method in ("moe_wna16", "humming", "inc")
