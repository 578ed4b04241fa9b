"""A reward model in Transformers: supports any sequence classifier, and serves as the oracle for vLLM in tests."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from profuser.engines.device import device, resolve_dtype
from profuser.rewards.conversations import Conversations


class TransformersRewardModel:
    """An `AutoModelForSequenceClassification` with one label, in batches of about equal length."""

    def __init__(self, conversations: Conversations):
        from transformers import AutoModelForSequenceClassification

        config = conversations.config
        try:
            dtype = resolve_dtype(config.dtype, conversations.path, config.revision)
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                conversations.path, dtype=dtype, **conversations.options
            )
        except (RuntimeError, ValueError, OSError, ImportError) as error:
            raise conversations.failure("could not be loaded", error) from error
        self.model = model.to(device()).eval()
        self.conversations, self.batch_size = conversations, config.batch_size
        self.answered: Callable[[int], None] = lambda number: None

    @torch.inference_mode()
    def score(self, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> Float[np.ndarray, "N"]:
        """See `Judge.score`; raw logits."""
        conversations = self.conversations.encode(rows, answers)
        accepted = [index for index, ids in enumerate(conversations) if ids]
        order = sorted(accepted, key=lambda index: len(conversations[index]))
        out = np.full(len(conversations), np.nan)
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            logits = self.model(**self._padded([conversations[index] for index in batch])).logits
            out[batch] = logits[:, 0].double().cpu().numpy()
            self.answered(len(batch))
        return out

    def _padded(self, sequences: list[list[int]]) -> dict[str, torch.Tensor]:
        pad_id = self.conversations.tokenizer.pad_token_id
        if pad_id is None or pad_id >= self.model.get_input_embeddings().weight.shape[0]:
            # The model reads the score at the last token that is not padding: any id will do that ends no conversation.
            ends = {sequence[-1] for sequence in sequences}
            pad_id = next(token for token in range(len(sequences) + 1) if token not in ends)
        self.model.config.get_text_config().pad_token_id = pad_id
        tensors = [torch.tensor(sequence) for sequence in sequences]
        masks = [torch.ones_like(tensor) for tensor in tensors]
        ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=pad_id)
        mask = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True)
        return {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}
