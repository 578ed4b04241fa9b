"""Attention over packed examples with kernels that take the examples' boundaries: no S x S mask is ever in memory.

Two functions are registered with Transformers' attention interface under their own names. Both give the result of scaled
dot-product attention with a block-diagonal causal mask:

- `VARLEN`: PyTorch's variable-length attention (FlashAttention), on GPUs in half precision.
- `BY_EXAMPLE`: `scaled_dot_product_attention` over examples grouped by similar length, on CPUs.

Legend: B sequences (one, if there are boundaries), S tokens of the longest, N tokens of all concatenated, E examples (each
stretch of padding counts as one), H query heads, G key heads, D head size, M keys.
"""

import importlib.util
import inspect
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Integer
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn
from torch.nn.functional import scaled_dot_product_attention

from profuser.errors import UserError, one_line
from profuser.models.classes import backbone
from profuser.recipe.resources import Attention

VARLEN, BY_EXAMPLE = "profuser_varlen", "profuser_by_example"
FLASH = {"flash_attention_2": "flash_attn", "flash_attention_3": "flash_attn_interface"}
"""Transformers' FlashAttention implementations, and the package that each needs."""
WITHOUT_MASK = (VARLEN, BY_EXAMPLE, *FLASH)
"""Implementations that take the examples' boundaries in one sequence instead of a mask."""
LARGEST_HEAD = 256
"""Largest head size of the FlashAttention kernel in PyTorch."""
SHORTEST_GROUP = 16
"""Examples of at most this many tokens form one group."""
UNSUPPORTED = ("softcap", "s_aux", "position_bias")
"""Arguments of other attention functions that would change the result."""
HAS_GQA = "enable_gqa" in inspect.signature(varlen_attn).parameters


class Boundaries(NamedTuple):
    """Boundaries of the examples of a micro-batch in its flattened tokens."""

    offsets: Int[Tensor, "E1"]
    """`[0, ..., N]`, int32: example e is `[offsets[e], offsets[e + 1])`."""
    longest: int
    """Tokens of the longest example."""

    @classmethod
    def of(cls, position_ids: Integer[np.ndarray, "B S"], device: torch.device) -> "Boundaries":
        """Computes boundaries from positions that start at 0 in each example. Runs on the host, so it waits for no device."""
        flat = position_ids.reshape(-1)
        offsets = np.append(np.flatnonzero(flat == 0), len(flat)).astype(np.int32)
        tensor = torch.from_numpy(offsets)
        tensor = tensor.pin_memory() if device.type == "cuda" else tensor
        return cls(tensor.to(device, non_blocking=True), int(np.diff(offsets).max()))

    def arguments(self) -> dict[str, Any]:
        """Returns the boundaries as Transformers' keyword arguments."""
        ends = {f"cu_seq_lens_{side}": self.offsets for side in "qk"}
        return ends | {f"max_length_{side}": self.longest for side in "qk"}


class AttentionChoice(NamedTuple):
    """The attention that a target is trained with."""

    implementation: str
    """Transformers' name of the function."""
    why: str

    def __str__(self) -> str:
        return f"attention: {self.implementation.removeprefix('profuser_')} ({self.why})"


def set_attention(
    model: Any, wanted: Attention, packing: bool, device: torch.device, dtype: torch.dtype
) -> AttentionChoice:
    """Sets the attention of a Hugging Face model for training.

    Args:
        model: its parameters may have no memory.
        wanted: `fuse.attention`.
        packing: whether examples are concatenated.
        device: device that it will run on.
        dtype: type in which its parameters are used.

    Raises:
        UserError: the model or this machine does not support what the recipe names.
    """
    choice = choose(model, wanted, packing, device, dtype)
    if choice.implementation != model.config._attn_implementation:
        _register()
        try:
            model.set_attn_implementation(choice.implementation)
        except (ValueError, ImportError) as error:
            reason = one_line(error)
            raise UserError(f"fuse.attention: {wanted}: {reason}") from None
    return choice


def choose(model: Any, wanted: Attention, packing: bool, device: torch.device, dtype: torch.dtype) -> AttentionChoice:
    """Returns the choice that `set_attention` applies."""
    default = model.config._attn_implementation
    kernel = device.type == "cuda" and why_no_kernel(model, dtype) is None
    if wanted == "varlen":
        if misfit := why_no_boundaries(model):
            raise UserError(f"fuse.attention: varlen: {misfit}; use auto")
        return AttentionChoice(VARLEN if kernel else BY_EXAMPLE, "as configured")
    if wanted != "auto":
        if reason := _refusal(model, wanted, device):
            raise UserError(f"fuse.attention: {wanted}: {reason}, or use auto")
        return AttentionChoice(wanted, "as configured")
    if not packing:
        return AttentionChoice(default, "nothing is packed")
    if misfit := why_no_boundaries(model):
        return _choose_for_others(model, misfit, device)
    if kernel:
        return AttentionChoice(VARLEN, "PyTorch's variable-length kernel")
    if device.type == "cpu":
        return AttentionChoice(BY_EXAMPLE, "examples grouped by length")
    return AttentionChoice(default, f"with a mask: {why_no_kernel(model, dtype)}")


def _refusal(model: Any, wanted: str, device: torch.device) -> str | None:
    """Returns why an attention function of Transformers cannot be used with a model, and a remedy; None if it can."""
    default = model.config._attn_implementation
    if wanted != default and not model._supports_attention_backend:
        return f"{type(model).__name__} has its own attention; set {default}"
    if wanted in FLASH and importlib.util.find_spec(FLASH[wanted]) is None:
        return f"package {FLASH[wanted]} is not installed; install it"
    if wanted == "flex_attention" and device.type == "cpu":
        return f"it has no backward pass on a CPU; set {default}"
    return None


def _choose_for_others(model: Any, misfit: str, device: torch.device) -> AttentionChoice:
    """Returns Transformers' best choice for a model whose attention is more than plain attention."""
    if device.type == "cuda" and model._supports_flash_attn and importlib.util.find_spec("flash_attn"):
        return AttentionChoice("flash_attention_2", misfit)
    if device.type == "cuda" and getattr(model, "_supports_flex_attn", False):
        return AttentionChoice("flex_attention", misfit)
    return AttentionChoice(model.config._attn_implementation, f"with a mask: {misfit}")


def why_no_boundaries(model: Any) -> str | None:
    """Returns why attention with only boundaries and windows would be wrong for a model; None if it is right.

    Derived from Transformers: it gives such models plain `sdpa` by default, and lets them use FlashAttention, which has no mask.
    """
    kind, text = type(model).__name__, model.config.get_text_config()
    if getattr(text, "attn_logit_softcapping", None):
        return f"{kind} caps its attention logits"
    takes = inspect.signature(backbone(model).forward).parameters.values()
    passes_on = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes)
    if not (passes_on and model._supports_sdpa and model._supports_flash_attn and model._supports_attention_backend):
        return f"{kind} has its own attention"
    return None


def why_no_kernel(model: Any, dtype: torch.dtype) -> str | None:
    """Returns why the variable-length kernel does not support a model; None if it does."""
    text = model.config.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    if dtype not in (torch.bfloat16, torch.float16):
        return f"the kernel needs half precision, this is {str(dtype).removeprefix('torch.')}"
    if size % 8 or size > LARGEST_HEAD:
        return f"the kernel needs head sizes of up to {LARGEST_HEAD} in steps of 8, these are {size}"
    if getattr(text, "v_head_dim", size) != size:
        return "keys and values differ in size"
    if getattr(text, "attention_dropout", 0):
        return "the kernel has no dropout"
    return None


def _register() -> None:
    """Registers both functions with Transformers. It has no mask function under their names, so it builds no mask."""
    from transformers import AttentionInterface

    AttentionInterface.register(VARLEN, varlen)
    AttentionInterface.register(BY_EXAMPLE, by_example)


def varlen(
    module: Any,
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B G N D"],
    value: Float[Tensor, "B G N D"],
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B N H D"], None]:
    """Computes causal attention within each example by PyTorch's variable-length kernel; a window includes the token itself.

    Raises:
        ValueError: the model needs an unsupported feature.
    """
    if "cu_seq_lens_q" not in kwargs:
        return by_example(module, query, key, value, attention_mask, scaling, dropout, sliding_window, **kwargs)  # type: ignore[call-arg]
    _refuse(kwargs | {"attention_mask": attention_mask, "dropout": dropout or None})
    q, k, v = (each[0].transpose(0, 1) for each in (query, key, value))
    options: dict[str, Any] = {"enable_gqa": True} if HAS_GQA else {}
    if not HAS_GQA and k.shape[1] != q.shape[1]:
        k, v = (each.repeat_interleave(q.shape[1] // each.shape[1], dim=1) for each in (k, v))
    offsets, longest = kwargs["cu_seq_lens_q"], kwargs["max_length_q"]
    window = (-1 if sliding_window is None else sliding_window - 1, 0)
    out: Any = varlen_attn(q, k, v, offsets, offsets, longest, longest, scale=scaling, window_size=window, **options)
    return out[None], None


@torch.compiler.disable  # the lengths of examples differ in each batch, which would recompile it for each
def by_example(
    module: Any,
    query: Float[Tensor, "B H N D"],
    key: Float[Tensor, "B G M D"],
    value: Float[Tensor, "B G M D2"],
    attention_mask: Any,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B N H D2"], None]:
    """Computes the same as `varlen`, by `scaled_dot_product_attention` over examples grouped by similar length.

    Shorter examples are padded at the end with the tokens that follow, which causal attention never reads. Without boundaries each
    sequence is one example, and the queries are its last tokens (M > N with a cache).

    Raises:
        ValueError: the model needs an unsupported feature.
    """
    _refuse(kwargs | {"attention_mask": attention_mask})

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        sizes = q.shape[2], k.shape[2]
        plain = sizes[0] == sizes[1] and (sliding_window is None or sliding_window >= sizes[1])
        mask = None if plain else _band(*sizes, sliding_window or sizes[1], q.device)
        grouped = q.shape[1] != k.shape[1]
        return scaled_dot_product_attention(q, k, v, mask, dropout, is_causal=plain, scale=scaling, enable_gqa=grouped)

    if "cu_seq_lens_q" not in kwargs:
        return attend(query, key, value).transpose(1, 2), None
    groups, order = _groups_of_like_length(kwargs["cu_seq_lens_q"].tolist())
    out = []
    for places in groups:
        parts = (each[0, :, places].transpose(0, 1) for each in (query, key, value))
        out.append(attend(*parts).transpose(1, 2).flatten(0, 1))
    return torch.cat(out).index_select(0, order.to(query.device))[None], None


def _groups_of_like_length(offsets: list[int]) -> tuple[list[Int[Tensor, "E L"]], Int[Tensor, "N"]]:
    """Groups examples whose lengths differ by at most a factor of two.

    Returns:
        Token indices by group: one row per example, as long as the group's longest, so a shorter example's row continues past its
        end. And for each token its index in the flattened rows of all groups.
    """
    starts, lengths = np.array(offsets[:-1]), np.diff(offsets)
    kinds = np.ceil(np.log2(np.maximum(lengths, SHORTEST_GROUP)))
    groups, order, laid_out = [], np.empty(offsets[-1], dtype=np.int64), 0
    for kind in np.unique(kinds):
        own = np.flatnonzero(kinds == kind)
        width = int(lengths[own].max())
        places = starts[own, None] + np.arange(width)
        inside = np.arange(width) < lengths[own, None]
        order[places[inside]] = laid_out + np.flatnonzero(inside)
        laid_out += places.size
        groups.append(torch.from_numpy(np.minimum(places, offsets[-1] - 1)))
    return groups, torch.from_numpy(order)


def _band(num_queries: int, num_keys: int, window: int, device: torch.device) -> Bool[Tensor, "N M"]:
    """Returns True where a key is one of the `window` tokens up to the query's; the last query is at the last key."""
    keys = torch.arange(num_keys, device=device)
    back = keys[num_keys - num_queries :, None] - keys
    return (back >= 0) & (back < window)


def _refuse(arguments: dict[str, Any]) -> None:
    wanted = [name for name in (*UNSUPPORTED, "attention_mask", "dropout") if arguments.get(name) is not None]
    if wanted or arguments.get("is_causal") is False:
        raise ValueError(f"packed attention does not support {', '.join(wanted) or 'attention to later tokens'}")
