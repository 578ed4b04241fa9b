"""Makes the harness read special tokens in a benchmark's items as plain text.

The harness renders and tokenises with the model's tokenizer. That tokenizer gets a subclass that marks special tokens in items
(`profuser.corpus.special_tokens`) before a template is put around them, and reads marked text as it was written.
"""

from collections.abc import Sequence
from typing import Any

from profuser.corpus.special_tokens import MARK, Commands, commands, encode, protect
from profuser.corpus.template import template_commands
from profuser.recipe.template import OwnTemplate


def neutralise_special_tokens(tokenizer: Any, rendered: bool) -> None:
    """Changes a Transformers tokenizer so that special tokens in texts are read as plain text.

    Args:
        tokenizer: the harness's tokenizer.
        rendered: whether its input comes from its chat template, whose special tokens keep their meaning. Otherwise all input is
            plain text.
    """
    strings = template_commands(tokenizer, OwnTemplate()) if rendered else commands(tokenizer)
    if not isinstance(tokenizer, _Reader):
        own = type(tokenizer)
        tokenizer.__class__ = type(own.__name__, (_Reader, own), {})
    tokenizer.rendered, tokenizer.strings = rendered, strings


class _Reader:
    """Mixin placed before a tokenizer's class."""

    rendered: bool
    strings: Commands

    def apply_chat_template(self, conversation: Sequence[dict[str, Any]], **options: Any) -> Any:
        """Renders messages as the tokenizer does, with their special tokens marked.

        The harness's own argument for thinking is ignored: the recipe's are part of the template.
        """
        parent: Any = super()
        options.pop("enable_thinking", None)
        turns = [{**turn, "content": protect(turn["content"], self.strings)} for turn in conversation]
        return parent.apply_chat_template(turns, **options)

    def encode(self, text: str, **options: Any) -> list[int]:
        """Returns the token ids of one text."""
        return self(text, **options)["input_ids"]

    def __call__(self, text: str | Sequence[str], **options: Any) -> Any:
        """Tokenises as before if the text spells no special token; else returns the same fields without character fields."""
        parent: Any = super()
        texts = [text] if isinstance(text, str) else list(text)
        texts = texts if self.rendered else [protect(each, self.strings) for each in texts]
        if not any(MARK in each for each in texts):
            return parent.__call__(text, **options)
        add = options.get("add_special_tokens", True)
        ids = encode(self, texts, self.strings, True if add is None else add)
        shape = {name: options[name] for name in ("padding", "return_tensors") if name in options}
        return parent.pad({"input_ids": ids[0] if isinstance(text, str) else ids}, **{"padding": False, **shape})
