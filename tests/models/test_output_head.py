"""The head that the loss computes equals the model's own, whatever the architecture does to its logits."""

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaForCausalLM,
    MptForCausalLM,
    PhiConfig,
    PhiForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from profuser.errors import UserError
from profuser.models.output_head import OutputHead, check_head
from tests.training.made import model as tiny_model

SHAPE = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
}


def models():
    torch.manual_seed(0)
    yield from map(tiny_model, ("llama", "gpt_neox", "mpt"))
    yield Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True))
    yield Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=16, final_logit_softcapping=0.1))
    yield CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25))
    yield GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=8.0))
    phi = PhiForCausalLM(PhiConfig(**{**SHAPE, "num_key_value_heads": 2}))
    torch.nn.init.normal_(phi.lm_head.bias)
    yield phi


def test_every_supported_head_is_read_correctly():
    kinds = []
    for model in models():
        check_head(model, "path")
        kinds.append(type(model))
    assert kinds[:3] == [LlamaForCausalLM, GPTNeoXForCausalLM, MptForCausalLM]


def test_bias_scale_and_cap_are_found():
    heads = {type(model).__name__: OutputHead.of(model) for model in models()}
    assert heads["Gemma2ForCausalLM"].softcap == 0.1
    assert heads["CohereForCausalLM"].scale == 0.25
    assert heads["GraniteForCausalLM"].scale == 1 / 8
    assert heads["PhiForCausalLM"].bias is not None
    assert heads["LlamaForCausalLM"][1:] == (None, 1.0, None)


def test_a_head_that_the_loss_does_not_support_is_rejected():
    class Odd(LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits * 1.1
            return out

    model = tiny_model()
    model.__class__ = Odd
    with pytest.raises(UserError, match="Odd changes its logits"):
        check_head(model, "path")
