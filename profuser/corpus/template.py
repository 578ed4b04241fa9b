"""Renders and tokenizes prompts and responses: the same response bytes for every model, whatever its template and tokenizer.

Every place that renders uses one Jinja source per model (`chat_texts`), and Transformers renders it. The template's special tokens
are tokens; those that a message or response spells out are text (see `special_tokens`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from profuser.corpus.rendering import PROBE, ChatTexts, Refusal, chat_texts, render, render_all, template_name
from profuser.corpus.special_tokens import Commands, commands, encode, protect
from profuser.corpus.thinking import FAMILIES, MARKS, begins_with_thinking, is_inside, opened, unopened
from profuser.corpus.tool_calls import CALLS, RESULT, canonical
from profuser.corpus.tool_turns import protected
from profuser.corpus.turns import Message
from profuser.errors import UserError
from profuser.recipe.template import JinjaTemplate, TemplateConfig


@dataclass(frozen=True)
class EncodedExample:
    """Token ids of a prompt and of its response, the end-of-turn token included."""

    prompt_ids: list[int]
    response_ids: list[int]


def encode_example(
    tokenizer: Any, messages: Sequence[Message], response: str, template: TemplateConfig
) -> EncodedExample:
    """Tokenizes one example, see `encode_examples`; raises UserError if the template does not accept it."""
    (example,) = encode_examples(tokenizer, [(messages, response)], template)
    return _accepted(tokenizer, example, template)


def encode_examples(
    tokenizer: Any,
    examples: Sequence[tuple[Sequence[Message], str]],
    template: TemplateConfig,
    generated: Sequence[bool] | None = None,
) -> list[EncodedExample | Refusal]:
    """Tokenizes prompts and their responses under a template, in one batch.

    A whole conversation is tokenized as the model would have seen it in training; if that begins with the prompt's tokens, the rest
    is the response. Otherwise (a merge across the boundary; a template that changes the answer or puts more than a space before it,
    such as Qwen3's empty thinking) the response is tokenized separately, as continued text. In both cases its tokens spell the
    response's bytes, possibly after one space that the template or tokenizer adds by convention.

    A prompt never leaves thinking open that its response does not continue: an open one is closed, or left out before a response
    that begins with its own. Only an answer that a model generated (`generated`) may continue thinking that the prompt opens.

    Returns:
        One entry per example, in order; a refusal where the template does not accept the conversation.

    Raises:
        UserError: there is no template, or it accepts not even a question and its answer.
    """
    if not examples:
        return []
    texts, end, strings = (
        chat_texts(tokenizer, template),
        end_token_id(tokenizer, template),
        template_commands(tokenizer, template),
    )
    asked = [protected(messages, strings) for messages, _ in examples]
    responses = [protect(response, strings) for _, response in examples]
    prompts = _prompts(tokenizer, asked, [r for _, r in examples], texts, generated or [False] * len(examples))
    turns = [[*messages, Message("assistant", text)] for messages, text in zip(asked, responses, strict=True)]
    fulls = render_all(tokenizer, turns, texts.answering, False, needs_all=False)
    out: list[Any] = [
        next((e for e in pair if isinstance(e, Refusal)), None) for pair in zip(prompts, fulls, strict=True)
    ]
    places = [place for place, refusal in enumerate(out) if refusal is None]
    accepted = [(str(prompts[p]), str(fulls[p]), responses[p]) for p in places]
    for place, example in zip(places, _encode(tokenizer, accepted, strings, end), strict=True):
        out[place] = example
    return out


def _encode(
    tokenizer: Any, rendered: Sequence[tuple[str, str, str]], strings: Commands, end: int
) -> list[EncodedExample]:
    """Tokenizes rendered prompts, whole conversations and responses."""
    leads = [
        next((lead for lead in ("", " ") if full.startswith(prompt + lead + response)), None)
        for prompt, full, response in rendered
    ]
    texts = [p + (lead or "") + r for (p, _, r), lead in zip(rendered, leads, strict=True)]
    ids = encode(tokenizer, [*(prompt for prompt, _, _ in rendered), *texts], strings)
    out = []
    for prompt, full, lead, (_, _, response) in zip(ids[: len(texts)], ids[len(texts) :], leads, rendered, strict=True):
        follows = lead is not None and full[: len(prompt)] == prompt
        rest = full[len(prompt) :] if follows else encode(tokenizer, [(lead or "") + response], strings)[0]
        out.append(EncodedExample(prompt, [*rest, end]))
    return out


def _prompts(
    tokenizer: Any,
    asked: Sequence[Sequence[Message]],
    responses: Sequence[str],
    texts: ChatTexts,
    generated: Sequence[bool],
) -> list[str | Refusal]:
    """Renders the prompt of each response, see `encode_examples`."""
    prompts = render_all(tokenizer, asked, texts.answering, True)
    for place, (response, is_generated) in enumerate(zip(responses, generated, strict=True)):
        prompt = prompts[place]
        if isinstance(prompt, Refusal):
            continue
        family = next((f for f in FAMILIES if is_inside(response, f)), None) if is_generated else None
        if begins_with_thinking(response) or family:
            prompt = str(render(tokenizer, asked[place], texts.asking, True))
            prompts[place] = (
                unopened(prompt) if not family else prompt if opened(prompt) else f"{prompt}{family.open}\n"
            )
    return prompts


def render_prompt(tokenizer: Any, messages: Sequence[Message], template: TemplateConfig) -> list[int]:
    """Returns the token ids of the prompt that the model answers; raises UserError if the template does not accept it."""
    (prompt,) = render_prompts(tokenizer, [messages], template)
    return _accepted(tokenizer, prompt, template)


def render_prompts(
    tokenizer: Any, conversations: Sequence[Sequence[Message]], template: TemplateConfig
) -> list[list[int] | Refusal]:
    """Returns the token ids of the prompts that the model answers, up to the start of the answer; or why one is refused."""
    texts, strings = chat_texts(tokenizer, template), template_commands(tokenizer, template)
    prompts = render_all(tokenizer, [protected(m, strings) for m in conversations], texts.asking, True)
    ids = iter(encode(tokenizer, [p for p in prompts if not isinstance(p, Refusal)], strings))
    return [p if isinstance(p, Refusal) else next(ids) for p in prompts]


def template_commands(tokenizer: Any, template: TemplateConfig) -> Commands:
    """Returns the strings that are commands to a tokenizer under a template."""
    return _template_commands(tokenizer, chat_texts(tokenizer, template).answering)


@lru_cache(maxsize=32)
def _template_commands(tokenizer: Any, text: str) -> Commands:
    turns = [Message(role, PROBE) for role in ("user", "assistant", "user")]
    # The answer is not the last turn: many templates insert thinking before a last answer. A reward model's template may accept
    # only one question and its answer.
    rendered = [render(tokenizer, part, text, False) for part in (turns, turns[:2], turns[:1])]
    written = next((each for each in rendered if isinstance(each, str)), "")
    for mark in MARKS:
        written = written.replace(mark, "")
    return commands(tokenizer, " ".join((written, *_around_results(tokenizer, text))))


def _around_results(tokenizer: Any, text: str) -> list[str]:
    """Returns the added tokens that a template writes around tools' results, and not in a call, which is a model's own text."""
    call = canonical([{"name": PROBE}], "", "")
    turns = [Message(role, call if role == CALLS else PROBE) for role in ("user", CALLS, RESULT, "assistant")]
    called, answered = (render(tokenizer, part, text, False) for part in (turns[:2], turns))
    if isinstance(called, Refusal) or isinstance(answered, Refusal):
        return []
    added = (token.content for token in tokenizer.added_tokens_decoder.values())
    return [content for content in added if content in answered and content not in called and content not in MARKS]


def end_token_id(tokenizer: Any, template: TemplateConfig) -> int:
    """Returns the token that ends an assistant turn: the template's first special token after it, else the end of sequence.

    Raises:
        UserError: neither exists, or the template renders not even one question and its answer.
    """
    return _end_token_id(tokenizer, chat_texts(tokenizer, template).answering, isinstance(template, JinjaTemplate))


@lru_cache(maxsize=32)
def _end_token_id(tokenizer: Any, text: str, is_shared: bool) -> int:
    rendered = render(tokenizer, [Message("user", PROBE), Message("assistant", PROBE)], text, False)
    if isinstance(rendered, Refusal):
        raise UserError(f"{template_name(tokenizer, is_shared)}: {rendered.reason}")
    special = {*tokenizer.all_special_ids, *(i for i, added in tokenizer.added_tokens_decoder.items() if added.special)}
    if tokenizer.bos_token_id != tokenizer.eos_token_id:
        # A template may already begin the next turn with it.
        special.discard(tokenizer.bos_token_id)
    for token in tokenizer.encode(rendered.rpartition(PROBE)[2], add_special_tokens=False):
        if token in special:
            return token
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"{tokenizer.name_or_path}: the template ends a turn with no special token, and there is no eos_token"
        )
    return tokenizer.eos_token_id


def render_conversations(
    tokenizer: Any, conversations: Sequence[Sequence[Message]], template: TemplateConfig
) -> list[str | Refusal]:
    """Renders whole conversations as text; or why one is refused. A template that the recipe gives may leave out turns."""
    text, is_given = chat_texts(tokenizer, template).answering, isinstance(template, JinjaTemplate)
    return render_all(tokenizer, conversations, text, False, needs_all=not is_given)


def _accepted(tokenizer: Any, found: Any, template: TemplateConfig) -> Any:
    if isinstance(found, Refusal):
        raise UserError(f"{template_name(tokenizer, isinstance(template, JinjaTemplate))}: {found.reason}")
    return found
