"""Chooses vLLM's parsers of reasoning and tool calls for a served model, by name or by the marks in its chat template.

Whether a parser fits depends on the prompt too: most of vLLM's take an answer for reasoning until it closes it. So the arguments by
which a template turns thinking off are passed to both, and a parser that would read a plain answer as reasoning is not used.
"""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from profuser.corpus.rendering import SWITCHES, generation_prompt, thinking_switches
from profuser.corpus.template_text import with_arguments
from profuser.corpus.thinking import FAMILIES
from profuser.errors import UserError, one_line
from profuser.serving.options import AUTO, NONE

HARMONY = "gpt_oss"
"""`model_type` of the models whose prompts vLLM makes without their template."""
PLAIN = "plain"
"""An answer without reasoning, to try a parser with."""


@dataclass(frozen=True)
class Row:
    """A parser of vLLM's, and the models for which `auto` chooses it.

    Attributes:
        parser: its name; None if vLLM has none for these models.
        marks: texts that their chat template contains, all of them.
        types: `model_type` of their config.json; empty for any.
    """

    parser: str | None
    marks: tuple[str, ...] = ()
    types: tuple[str, ...] = ()


# In both tables the first row that fits decides. Marks were read in the templates in ggml-org/llama.cpp models/templates
# (llama-cpp-python 0.3.36), formats in vLLM's parsers.
REASONING = (
    Row("openai_gptoss", types=(HARMONY,)),
    Row("gemma4", ("<|channel>",)),
    Row("seed_oss", ("<seed:think>",)),
    Row("minimax_m3", ("<mm:think>",)),
    Row("mistral", ("[THINK]",)),
    Row("cohere_command3", ("<|START_THINKING|>",)),
    Row("granite", ("Here is my thought process",)),
    Row(None, ("<think>", "<response>")),  # Granite 3.3: its answers have tags that no parser removes
    Row("minimax_m2", ("<think>", "<minimax:tool_call>")),
    Row("kimi_k2", ("<think>", "<|tool_calls_section_begin|>")),
    Row("glm45", ("<think>", "[gMASK]")),
    Row("olmo3", ("<think>",), ("olmo3",)),
    Row("nemotron_v3", ("<think>",), ("nemotron_h",)),
    Row("step3p5", ("<think>",), ("step3p5",)),
    Row("deepseek_v3", ("</think>", "thinking"), ("deepseek_v3",)),
    Row("qwen3", ("<think>", "enable_thinking")),
    Row("deepseek_r1", ("</think>",)),
)
TOOLS = (
    Row("openai", types=(HARMONY,)),
    Row("gemma4", ("<|tool_call>",)),
    Row("kimi_k2", ("<|tool_calls_section_begin|>",)),
    Row("minimax_m2", ("<minimax:tool_call>",)),
    Row("seed_oss", ("<seed:tool_call>",)),
    Row("cohere_command3", ("<|START_ACTION|>",)),
    Row("apertus", ("<|tools_prefix|>",)),
    Row("deepseek_v3", ("<\uff5ctool\u2581calls\u2581begin\uff5c>", "```json")),
    Row("deepseek_v31", ("<\uff5ctool\u2581calls\u2581begin\uff5c>",)),
    Row("granite", ("<|tool_call|>",)),
    Row("lfm2", ("<|tool_list_start|>",)),
    Row("mistral", ("[TOOL_CALLS]",)),
    Row("llama4_pythonic", types=("llama4",)),
    Row("llama3_json", ("dictionary of argument name",)),
    Row("glm45", ("<arg_key>", "[gMASK]")),
    Row(None, ("<arg_key>",)),
    Row(None, ("<tool_calls>",)),
    Row("granite4", ("<tool_call>", "<|start_of_role|>")),
    Row("step3p5", ("<function=", "<tool_call>"), ("step3p5",)),
    Row("qwen3_coder", ("<function=", "<parameter=", "<tool_call>")),
    Row("hermes", ("<tool_call>", "</tool_call>", "arguments")),
)


@dataclass(frozen=True)
class Parsers:
    """The parsers of a served model.

    Attributes:
        reasoning: name of the reasoning parser; None for none.
        tools: name of the tool parser; None for none.
        arguments: variables of the template, those that turn thinking on or off included, for template and parser.
        why: for each parser, why it was chosen.
    """

    reasoning: str | None
    tools: str | None
    arguments: dict[str, bool | int | float | str]
    why: tuple[str, str]

    def __str__(self) -> str:
        reasoning, tools = self.why
        return f"reasoning parser: {self.reasoning or NONE} ({reasoning}); tool parser: {self.tools or NONE} ({tools})"


def known_parsers() -> tuple[list[str], list[str]]:
    """Returns the names of vLLM's reasoning parsers and tool parsers. Importing vLLM takes seconds."""
    _silence()
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager

    return ReasoningParserManager.list_registered(), ToolParserManager.list_registered()


def _silence() -> None:
    """Keeps vLLM from printing while it is imported."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")


def check_names(reasoning: str, tools: str) -> None:
    """Raises UserError if vLLM has no parser of a name; `auto` and `none` are always known."""
    if {reasoning, tools} <= {AUTO, NONE}:
        return
    for setting, name, known in zip(
        ("reasoning_parser", "tool_parser"), (reasoning, tools), known_parsers(), strict=True
    ):
        if name not in (AUTO, NONE, *known):
            raise UserError(f"{setting}: {name!r} is not known to vLLM; there are: {AUTO}, {NONE}, {', '.join(known)}")


def choose_parsers(
    reasoning: str,
    tools: str,
    tokenizer: Any,
    model_type: str,
    template: str | None,
    arguments: Mapping[str, bool | int | float | str],
) -> Parsers:
    """Chooses the parsers of a model.

    Args:
        reasoning: name of a reasoning parser, `auto` or `none`.
        tools: the same for tool calls.
        tokenizer: the model's tokenizer.
        model_type: of its config.json.
        template: Jinja source of its chat template; None if its tokenizer has none.
        arguments: variables of the template.

    Raises:
        UserError: vLLM has no parser of that name, or it does not fit the model.
    """
    check_names(reasoning, tools)
    _silence()
    # A Mistral tokenizer has no template, but special tokens for its formats.
    text = template or " ".join(map(str, getattr(tokenizer, "all_special_tokens", ())))
    template = None if model_type == HARMONY else template
    known = dict(arguments) | _switches(tokenizer, template, arguments)
    chosen, why = _asked(reasoning, REASONING, text, model_type, "reasoning")
    if fault := chosen and _reasoning_fault(chosen, tokenizer, template, known):
        if reasoning != AUTO:
            raise UserError(f"reasoning_parser: {chosen}: {fault}; set another, or {NONE}")
        chosen, why = None, f"not {chosen}: {fault}"
    called, reason = _asked(tools, TOOLS, text, model_type, "tool calls")
    if fault := called and _tool_fault(called, tokenizer):
        if tools != AUTO:
            raise UserError(f"tool_parser: {called}: {fault}; set another, or {NONE}")
        called, reason = None, f"not {called}: {fault}"
    return Parsers(chosen, called, known, (why, reason))


def _asked(name: str, rows: Sequence[Row], text: str, model_type: str, what: str) -> tuple[str | None, str]:
    """Returns the parser for a setting, and why it is that one."""
    if name != AUTO:
        return (None if name == NONE else name), "as configured"
    for row in rows:
        if all(mark in text for mark in row.marks) and (not row.types or model_type in row.types):
            by = "by its chat template" if row.marks else f"by its type {model_type}"
            return row.parser, by if row.parser else f"vLLM has no parser for its {what}"
    return None, f"its chat template has no {what}" if text else "it has no chat template"


def _switches(
    tokenizer: Any, template: str | None, arguments: Mapping[str, bool | int | float | str]
) -> dict[str, bool]:
    """Returns the variables by which a template turns thinking on and off, at the values that it has by default."""
    if template is None:
        return {}
    text, found = with_arguments(template, arguments), {}
    for name, off in thinking_switches(tokenizer, template).items():
        if isinstance(off, bool) and name not in arguments:
            silent = generation_prompt(tokenizer, with_arguments(template, {**arguments, name: off}))
            found[name] = off if silent == generation_prompt(tokenizer, text) else SWITCHES[name][1]
    return {name: bool(value) for name, value in found.items()}


def _reasoning_fault(
    name: str, tokenizer: Any, template: str | None, arguments: Mapping[str, bool | int | float | str]
) -> str | None:
    """Returns why a reasoning parser does not fit a model; None if it does.

    Where a prompt closes the thinking itself, an answer has none, and the parser must give it back whole.
    """
    from vllm.reasoning import ReasoningParserManager

    try:
        parser = ReasoningParserManager.get_reasoning_parser(name)(tokenizer, chat_template_kwargs=dict(arguments))
    except (RuntimeError, ValueError, KeyError, ImportError) as error:
        return one_line(error)
    prompt = "" if template is None else generation_prompt(tokenizer, with_arguments(template, arguments))
    if not any(family.close in prompt for family in FAMILIES):
        return None
    request: Any = None
    ended = parser.is_reasoning_end(tokenizer.encode(prompt, add_special_tokens=False))
    if ended and parser.extract_reasoning(PLAIN, request) == (None, PLAIN):
        return None
    return "its prompt ends the thinking, and this parser would take whole answers for reasoning"


def _tool_fault(name: str, tokenizer: Any) -> str | None:
    """Returns why a tool parser does not fit a model's tokenizer; None if it does."""
    from vllm.tool_parsers import ToolParserManager

    try:
        ToolParserManager.get_tool_parser(name)(tokenizer, None)
    except (RuntimeError, ValueError, KeyError, ImportError) as error:
        return one_line(error)
    return None
