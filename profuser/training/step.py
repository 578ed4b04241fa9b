"""One forward pass of the fusion: packed examples as arrays, and the module that computes the loss from them.

Legend: B sequences, S tokens of the longest, E examples, N response tokens of the micro-batch, K top-k, P pairs of answers. An
example is one mode of a corpus row, or one answer of a pair.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule

from profuser.artifacts.schemas import MODES, ON_POLICY, PARTS
from profuser.models.classes import backbone
from profuser.models.output_head import OutputHead
from profuser.recipe.fusing import FuseConfig
from profuser.recipe.schedule import uses
from profuser.training import loss_kernels
from profuser.training.attention import WITHOUT_MASK, Boundaries, set_attention
from profuser.training.divergences import Divergence, Tail
from profuser.training.examples import TrainingExample
from profuser.training.losses import TokenLosses, fusion_loss, token_nats
from profuser.training.preference import PREFERRED, PairLosses, in_pair, pair_losses


class MicroBatch(NamedTuple):
    """Sequences of concatenated examples, and the targets of each response token."""

    input_ids: Int[Tensor, "B S"]
    position_ids: Int[Tensor, "B S"]
    """Positions; they restart at 0 with each example and with the padding."""
    places: Int[Tensor, "N"]
    """Indices into the flattened `[B * S]` of the hidden states that predict the targets, one before each response token."""
    targets: Int[Tensor, "N"]
    topk_ids: Int[Tensor, "N K"]
    topk_logprobs: Float[Tensor, "N K"]
    mode: Int[Tensor, "N"]
    """Index into `PARTS`."""
    weight: Float[Tensor, "N"]
    """Weight of the token's example."""
    pair: Int[Tensor, "N"]
    """Index of the token's pair; of no meaning outside pairs."""
    reference: Float[Tensor, "P 2"]
    """Cross-entropies of the pairs' answers under preference mode's reference, in nats; zeros without one."""
    boundaries: Boundaries
    """Boundaries of the examples in the flattened `[B * S]`; each stretch of padding counts as one."""


@dataclass(frozen=True, eq=False)
class PackedExamples:
    """A micro-batch as it is prepared and sent to a worker: arrays of the smallest types, with row ids and teachers."""

    input_ids: Int[np.ndarray, "B S"]
    position_ids: Int[np.ndarray, "B S"]
    places: Int[np.ndarray, "N"]
    targets: Int[np.ndarray, "N"]
    topk_ids: Int[np.ndarray, "N K"]
    topk_logprobs: Float[np.ndarray, "N K"]
    example: Int[np.ndarray, "N"]
    """Index of the example of each response token."""
    mode: Int[np.ndarray, "E"]
    weight: Float[np.ndarray, "E"]
    response_bytes: Float[np.ndarray, "E"]
    row_ids: list[str]
    teachers: list[str]

    @property
    def num_pairs(self) -> int:
        """Pairs of answers, P."""
        return int((self.mode == PREFERRED).sum())

    def tensors(self, device: torch.device, reference: Sequence[Sequence[float]] | None = None) -> MicroBatch:
        """Returns the model's inputs on its device.

        Args:
            device: the device.
            reference: cross-entropies of the pairs' answers under the reference `[P][2]`; by default zeros.
        """
        wide = {"topk_logprobs": torch.float32, "weight": torch.float32, "reference": torch.float64}
        made = ("boundaries", "pair", "reference")
        arrays = {name: getattr(self, name) for name in MicroBatch._fields if name not in made}
        # The better answer of a pair comes first, and starts it.
        arrays["pair"] = np.maximum((self.mode == PREFERRED).cumsum() - 1, 0)
        arrays |= {name: arrays[name][self.example] for name in ("mode", "weight", "pair")}
        arrays["reference"] = np.array(reference or np.zeros((self.num_pairs, 2))).reshape(-1, 2)
        tensors = {
            name: on_device(torch.from_numpy(a), device).to(wide.get(name, torch.int64)) for name, a in arrays.items()
        }
        return MicroBatch(**tensors, boundaries=Boundaries.of(self.position_ids, device))

    def to_table(self) -> pa.Table:
        """Returns one table row with every array as a flat list."""
        columns: dict[str, Any] = {"shape": pa.array([list(self.input_ids.shape)], pa.list_(pa.int32()))}
        for name in (each.name for each in fields(self)):
            value = getattr(self, name)
            flat = pa.array(value.reshape(-1) if isinstance(value, np.ndarray) else value)
            columns[name] = pa.ListArray.from_arrays(pa.array([0, len(flat)], pa.int32()), flat)
        return pa.table(columns)

    @classmethod
    def from_table(cls, table: pa.Table, row: int, top_k: int) -> "PackedExamples":
        """Reads a row of `to_table`; arrays are views if Arrow allows it."""
        shape = tuple(table["shape"][row].as_py())
        shapes = {"input_ids": shape, "position_ids": shape, "topk_ids": (-1, top_k), "topk_logprobs": (-1, top_k)}
        values: dict[str, Any] = {}
        for name in (each.name for each in fields(cls)):
            flat = table[name][row].values
            text = pa.types.is_string(flat.type) or pa.types.is_null(flat.type)
            values[name] = flat.to_pylist() if text else np.array(flat).reshape(shapes.get(name, (-1,)))
        return cls(**values)


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copies a host tensor to the device; for a GPU, without waiting for completion."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def collate(packs: Sequence[Sequence[TrainingExample]], pad_id: int, top_k: int) -> PackedExamples:
    """Concatenates the examples of each pack, pads on the right, and concatenates their response tokens.

    Args:
        packs: packs of one micro-batch; if empty, the batch has no response token, so that a worker with nothing to learn still
            takes part in the collectives of sharded parameters.
        pad_id: any valid token id.
        top_k: K.
    """
    width = max((sum(e.num_tokens for e in each) for each in packs), default=1)
    input_ids = np.full((max(1, len(packs)), width), pad_id, dtype=np.int32)
    position_ids = np.zeros_like(input_ids)
    places = [np.zeros(0, dtype=np.int32)]
    examples = [example for each in packs for example in each]
    for row, each in enumerate(packs):
        start = 0
        for example in each:
            end, first = start + example.num_tokens, start + len(example.prompt_ids)
            input_ids[row, start:end] = np.concatenate([example.prompt_ids, example.response_ids])
            position_ids[row, start:end] = np.arange(end - start)
            places.append(row * width + np.arange(first - 1, end - 1, dtype=np.int32))
            start = end
        position_ids[row, start:] = np.arange(width - start)
    counts = [len(example.response_ids) for example in examples]
    return PackedExamples(
        input_ids=input_ids,
        position_ids=position_ids,
        places=np.concatenate(places),
        targets=_concatenated([e.response_ids for e in examples], (0,), np.int32),
        topk_ids=_concatenated([e.topk.ids for e in examples], (0, top_k), np.int32),
        topk_logprobs=_concatenated([e.topk.logprobs for e in examples], (0, top_k), np.float16),
        example=np.repeat(np.arange(len(examples), dtype=np.int32), counts),
        mode=np.array([e.mode for e in examples], dtype=np.int8),
        weight=np.array([e.weight for e in examples], dtype=np.float32),
        response_bytes=np.array([e.response_bytes for e in examples], dtype=np.float64),
        row_ids=[e.row_id for e in examples],
        teachers=[e.teacher for e in examples],
    )


def _concatenated(parts: Sequence[np.ndarray], empty: tuple[int, ...], dtype: Any) -> np.ndarray:
    return (np.concatenate(parts) if parts else np.zeros(empty)).astype(dtype)


class FusionModule(nn.Module):
    """The target with the fusion loss as its forward pass.

    The loss is inside, so that sharded parameters (including the output weight) are unsharded while it reads them.
    """

    def __init__(
        self, model: Any, config: FuseConfig, device: torch.device | None = None, dtype: torch.dtype | None = None
    ):
        """Sets the model's attention.

        Args:
            model: the target; its parameters may have no memory yet.
            config: training settings.
            device: device of the computation; by default the parameters' device (they may have no memory, or be offloaded).
            dtype: type in which its parameters are used; by default their own.
        """
        super().__init__()
        self.model = model
        self.beta, self.temperature, self.chunk_tokens = config.beta, config.temperature, config.loss_chunk_tokens
        self.tail: Tail = config.tail
        self.ahead_only = config.kl_positions == "ahead"
        self.preference = config.preference
        modes = (*MODES, *([ON_POLICY] if uses(config.schedule, "on_policy") else []))
        own = [getattr(config.divergence, mode) for mode in modes]
        self.divergences = [Divergence(each.kind, each.weight) for each in own]
        self.packing = config.packing
        first = next(model.parameters())
        self.device = device or first.device
        self.attention = set_attention(model, config.attention, self.packing, self.device, dtype or first.dtype)
        self.kernels = loss_kernels.kernels_supported(self.device)
        self.takes = set(inspect.signature(backbone(model).forward).parameters)

    def forward(self, batch: MicroBatch, scale: Float[Tensor, "parts"]) -> TokenLosses:
        """Returns the weighted loss of a micro-batch, with CE and KL per response token in nats, and the loss of each pair.

        Args:
            batch: packed examples.
            scale: per entry of `PARTS`, the mode's weight divided by its response tokens in the whole update, each weighted like
                its example; for pairs, divided by their number.
        """
        hidden = self.hidden(batch.input_ids, batch.position_ids, batch.boundaries).flatten(0, 1)
        # Indexing with brackets would sort the indices in its backward pass, in case of duplicates.
        hidden = hidden.index_select(0, batch.places)
        weight = scale[batch.mode] * batch.weight
        # The target's own answers are no lesson: only their teacher's distributions are.
        on_policy = batch.mode == PARTS.index(ON_POLICY)
        ce_weight, kl_weight = torch.where(on_policy, 0.0, weight), torch.where(on_policy, 1.0, self.beta) * weight
        head, pairs = OutputHead.of(self.model), None
        if len(batch.reference):
            pairs = self._pairs(hidden, head, batch)
            ce_weight = torch.where(in_pair(batch.mode), ce_weight * pairs.token_weights, ce_weight)
        losses = fusion_loss(
            hidden,
            head,
            batch.targets,
            batch.topk_ids,
            batch.topk_logprobs,
            ce_weight,
            kl_weight,
            self.temperature,
            self.tail,
            self.chunk_tokens,
            self.kernels,
            self.ahead_only,
            *self._divergences_of(batch.mode),
        )
        if pairs is None:
            return losses
        # The weighted cross-entropies of pairs have the loss's gradient, but not its value.
        inside = in_pair(batch.mode)
        gap = (pairs.nats * scale[PREFERRED]).sum() - (losses.ce_nats * ce_weight)[inside].sum()
        return losses._replace(total=losses.total + gap.detach(), pairs=pairs)

    @torch.no_grad()
    def _pairs(self, hidden: Float[Tensor, "N D"], head: OutputHead, batch: MicroBatch) -> PairLosses:
        """Scores the answers of the pairs, in one more product with the output layer for their tokens."""
        inside = in_pair(batch.mode).nonzero()[:, 0]
        nats = token_nats(hidden[inside], head, batch.targets[inside], self.chunk_tokens, self.kernels)
        ce_nats = nats.new_zeros(len(hidden)).index_copy_(0, inside, nats)
        return pair_losses(ce_nats, batch.mode, batch.pair, batch.reference, self.preference)

    def _divergences_of(self, mode: Int[Tensor, "N"]) -> tuple[list[Divergence], Int[Tensor, "N"] | None]:
        """Returns the divergences, and for each token the index of its own if they differ."""
        if len(set(self.divergences)) == 1:
            return self.divergences[:1], None
        # Pairs have no teacher, and so no divergence.
        return self.divergences, torch.where(mode == PARTS.index(ON_POLICY), len(MODES), mode % len(MODES))

    def check(self, test: Callable[["FusionModule"], None]) -> None:
        """Runs a test of the model while its root parameters are unsharded; call `reshard_gathered` afterwards."""
        test(self)

    def reshard_gathered(self) -> None:
        """Reshards gathered parameters. A forward pass without a backward leaves them gathered, and the optimizer and checkpoints
        would take them for the parameters themselves.
        """
        for module in self.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    def hidden(
        self, input_ids: Int[Tensor, "B S"], position_ids: Int[Tensor, "B S"], boundaries: Boundaries
    ) -> Float[Tensor, "B S D"]:
        """Returns the last hidden states; packed examples do not see each other.

        An attention without a mask gets all sequences as one, with the examples' boundaries. With a mask, Transformers detects the
        examples from restarting positions, if the architecture takes positions. Others (MPT) get the mask itself: ALiBi's biases
        count from the key's position, and a softmax is invariant to what all keys share.
        """
        settings: dict[str, Any] = {}
        shape = input_ids.shape
        if self.packing and self.model.config._attn_implementation in WITHOUT_MASK:
            input_ids, settings["position_ids"] = input_ids.reshape(1, -1), position_ids.reshape(1, -1)
            settings |= boundaries.arguments()
        elif self.packing and "position_ids" in self.takes:
            settings["position_ids"] = position_ids
        elif self.packing:
            settings["attention_mask"] = block_diagonal_mask(position_ids, next(self.parameters()).dtype)
        if "use_cache" in self.takes:
            settings["use_cache"] = False
        hidden = backbone(self.model)(input_ids=input_ids, **settings).last_hidden_state
        return hidden.reshape(*shape, -1)


def block_diagonal_mask(position_ids: Int[Tensor, "B S"], dtype: torch.dtype) -> Float[Tensor, "B 1 S S"]:
    """Returns an additive causal mask within each example: 0 for visible tokens, the type's smallest number elsewhere."""
    example = (position_ids == 0).cumsum(dim=1)
    size = position_ids.shape[1]
    causal = torch.ones(size, size, dtype=torch.bool, device=position_ids.device).tril()
    seen = (example[:, :, None] == example[:, None, :]) & causal
    return torch.zeros(seen.shape, dtype=dtype, device=seen.device).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
