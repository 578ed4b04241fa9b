"""Adapters: only they are trained and saved, and merging them into the weights does not change the model's output."""

import copy
import re

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, GptOssConfig, LlamaConfig, MixtralConfig, Qwen3MoeConfig

from profuser.errors import UserError
from profuser.recipe.fusing import LoraConfig
from profuser.training.checkpoint import Checkpointer, load_checkpoint
from profuser.training.export import whole_weights
from profuser.training.lora import (
    adapted_layers,
    add_adapters,
    describe_adapters,
    fill_adapters,
    plain_name,
    weight_name,
)
from profuser.training.step import FusionModule
from profuser.training.target import prepare
from tests.training.made import CONFIGS, SMALL, Setting, V, config

ALL = {
    **CONFIGS,
    # It stores its weights transposed.
    "gpt2": GPT2Config(vocab_size=V, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=1),
    "mixtral": MixtralConfig(vocab_size=V, num_key_value_heads=1, num_local_experts=4, **SMALL),
    "llama, wide": LlamaConfig(vocab_size=V, **{**SMALL, "hidden_size": 256, "intermediate_size": 512}),
}
SHORT = {"duration": {"kind": "steps", "value": 2}}
IDS = torch.arange(24).reshape(2, 12) * 7 % V


def make(name):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(ALL[name], dtype=torch.float32).eval()


def adapted(name, **settings):
    """Returns a target with adapters as at the start of a run."""
    model = make(name)
    add_adapters(model, LoraConfig(rank=2, **settings))
    fill_adapters(model, seed=0)
    return model


def disturb(model):
    """Simulates training: B is no longer zero."""
    for layer in adapted_layers(model).values():
        torch.nn.init.normal_(layer.lora_B["default"].weight, std=0.1)


@pytest.mark.parametrize("name", ALL)
def test_a_run_starts_with_the_targets_output(name):
    torch.testing.assert_close(adapted(name)(IDS).logits, make(name)(IDS).logits, rtol=0, atol=0)


@pytest.mark.parametrize("name", ALL)
def test_merged_weights_give_the_output_of_the_adapters(name):
    model, plain = adapted(name, alpha=3.0), make(name)
    disturb(model)
    before = plain(IDS).logits
    missing, surplus = plain.load_state_dict(dict(whole_weights(model)), strict=False)
    assert set(missing) <= {"lm_head.weight"}  # if it is tied
    assert not surplus
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-5)
    assert (plain(IDS).logits - before).abs().max() > 0.01


@pytest.mark.parametrize("name", ["llama", "gpt2", "mpt"])
def test_training_changes_only_adapters(name):
    settings = config(lora={"rank": 2}, **SHORT)
    setting, model = Setting(settings), prepare(make(name), settings)
    fill_adapters(model, seed=0)
    before = copy.deepcopy(model.state_dict())
    setting.run(setting.trainer(module=FusionModule(model, settings)))
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {key for key in before if "lora_" in key}


def test_a_checkpoint_has_only_adapters_and_restores_them(tmp_path):
    settings = {kind: config(lora=lora, **SHORT) for kind, lora in (("whole", None), ("adapters", {"rank": 1}))}
    size = {}
    for kind, each in settings.items():
        trainer = Setting(each).trainer(make("llama, wide"))
        Setting(each).run(trainer)
        Checkpointer().save(trainer, tmp_path / kind)()
        size[kind] = sum(file.stat().st_size for file in (tmp_path / kind).iterdir())
    assert size["adapters"] < size["whole"] / 10
    again = Setting(settings["adapters"]).trainer(make("llama, wide"))
    load_checkpoint(again, tmp_path / "adapters")
    for mine, wanted in zip(again.module.parameters(), trainer.module.parameters(), strict=True):
        assert torch.equal(mine, wanted)


@pytest.mark.parametrize(
    ("modules", "wanted"),
    [
        ((), {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        (("q_proj", "mlp.up_proj"), {"q_proj", "up_proj"}),
        (("layers.1.self_attn.v_proj",), {"v_proj"}),
    ],
)
def test_layers_are_adapted_by_name(modules, wanted):
    names = adapted_layers(adapted("llama", modules=modules)).keys()
    assert {name.rpartition(".")[2] for name in names} == wanted
    assert len(names) == (1 if len(modules) == 1 else 2 * len(wanted))


@pytest.mark.parametrize(
    ("name", "module"),
    [("llama", "qproj"), ("llama", "lm_head"), ("llama", "embed_tokens"), ("llama", "proj"), ("mixtral", "experts")],
)
def test_a_name_that_matches_no_linear_layer_is_reported(name, module):
    with pytest.raises(UserError, match=rf"^fuse\.lora\.modules: '{module}' .*; it has .*k_proj, .*v_proj$"):
        adapted(name, modules=("q_proj", module))


MOE = {
    "mixtral": ALL["mixtral"],
    "qwen3_moe": Qwen3MoeConfig(
        vocab_size=V,
        num_key_value_heads=1,
        head_dim=16,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        **SMALL,
    ),
    # Its experts are stored with the inputs first, and have biases.
    "gpt_oss": GptOssConfig(
        vocab_size=V,
        num_key_value_heads=1,
        head_dim=16,
        num_local_experts=4,
        num_experts_per_tok=2,
        pad_token_id=0,
        **{**SMALL, "hidden_size": 48, "intermediate_size": 64},
    ),
}
ALL |= MOE


@pytest.mark.parametrize("name", MOE)
def test_experts_get_adapters_that_train_and_merge(name):
    model, plain = adapted(name, alpha=3.0), make(name)
    layers = {weight_name(key, layer) for key, layer in adapted_layers(model).items()}
    for part in ("gate_up_proj", "down_proj"):
        assert sum(key.endswith(f"experts.{part}") for key in layers) == 2
    disturb(model)
    model(IDS).logits.square().sum().backward()
    moved = [key for key, each in model.named_parameters() if each.grad is not None and each.grad.abs().sum() > 0]
    assert any("experts" in key for key in moved)
    assert all("lora_" in key for key in moved)
    plain.load_state_dict(dict(whole_weights(model)))
    torch.testing.assert_close(plain(IDS).logits, model(IDS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MOE)
def test_merged_experts_equal_pefts_own_merge(name):
    """The oracle merges in place, expert by expert."""
    model = adapted(name, alpha=3.0, modules=("down_proj", "gate_up_proj"))
    disturb(model)
    ours = {key: weight.clone() for key, weight in whole_weights(model)}
    for layer in reversed([*adapted_layers(model).values()]):
        layer.merge()
    theirs = {plain_name(key): each for key, each in model.named_parameters() if "lora_" not in key}
    for key, weight in theirs.items():
        torch.testing.assert_close(ours[key], weight, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "trained", "left"),
    [
        (
            {},
            r"down_proj \(2\), gate_up_proj \(2\), .*v_proj \(2\)",
            r"embed_tokens \(1\), gate \(2\), lm_head \(1\), norms",
        ),
        ({"modules": ("gate_up_proj",)}, r"gate_up_proj \(2\): 1,", r"down_proj \(2\), embed_tokens"),
        ({"dropout": 0.1}, r"k_proj \(2\), o", r"down_proj \(2\), .*dropout above 0 experts get no adapters$"),
    ],
)
def test_a_line_lists_what_is_trained_and_what_is_not(settings, trained, left):
    line = describe_adapters(adapted("qwen3_moe", **settings), LoraConfig(rank=2, **settings))
    assert re.match(rf"fuse\.lora: adapters of rank 2 on {trained}.*; not trained: {left}", line), line
