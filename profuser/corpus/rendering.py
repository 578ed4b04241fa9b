"""The Jinja source of a model's template under the recipe's settings, and its rendering by Transformers.

Training, collection, judging, benchmarks, serving and export all render this source: their prompts have the same bytes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jinja2

from profuser.corpus.template_text import mentions, with_arguments, with_date, with_ending
from profuser.corpus.thinking import FAMILIES, MARKS, Markers, closing, opened
from profuser.corpus.tool_calls import RESULT
from profuser.corpus.tool_turns import Turns, as_turns, forms, left_out, probes, uses_tools
from profuser.corpus.turns import Message
from profuser.errors import UserError, one_line
from profuser.recipe.template import JinjaTemplate, TemplateConfig

PROBE = "probe"
SWITCHES = {"enable_thinking": (False, True), "thinking": (False, True), "thinking_budget": (0, -1)}
"""Variables by which templates turn thinking off and on, with both values."""
THINKS_OTHERWISE = "its thinking after a tool's result differs from that after a question"
TEMPLATE_ERRORS = (jinja2.TemplateError, TypeError, ValueError, LookupError, AttributeError)
"""Errors of a template that does not accept a conversation."""


class Refusal(NamedTuple):
    """Reason why a template does not accept a conversation."""

    reason: str


@dataclass(frozen=True)
class ChatTexts:
    """The Jinja source of a model's template, with the recipe's settings written into it."""

    asking: str
    """Its generation prompt is the one that the model answers."""
    answering: str
    """Its generation prompt is the one that a ground truth or an answer without thinking follows: no thinking is open."""
    family: Markers | None
    """Family whose thinking the generation prompt of `asking` opens."""


def chat_texts(tokenizer: Any, template: TemplateConfig) -> ChatTexts:
    """Returns the source of a model's template under the recipe's settings.

    Raises:
        UserError: there is no template.
    """
    if isinstance(template, JinjaTemplate):
        # A template for all models may name a token that a tokenizer lacks.
        missing = [name for name in ("bos_token", "eos_token") if mentions(template.text, name)]
        absent = {name: "" for name in missing if getattr(tokenizer, name) is None}
        return _chat_texts(tokenizer, template.text, _settings(template, absent))
    if not tokenizer.chat_template:
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template; set one for all models with "
            "template: {kind: jinja, text: ...}"
        )
    try:
        text = tokenizer.get_chat_template()
    except ValueError as error:
        raise UserError(f"{tokenizer.name_or_path}: its chat template: {one_line(error)}") from None
    return _chat_texts(tokenizer, text, _settings(template, {}))


class _Settings(NamedTuple):
    arguments: tuple[tuple[str, bool | int | float | str], ...]
    thinks: bool
    day: str | None


def _settings(template: TemplateConfig, defaults: dict[str, str]) -> _Settings:
    arguments = tuple((defaults | template.arguments).items())
    return _Settings(arguments, template.thinking != "off", template.date)


@lru_cache(maxsize=64)
def _chat_texts(tokenizer: Any, text: str, settings: _Settings) -> ChatTexts:
    base = with_date(text, settings.day) if settings.day else text
    off = thinking_switches(tokenizer, base)
    asking = with_arguments(base, dict(settings.arguments) if settings.thinks else off | dict(settings.arguments))
    prompt = generation_prompt(tokenizer, asking)
    required = next((f for f in FAMILIES if f.required and f.close in text and not prompt.endswith(f.close)), None)
    family = opened(prompt)
    answering = asking
    if family and off:
        answering = with_arguments(base, dict(settings.arguments) | off)
    left = generation_prompt(tokenizer, answering)
    if still := opened(left):
        answering = with_ending(answering, closing(left, still))
    elif required:
        answering = with_ending(answering, required.empty)
    elif not settings.thinks and not off and (silent := next((f for f in FAMILIES if f.close in text), None)):
        # Nothing turns the thinking of this model off but an empty one.
        answering = with_ending(answering, silent.empty)
    return ChatTexts(asking if settings.thinks else answering, answering, family if settings.thinks else None)


def thinking_switches(tokenizer: Any, text: str) -> dict[str, bool | int]:
    """Returns the variables that turn a template's thinking off, with their values; not those that it only spells in a text."""

    def asked(name: str, value: bool | int) -> str | Refusal:
        return render(tokenizer, [Message("user", PROBE)], with_arguments(text, {name: value}), True)

    found = {name: values for name, values in SWITCHES.items() if mentions(text, name)}
    return {name: off for name, (off, on) in found.items() if asked(name, off) != asked(name, on)}


def generation_prompt(tokenizer: Any, text: str) -> str:
    """Returns what a template writes after a question; nothing if it accepts none without an answer, as a judge's may."""
    rendered = render(tokenizer, [Message("user", PROBE)], text, True)
    return "" if isinstance(rendered, Refusal) else rendered.rpartition(PROBE)[2]


def render_all(
    tokenizer: Any,
    conversations: Sequence[Sequence[Message]],
    text: str,
    add_generation_prompt: bool,
    needs_all: bool = True,
) -> list[str | Refusal]:
    """Renders conversations in one call: its set-up costs as much as a row. If that fails, one by one, to find those at fault.

    Those with tools are rendered one by one. Arguments as for `render`.
    """
    plain = [messages for messages in conversations if not uses_tools(messages)]
    options = {"chat_template": text, "tokenize": False, "add_generation_prompt": add_generation_prompt}
    try:
        found = tokenizer.apply_chat_template([as_turns(messages) for messages in plain], **options) if plain else []
    except TEMPLATE_ERRORS:
        found = [render(tokenizer, messages, text, add_generation_prompt, needs_all) for messages in plain]
    else:
        found = [
            _whole(tokenizer, messages, text, add_generation_prompt, each) if needs_all else each
            for messages, each in zip(plain, found, strict=True)
        ]
    rest = iter(found)
    return [
        render(tokenizer, messages, text, add_generation_prompt, needs_all) if uses_tools(messages) else next(rest)
        for messages in conversations
    ]


def render(
    tokenizer: Any, messages: Sequence[Message], text: str, add_generation_prompt: bool, needs_all: bool = True
) -> str | Refusal:
    """Renders a conversation with a template's source; or returns why that does not accept it.

    With tools, it is rendered in the first of the `forms` in which the template writes all calls and results.

    Args:
        tokenizer: the model's tokenizer.
        messages: the conversation.
        text: the template's source.
        add_generation_prompt: whether it ends with the beginning of an answer.
        needs_all: whether the template must write every turn; else it may leave out those without tools.
    """
    options = {"chat_template": text, "tokenize": False, "add_generation_prompt": add_generation_prompt}
    reasons = []
    for turns, probed in zip(forms(messages), forms(probes(messages)), strict=True):
        try:
            if not uses_tools(messages):
                rendered = tokenizer.apply_chat_template(turns, **options)
                return _whole(tokenizer, messages, text, add_generation_prompt, rendered) if needs_all else rendered
            fault = _tools_fault(tokenizer, probed, text, add_generation_prompt, needs_all)
            if not fault:
                return tokenizer.apply_chat_template(turns, **options)
            reasons.append(fault)
        except TEMPLATE_ERRORS as error:
            reasons.append(one_line(error) or type(error).__name__)
    # The second form lacks what a template may dislike in the first.
    return _refusal(THINKS_OTHERWISE if THINKS_OTHERWISE in reasons else reasons[:2][-1], messages)


def _whole(
    tokenizer: Any, messages: Sequence[Message], text: str, add_generation_prompt: bool, rendered: str
) -> str | Refusal:
    """Returns a rendered conversation without tools; or a refusal if the template leaves out a turn of these roles."""
    dropped = _dropped(tokenizer, tuple(message.role for message in messages), text, add_generation_prompt)
    return _refusal(f"it leaves out {dropped}", messages) if dropped else rendered


@lru_cache(maxsize=4096)
def _dropped(tokenizer: Any, roles: tuple[str, ...], text: str, add_generation_prompt: bool) -> str | None:
    probed = as_turns(probes([Message(role, PROBE) for role in roles]))
    options = {"chat_template": text, "tokenize": False, "add_generation_prompt": add_generation_prompt}
    try:
        return left_out(probed, tokenizer.apply_chat_template(probed, **options))
    except TEMPLATE_ERRORS:
        return None


def _refusal(reason: str, messages: Sequence[Message]) -> Refusal:
    return Refusal(f"{reason} (for turns of {', '.join(message.role for message in messages)})")


def _tools_fault(tokenizer: Any, probed: Turns, text: str, add_generation_prompt: bool, needs_all: bool) -> str | None:
    """Returns what a template does wrong with turns of `probes`; None if it writes them, and no thinking that others lack."""
    options = {"chat_template": text, "tokenize": False, "add_generation_prompt": add_generation_prompt}
    rendered = tokenizer.apply_chat_template(probed, **options)
    if missing := left_out(probed, rendered, only_tools=not needs_all):
        return f"it leaves out {missing}"
    if add_generation_prompt and probed[-1]["role"] == RESULT and any(mark in text for mark in MARKS):
        # The settings of thinking are made for a prompt that ends with a question.
        asked, answered = generation_prompt(tokenizer, text), rendered.rpartition(probed[-1]["content"])[2]
        if any(asked.count(mark) != answered.count(mark) for mark in MARKS):
            return THINKS_OTHERWISE
    return None


def template_name(tokenizer: Any, is_shared: bool) -> str:
    """Returns how messages name a template."""
    return "template.text" if is_shared else f"{tokenizer.name_or_path}: its chat template"
