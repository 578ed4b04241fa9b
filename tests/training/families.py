"""Small configs of architectures beyond plain decoders: with recurrent state, with experts, multimodal."""

from typing import Any

import transformers
from transformers import PretrainedConfig

from tests.training.made import SMALL, V

GROUPED = {"vocab_size": V, "num_key_value_heads": 1, "pad_token_id": 0, **SMALL}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}


def _made(name: str, **settings: Any) -> PretrainedConfig:
    return getattr(transformers, name)(**settings)


RECURRENT = {
    "qwen3_next": _made(
        "Qwen3NextConfig",
        **GROUPED | EXPERTS | {"num_hidden_layers": 4, "head_dim": 16, "shared_expert_intermediate_size": 16},
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
    ),
    "jamba": _made("JambaConfig", **GROUPED | {"num_hidden_layers": 8}, num_experts=4, mamba_d_state=8),
    "bamba": _made("BambaConfig", **GROUPED, **MAMBA, attn_layer_indices=[1]),
    "falcon_h1": _made("FalconH1Config", **GROUPED, **MAMBA, mamba_d_ssm=64, head_dim=16),
    "granite, hybrid": _made(
        "GraniteMoeHybridConfig",
        **GROUPED,
        **MAMBA,
        layer_types=["mamba", "attention"],
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=16,
    ),
    "mamba": _made("MambaConfig", vocab_size=V, hidden_size=32, num_hidden_layers=2, state_size=8),
    "mamba2": _made(
        "Mamba2Config",
        **{"vocab_size": V, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8, "n_groups": 1},
        **{"num_heads": 4, "head_dim": 16, "chunk_size": 16},
    ),
    "lfm2": _made("Lfm2Config", **GROUPED, layer_types=["conv", "full_attention"]),
}
"""Architectures with recurrent or convolutional state, which Transformers carries from one packed example into the next."""

WITH_EXPERTS = {
    "mixtral": _made("MixtralConfig", **GROUPED, num_local_experts=4),
    "qwen3_moe": _made("Qwen3MoeConfig", **GROUPED | EXPERTS, head_dim=16),
    "deepseek_v3": _made(
        "DeepseekV3Config",
        **GROUPED | {"num_key_value_heads": 2, "num_hidden_layers": 4, "moe_intermediate_size": 16},
        **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1},
        **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8},
    ),
}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
}
MULTIMODAL = {
    "gemma3": _made(
        "Gemma3Config",
        text_config={**GROUPED, "head_dim": 16, "sliding_window": 8},
        vision_config={**VISION, "patch_size": 14, "model_type": "siglip_vision_model"},
        mm_tokens_per_image=4,
        image_token_index=V - 1,
    ),
    "qwen2_5_vl": _made(
        "Qwen2_5_VLConfig",
        text_config={
            **GROUPED,
            "max_position_embeddings": 128,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 3, 3]},
        },
        vision_config={"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32},
        image_token_id=V - 1,
        video_token_id=V - 2,
    ),
    "llama4": _made(
        "Llama4Config",
        text_config={
            **GROUPED,
            **{"intermediate_size_mlp": 48, "num_local_experts": 4, "head_dim": 16, "num_experts_per_tok": 1},
            "attention_chunk_size": 64,
        },
        vision_config={**VISION, "vision_output_dim": 16, "projector_input_dim": 16, "projector_output_dim": 16},
    ),
}
"""Of these, Transformers trains the whole model of the first two, and a model of the text part alone of the last."""
