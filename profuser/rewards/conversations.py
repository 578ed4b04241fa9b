"""A reward model's input: prompt and answer, rendered with its own chat template, as token ids. The same for every engine."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from profuser.corpus.special_tokens import Commands, encode, protect
from profuser.corpus.template import template_commands
from profuser.errors import EngineError
from profuser.recipe.models import OwnTemplate
from profuser.recipe.rewards import RewardModelConfig


class Conversations:
    """A reward model's tokenizer and the relevant settings of its config.

    Args:
        path: folder or Hub name.
        config: the recipe's section.

    Raises:
        EngineError: config or tokenizer cannot be read, or the model has more than one label.
    """

    def __init__(self, path: str, config: RewardModelConfig):
        from transformers import AutoConfig, AutoTokenizer

        self.path, self.config = path, config
        try:
            model_config: Any = AutoConfig.from_pretrained(path, **self.options)
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, **self.options)
        except (RuntimeError, ValueError, OSError, ImportError) as error:
            raise self.failure("could not be loaded", error) from error
        if model_config.num_labels != 1:
            raise self.failure(f"has {model_config.num_labels} labels; a reward model has one")
        self.architecture: str = (model_config.architectures or ["unknown"])[0]
        native = getattr(model_config.get_text_config(), "max_position_embeddings", None)
        self.max_tokens = min(config.max_length, native or config.max_length)
        self.tokenizer.truncation_side = "left"

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for every loader of this model."""
        return {"revision": self.config.revision, "trust_remote_code": self.config.trust_remote_code}

    def failure(self, what: str, error: BaseException | None = None, remedy: str = "") -> EngineError:
        """Returns an error that names the reward and its model."""
        cause = f": {' '.join(str(error).split())[:300]}" if error else ""
        return EngineError(f"rewards.{self.config.name}: {self.path} {what}{cause}{remedy}")

    def encode(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[list[int]]:
        """Returns token ids of each prompt and answer, cut from the left to `max_tokens`. Special tokens in texts are read as text.

        A trailing padding token is removed: Transformers reads a causal model's score at the last token that is not padding (many
        checkpoints pad with their end of turn), and other engines at the last token.
        """
        prompts = [
            [*row["messages"], {"role": "assistant", "content": text}] for row, text in zip(rows, answers, strict=True)
        ]
        if self.tokenizer.chat_template is None:
            texts = ["\n\n".join(message["content"] for message in messages) for messages in prompts]
            options = {"truncation": True, "max_length": self.max_tokens, "split_special_tokens": True}
            encoded: list[list[int]] = self.tokenizer(texts, **options)["input_ids"]
        else:
            texts = [self._render(messages) for messages in prompts]
            encoded = [ids[-self.max_tokens :] for ids in encode(self.tokenizer, texts, self.commands)]
        for ids in encoded:
            while len(ids) > 1 and ids[-1] == self.tokenizer.pad_token_id:
                ids.pop()
        return encoded

    def _render(self, messages: Sequence[Mapping[str, str]]) -> str:
        guarded = [{**message, "content": protect(message["content"], self.commands)} for message in messages]
        return self.tokenizer.apply_chat_template(guarded, tokenize=False)

    @cached_property
    def commands(self) -> Commands:
        """Strings that the tokenizer reads as special tokens."""
        return template_commands(self.tokenizer, OwnTemplate())
