"""Renders and tokenizes prompts and responses: the same response bytes for every model, whatever its template and tokenizer.

The template's special tokens are tokens; those that a message or response spells out are text (see `special_tokens`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from profuser.corpus.special_tokens import Commands, commands, encode, protect
from profuser.corpus.turns import Message
from profuser.errors import UserError
from profuser.recipe.models import JinjaTemplate, TemplateConfig

PROBE = "probe"


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of a prompt and of its response, the end-of-turn token included."""

    prompt_ids: list[int]
    response_ids: list[int]


def encode_example(
    tokenizer: Any, messages: Sequence[Message], response: str, template: TemplateConfig
) -> EncodedExample:
    """Tokenizes one example, see `encode_examples`."""
    return encode_examples(tokenizer, [(messages, response)], template)[0]


def encode_examples(
    tokenizer: Any, examples: Sequence[tuple[Sequence[Message], str]], template: TemplateConfig
) -> list[EncodedExample]:
    """Tokenizes prompts and their responses under a template, in one batch.

    A whole conversation is tokenized as the model would have seen it in training; if that begins with the prompt's tokens, the rest
    is the response. Otherwise (a merge across the boundary; a template that changes the answer or puts more than a space before it,
    such as Qwen3's empty thinking) the response is tokenized separately, as continued text. In both cases its tokens spell the
    response's bytes, possibly after one space that the template or tokenizer adds by convention.

    Raises:
        UserError: the template refuses a conversation, or there is no template.
    """
    if not examples:
        return []
    end, strings = end_token_id(tokenizer, template), template_commands(tokenizer, template)
    asked = [_protected(messages, strings) for messages, _ in examples]
    responses = [protect(response, strings) for _, response in examples]
    prompts = _render_all(tokenizer, asked, template, True)
    turns = [[*messages, Message("assistant", text)] for messages, text in zip(asked, responses, strict=True)]
    fulls = _render_all(tokenizer, turns, template, False)
    leads = [
        next((lead for lead in ("", " ") if full.startswith(prompt + lead + response)), None)
        for prompt, full, response in zip(prompts, fulls, responses, strict=True)
    ]
    texts = [p + (lead or "") + r for p, lead, r in zip(prompts, leads, responses, strict=True)]
    ids = encode(tokenizer, [*prompts, *texts], strings)
    out = []
    for prompt, full, lead, response in zip(ids[: len(prompts)], ids[len(prompts) :], leads, responses, strict=True):
        follows = lead is not None and full[: len(prompt)] == prompt
        rest = full[len(prompt) :] if follows else encode(tokenizer, [(lead or "") + response], strings)[0]
        out.append(EncodedExample(prompt, [*rest, end]))
    return out


def render_prompt(tokenizer: Any, messages: Sequence[Message], template: TemplateConfig) -> list[int]:
    """Returns the token ids of a prompt, up to the start of the response."""
    strings = template_commands(tokenizer, template)
    return encode(tokenizer, [_render(tokenizer, _protected(messages, strings), template, True)], strings)[0]


def template_commands(tokenizer: Any, template: TemplateConfig) -> Commands:
    """Returns the strings that are commands to a tokenizer under a template."""
    key: Any = template
    return _template_commands(tokenizer, key)


@lru_cache(maxsize=32)
def _template_commands(tokenizer: Any, template: Any) -> Commands:
    turns = [Message(role, PROBE) for role in ("user", "assistant", "user")]
    try:
        # The answer is not the last turn: many templates insert thinking before a last answer.
        return commands(tokenizer, _render(tokenizer, turns, template, False))
    except UserError:
        # A reward model's template may accept only one question and its answer.
        return commands(tokenizer, _render(tokenizer, turns[:2], template, False))


def _protected(messages: Sequence[Message], strings: Commands) -> list[Message]:
    return [Message(message.role, protect(message.content, strings)) for message in messages]


def end_token_id(tokenizer: Any, template: TemplateConfig) -> int:
    """Returns the token that ends an assistant turn: the template's first special token after it, else the end of sequence.

    Raises:
        UserError: neither exists.
    """
    key: Any = template
    return _end_token_id(tokenizer, key)


@lru_cache(maxsize=32)
def _end_token_id(tokenizer: Any, template: Any) -> int:
    turns = [Message("user", PROBE), Message("assistant", PROBE)]
    tail = _render(tokenizer, turns, template, False).rpartition(PROBE)[2]
    special = {*tokenizer.all_special_ids, *(i for i, added in tokenizer.added_tokens_decoder.items() if added.special)}
    if tokenizer.bos_token_id != tokenizer.eos_token_id:
        # A template may already begin the next turn with it.
        special.discard(tokenizer.bos_token_id)
    for token in tokenizer.encode(tail, add_special_tokens=False):
        if token in special:
            return token
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{tokenizer.name_or_path}: the template ends a turn with no special token, and there is no eos_token"
        )
    return tokenizer.eos_token_id


def _render(tokenizer: Any, messages: Sequence[Message], template: TemplateConfig, add_generation_prompt: bool) -> str:
    turns = [{"role": message.role, "content": message.content} for message in messages]
    is_shared = isinstance(template, JinjaTemplate)
    if not is_shared and not tokenizer.chat_template:
        raise UserError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template; set one for all models with "
            "template: {kind: jinja, text: ...}"
        )
    try:
        if is_shared:
            return _compiled(template.text).render(
                messages=turns,
                add_generation_prompt=add_generation_prompt,
                bos_token=tokenizer.bos_token or "",
                eos_token=tokenizer.eos_token or "",
            )
        return tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=add_generation_prompt)
    except jinja2.TemplateError as error:
        where = "template.text" if is_shared else f"{tokenizer.name_or_path}: its chat template"
        roles = ", ".join(message.role for message in messages)
        raise UserError(f"{where}: {' '.join(str(error).split())} (for turns of {roles})") from None


def _render_all(
    tokenizer: Any, conversations: Sequence[Sequence[Message]], template: TemplateConfig, add_generation_prompt: bool
) -> list[str]:
    """Renders conversations as text. A model's own template gets one call per batch: its set-up costs as much as a row."""
    if not isinstance(template, JinjaTemplate) and tokenizer.chat_template:
        batch = [[message._asdict() for message in messages] for messages in conversations]
        try:
            return tokenizer.apply_chat_template(batch, tokenize=False, add_generation_prompt=add_generation_prompt)
        except jinja2.TemplateError:
            pass  # Rendered one by one below, to name the conversation at fault.
    return [_render(tokenizer, messages, template, add_generation_prompt) for messages in conversations]


@lru_cache(maxsize=8)
def _compiled(text: str) -> jinja2.Template:
    return ImmutableSandboxedEnvironment().from_string(text)
