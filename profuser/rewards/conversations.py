"""A reward model's input: prompt and answer, rendered with its own chat template, as token ids. The same for every engine."""

from collections.abc import Mapping, Sequence
from typing import Any

from profuser.corpus.rendering import Refusal
from profuser.corpus.special_tokens import encode
from profuser.corpus.template import render_conversations, template_commands
from profuser.corpus.tool_turns import protected
from profuser.corpus.turns import Message
from profuser.errors import EngineError
from profuser.recipe.rewards import RewardModelConfig
from profuser.recipe.template import JinjaTemplate


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
        self.refused = False
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

        A conversation that the judge's template does not accept has no tokens; the first one is printed. A trailing padding token
        is removed: Transformers reads a causal model's score at the last token that is not padding (many checkpoints pad with
        their end of turn), and other engines at the last token.
        """
        turns = [
            [*(Message(m["role"], m["content"]) for m in row["messages"]), Message("assistant", text)]
            for row, text in zip(rows, answers, strict=True)
        ]
        template = self.config.template
        if self.tokenizer.chat_template is None and not isinstance(template, JinjaTemplate):
            texts = ["\n\n".join(message.content for message in messages) for messages in turns]
            options = {"truncation": True, "max_length": self.max_tokens, "split_special_tokens": True}
            encoded: list[list[int]] = self.tokenizer(texts, **options)["input_ids"]
        else:
            encoded = self._rendered(rows, turns)
        for ids in encoded:
            while len(ids) > 1 and ids[-1] == self.tokenizer.pad_token_id:
                ids.pop()
        return encoded

    def _rendered(self, rows: Sequence[Mapping[str, Any]], turns: Sequence[Sequence[Message]]) -> list[list[int]]:
        commands = template_commands(self.tokenizer, self.config.template)
        guarded = [protected(messages, commands) for messages in turns]
        rendered = render_conversations(self.tokenizer, guarded, self.config.template)
        ids = iter(encode(self.tokenizer, [text for text in rendered if isinstance(text, str)], commands))
        for row, text in zip(rows, rendered, strict=True):
            if isinstance(text, Refusal) and not self.refused:
                self.refused = True
                place = f"{row.get('source_file', 'row')}:{row.get('source_line', row['row_id'])}"
                print(f"rewards.{self.config.name}: {place}: its chat template refuses it: {text.reason}", flush=True)
        return [next(ids)[-self.max_tokens :] if isinstance(text, str) else [] for text in rendered]
