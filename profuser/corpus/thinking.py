"""Recognises the thinking of reasoning models in prompts and answers, by the markers that their families write around it."""

from dataclasses import dataclass

BLANK = " \t\r\n"


@dataclass(frozen=True)
class Markers:
    """What a family of models writes around its thinking."""

    open: str
    close: str
    """Text after which the answer follows."""
    empty: str
    """Thinking without content, as these models have seen it in training."""
    required: bool = False
    """Whether an answer must follow `close` even where there was no thinking."""


HARMONY = Markers(
    "<|channel|>analysis<|message|>", "<|channel|>final<|message|>", "<|channel|>final<|message|>", required=True
)
FAMILIES = (
    # Qwen3, DeepSeek R1, GLM 4.5, SmolLM3, Phi-4 reasoning, Nemotron, MiniMax M2, OLMo 3 and others.
    Markers("<think>", "</think>", "<think>\n\n</think>\n\n"),
    Markers("<seed:think>", "</seed:think>", "<seed:think></seed:think>"),
    Markers("<mm:think>", "</mm:think>", "<mm:think></mm:think>"),
    # Magistral and Ministral reasoning.
    Markers("[THINK]", "[/THINK]", "[THINK][/THINK]"),
    # Gemma 4.
    Markers("<|channel>", "<channel|>", "<|channel>thought\n<channel|>"),
    HARMONY,
)
MARKS = tuple(mark for family in FAMILIES for mark in (family.open, family.close))


def opened(prompt: str) -> Markers | None:
    """Returns the family whose thinking a prompt opens at its end, or None."""
    for family in FAMILIES:
        _, found, rest = prompt.rpartition(family.open)
        # Gemma 4 names the channel.
        if found and not rest.strip(BLANK).removeprefix("thought"):
            return family
    return None


def closing(prompt: str, family: Markers) -> str:
    """Returns what closes the thinking that a prompt opens, so that the whole is the family's empty thinking where it can be."""
    begun = prompt[prompt.rindex(family.open) :]
    rest = family.empty.removeprefix(begun)
    return rest if rest != family.empty else family.close + family.empty.rpartition(family.close)[2]


def unopened(prompt: str) -> str:
    """Returns a prompt without the opening of a thinking at its end."""
    family = opened(prompt)
    return prompt[: prompt.rindex(family.open)] if family else prompt


def begins_with_thinking(text: str) -> bool:
    """Returns whether a text begins with thinking that it also closes."""
    return any(text.lstrip(BLANK).startswith(f.open) and f.close in text for f in FAMILIES)


def is_inside(text: str, family: Markers) -> bool:
    """Returns whether a text continues thinking that its prompt has opened: it closes it, and did not open it."""
    return family.close in text and not text.lstrip(BLANK).startswith(family.open)


def answer_start(answer: str, family: Markers | None) -> int | None:
    """Returns where the answer proper begins, behind its thinking: 0 without thinking, None if the thinking does not end.

    Args:
        answer: what a model wrote, its special tokens spelt out.
        family: the family whose thinking the prompt has opened, if any.
    """
    text = answer.lstrip(BLANK)
    family = family or next((f for f in FAMILIES if text.startswith((f.open, f.close))), None)
    if family is None:
        return 0
    place = answer.rfind(family.close) if family.required else answer.find(family.close)
    return None if place < 0 else place + len(family.close)


def without_thinking(text: str, inside: bool = False) -> str:
    """Returns a text without the thinking at its beginning; a text without thinking unchanged.

    Args:
        text: an answer or a ground truth.
        inside: whether it is a model's answer that may begin inside thinking that its prompt opened.
    """
    for family in FAMILIES:
        begins = text.lstrip(BLANK).startswith(family.open)
        if family.close in text and (begins or inside):
            return text.partition(family.close)[2].lstrip(BLANK)
    return text
