"""Builds a small model with random weights from a target's own config, to try the architecture before anything is paid for.

Same classes, kinds of layers, head sizes and options; fewer layers, heads, experts and tokens. Where a narrower model cannot be
built (an architecture ties its sizes in a way unknown here), the model keeps the target's width.
"""

import math
from collections.abc import Iterator
from typing import Any

import torch

from profuser.models.classes import language_model_class

LAYERS, VOCAB, EXPERTS, INNER, HIDDEN = 8, 512, 4, 128, 64
"""Sizes of a small model: layers, tokens, experts, features inside a feed-forward layer, and the fewest between layers."""
MAX_PARAMETERS = 2_000_000_000
"""Size above which a model is not built."""
WIDTHS = (
    "hidden_size",
    "d_model",
    "n_embd",
    "word_embed_proj_dim",
    "lru_width",
    "mamba_d_ssm",
    "attention_hidden_size",
)
INNER_WIDTHS = (
    *("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size", "moe_intermediate_size", "intermediate_size_mlp"),
    *("shared_expert_intermediate_size", "shared_intermediate_size", "moe_shared_expert_intermediate_size"),
)
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "mamba_n_heads", "mamba_num_heads")
FEW_HEADS = (
    *("num_key_value_heads", "linear_num_key_heads", "linear_num_value_heads"),
    *("n_groups", "mamba_n_groups", "mamba_ngroups"),
)
"""Numbers of heads, or of groups of them, that are reduced to at least one."""
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts")
DEPTHS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "depth")
CHUNKS = ("chunk_size", "mamba_chunk_size")
"""Tokens to which the reference code of recurrent layers pads."""
CHUNK = 16
SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id")


def small_models(config: Any) -> Iterator[Any]:
    """Yields models of a Transformers config in float32 on the CPU: the smallest first, then with the target's width.

    A model that cannot be built is left out; the last one's error is raised if none can.
    """
    failed: Exception | None = None
    built = 0
    for factor in dict.fromkeys((_factor(config), 1)):
        try:
            model = _build(config, factor)
        except (RuntimeError, ValueError, TypeError, LookupError, AttributeError, ZeroDivisionError) as error:
            failed = error
            continue
        if model is not None:
            built += 1
            yield model
    if not built and failed is not None:
        raise failed


def _build(config: Any, factor: int) -> Any:
    """Returns a small model, its width divided by a factor; None if it would be too large."""
    from accelerate import init_empty_weights

    small = small_config(config, factor)
    factory = language_model_class(small)
    with init_empty_weights():
        size = sum(parameter.numel() for parameter in factory.from_config(small).parameters())
    if size > MAX_PARAMETERS:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = factory.from_config(small, dtype=torch.float32).eval()
        for name, parameter in model.named_parameters():
            # The usual initial values are so small that what one example adds to another is lost in rounding.
            if parameter.ndim >= 2 and not name.endswith("A_log"):
                torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model


def small_config(config: Any, factor: int) -> Any:
    """Returns a copy of a Transformers config with fewer layers, tokens and experts, and its width divided by a factor."""
    found = config.to_dict()
    text = config.get_text_config()
    if text is config:
        return type(config).from_dict(_smaller(found, factor))
    for name in config.sub_configs:
        own = getattr(config, name, None)
        if own is not None:
            found[name] = _smaller(own.to_dict(), factor if own is text else 1, own is text)
    return type(config).from_dict(found)


def _smaller(found: dict[str, Any], factor: int, is_text: bool = True) -> dict[str, Any]:
    depth = next((found[name] for name in DEPTHS if isinstance(found.get(name), int)), 1)
    kept = min(depth, _layers_of_all_kinds(found, depth)) if is_text else 1
    out = {k: v[:kept] if isinstance(v, list) and len(v) == depth else v for k, v in found.items()}
    changes: dict[str, int] = {name: kept for name in DEPTHS if isinstance(found.get(name), int)}
    if is_text:
        vocab = min(VOCAB, found.get("vocab_size") or VOCAB)
        changes |= {
            name: min(found[name], vocab) for name in ("vocab_size", "vocab_size_per_layer_input") if name in found
        }
        changes |= {name: found[name] // factor for name in (*WIDTHS, *HEADS) if _is_positive(found.get(name))}
        changes |= {name: min(INNER, found[name]) for name in INNER_WIDTHS if _is_positive(found.get(name))}
        changes |= {name: min(CHUNK, found[name]) for name in CHUNKS if _is_positive(found.get(name))}
        changes |= {name: max(1, found[name] // factor) for name in FEW_HEADS if _is_positive(found.get(name))}
        changes |= {name: min(EXPERTS, found[name]) for name in EXPERT_COUNTS if _is_positive(found.get(name))}
        for name in SPECIAL_IDS:
            if isinstance(found.get(name), list) or (found.get(name) or 0) >= vocab:
                changes[name] = 0
    out |= changes
    for name in ("num_experts_per_tok", "moe_topk", "moe_top_k"):
        if _is_positive(found.get(name)) and any(count in changes for count in EXPERT_COUNTS):
            out[name] = min(found[name], EXPERTS // 2)
    for name in ("n_group", "topk_group"):
        if _is_positive(found.get(name)):
            out[name] = 1
    return out


def _is_positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _layers_of_all_kinds(found: dict[str, Any], depth: int) -> int:
    """Returns the number of first layers that include every kind of layer, at least `LAYERS`."""
    needed = LAYERS
    for value in found.values():
        if isinstance(value, list) and len(value) == depth and all(isinstance(kind, str) for kind in value):
            needed = max(needed, 1 + max(value.index(kind) for kind in set(value)))
    return needed


def _factor(config: Any) -> int:
    """Returns the largest number that divides all widths and numbers of heads and leaves wide enough layers.

    Those have at least `HIDDEN` features, a multiple of 16 (grouped matrix products need aligned rows), and if possible two heads.
    """
    found = config.get_text_config().to_dict()
    widths, heads = ([found[name] for name in names if _is_positive(found.get(name))] for names in (WIDTHS, HEADS))
    common = math.gcd(*widths, *heads)
    fitting = [
        n
        for n in range(1, common + 1)
        if common % n == 0 and all(width // n >= HIDDEN and width // n % 16 == 0 for width in widths)
    ]
    enough = [n for n in fitting if n > 1 and all(count // n >= 2 for count in heads)]
    return max(enough or fitting, default=1)
