"""A benchmark's text is text: the special tokens that its items spell are no commands to a model.

The harness renders and tokenises by the model's tokenizer. That gets a class of its own, which marks what items say of special
tokens (`profuser.corpus.special_tokens`) before a template is put around it, and reads marked text as it was written.
"""

from collections.abc import Sequence
from typing import Any

from profuser.corpus.special_tokens import MARK, Commands, commands, encode, protect
from profuser.corpus.template import template_commands
from profuser.recipe.models import OwnTemplate


def read_text_as_text(tokenizer: Any, rendered: bool) -> None:
    """Changes a tokenizer of Transformers so that text is no command.

    Args:
        tokenizer: the harness's.
        rendered: whether what it will tokenise comes out of its chat template, whose special tokens are commands. Otherwise all
            of it is text.
    """
    strings = template_commands(tokenizer, OwnTemplate()) if rendered else commands(tokenizer)
    if not isinstance(tokenizer, _Reader):
        own = type(tokenizer)
        tokenizer.__class__ = type(own.__name__, (_Reader, own), {})
    tokenizer.rendered, tokenizer.strings = rendered, strings


class _Reader:
    """Goes before the class of a tokenizer."""

    rendered: bool
    strings: Commands

    def apply_chat_template(self, conversation: Sequence[dict[str, Any]], **options: Any) -> Any:
        """As before, of messages whose special tokens are marked."""
        parent: Any = super()
        turns = [{**turn, "content": protect(turn["content"], self.strings)} for turn in conversation]
        return parent.apply_chat_template(turns, **options)

    def encode(self, text: str, **options: Any) -> list[int]:
        """Token ids of one text."""
        return self(text, **options)["input_ids"]

    def __call__(self, text: str | Sequence[str], **options: Any) -> Any:
        """As before, where no special token is spelt; else the same fields, without the ones of characters."""
        parent: Any = super()
        texts = [text] if isinstance(text, str) else list(text)
        texts = texts if self.rendered else [protect(each, self.strings) for each in texts]
        if not any(MARK in each for each in texts):
            return parent.__call__(text, **options)
        add = options.get("add_special_tokens", True)
        ids = encode(self, texts, self.strings, True if add is None else add)
        shape = {name: options[name] for name in ("padding", "return_tensors") if name in options}
        return parent.pad({"input_ids": ids[0] if isinstance(text, str) else ids}, **{"padding": False, **shape})
