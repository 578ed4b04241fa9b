"""Reward models: sequence classifiers with one label over the rendered conversation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from profuser.corpus import Message
from profuser.errors import EngineError
from profuser.recipe.models import RewardModelConfig


class RewardModel:
    """A Hugging Face sequence classifier with its own tokenizer and chat template."""

    def __init__(self, path: str, config: RewardModelConfig):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        on_gpu = torch.cuda.is_available()
        dtype = "float32" if config.dtype == "auto" and not on_gpu else config.dtype
        options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(path, **options)
            model: Any = AutoModelForSequenceClassification.from_pretrained(path, dtype=dtype, **options)
        except (RuntimeError, ValueError, OSError, ImportError) as error:
            text = " ".join(str(error).split())[:300]
            raise EngineError(f"rewards.{config.name}: {path}: could not be loaded: {text}") from error
        if model.config.num_labels != 1:
            raise EngineError(
                f"rewards.{config.name}: {path} has {model.config.num_labels} labels; a reward model has one"
            )
        self.model = model.to("cuda" if on_gpu else "cpu").eval()
        self.config = config
        self.tokenizer.padding_side, self.tokenizer.truncation_side = "right", "left"
        if self.tokenizer.pad_token_id is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id

    @torch.inference_mode()
    def score(self, prompts: Sequence[Sequence[Message]], answers: Sequence[str]) -> Float[np.ndarray, "N"]:
        """Raw rewards (logits, higher is better) of answers to prompts, `[N]`."""
        texts = [self._render(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        out = np.empty(len(texts))
        for start in range(0, len(order), self.config.batch_size):
            batch = order[start : start + self.config.batch_size]
            inputs = self.tokenizer(
                [texts[i] for i in batch],
                add_special_tokens=self.tokenizer.chat_template is None,
                padding=True,
                truncation=True,
                max_length=self.config.max_length,
                return_tensors="pt",
            ).to(self.model.device)
            logits = self.model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits
            out[batch] = logits[:, 0].double().cpu().numpy()
        return out

    def _render(self, prompt: Sequence[Message], answer: str) -> str:
        messages = [*({"role": m.role, "content": m.content} for m in prompt), {"role": "assistant", "content": answer}]
        if self.tokenizer.chat_template is None:
            return "\n\n".join(message["content"] for message in messages)
        return self.tokenizer.apply_chat_template(messages, tokenize=False)
