"""What an architecture cannot do is found on a small random model of a target's own config, before anything is paid."""

import copy
import json

import pytest
import torch
from transformers import AutoConfig

from profuser.errors import UserError
from profuser.models.classes import backbone, language_model_class, text_parameters
from profuser.recipe.models import OwnTemplate, TargetConfig
from profuser.training.checks import check_architecture, check_packing
from profuser.training.export import export
from profuser.training.small import small_config, small_models
from profuser.training.step import FusionModule
from profuser.training.target import check_trainable, load_target
from tests import tiny
from tests.training.families import MULTIMODAL, RECURRENT, WITH_EXPERTS
from tests.training.made import CONFIGS, Setting, config

CPU = torch.device("cpu")
PACKED = {**CONFIGS, **WITH_EXPERTS, **MULTIMODAL}
LARGE = {
    "llama 70B": {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80, "num_attention_heads": 64},
    "an odd number of heads": {"hidden_size": 4544, "num_attention_heads": 71, "num_key_value_heads": 1},
}


@pytest.mark.parametrize("name", PACKED)
def test_an_architecture_that_keeps_examples_separate_passes(name):
    assert check_architecture(copy.deepcopy(PACKED[name]), config(), name) is None


@pytest.mark.parametrize("name", RECURRENT)
def test_an_architecture_whose_state_passes_from_example_to_example_is_refused(name):
    settings = copy.deepcopy(RECURRENT[name])
    with pytest.raises(UserError, match=r"target.model: some/model: .* packed examples .*; set fuse.packing: false$"):
        check_architecture(settings, config(), "some/model")
    assert check_architecture(settings, config(packing=False), "some/model") is None


@pytest.mark.parametrize("size", [0.3, 0.003])
def test_a_small_influence_of_one_example_on_another_is_found(size):
    """The oracle is a model whose hidden states get a share of the mean of all tokens before them."""
    module = FusionModule(next(small_models(copy.deepcopy(CONFIGS["llama"]))), config())
    check_packing(module, "some/model")
    inner = module.model.model.forward

    def mixing(**inputs):
        out = inner(**inputs)
        steps = torch.arange(1, out.last_hidden_state.shape[1] + 1)[:, None]
        out.last_hidden_state = out.last_hidden_state + size * out.last_hidden_state.cumsum(1) / steps
        return out

    module.model.model.forward = mixing
    with pytest.raises(UserError, match="with another first example, the second's hidden states differ by"):
        check_packing(module, "some/model")


@pytest.mark.parametrize("size", LARGE)
def test_a_large_target_is_tried_on_a_small_model(size):
    large = AutoConfig.for_model("llama", **LARGE[size])
    model = next(small_models(large))
    assert sum(parameter.numel() for parameter in model.parameters()) < 5e6
    assert (
        model.config.hidden_size // model.config.num_attention_heads == large.hidden_size // large.num_attention_heads
    )


def test_a_small_model_has_every_kind_of_layer():
    kinds = ["linear_attention"] * 11 + ["full_attention"]
    small = small_config(AutoConfig.for_model("qwen3_next", layer_types=kinds * 2, num_hidden_layers=24), 1)
    assert small.layer_types == kinds


def test_an_output_layer_that_the_loss_does_not_support_is_refused():
    settings = AutoConfig.for_model(
        "recurrent_gemma", vocab_size=300, hidden_size=64, num_attention_heads=2, lru_width=64
    )
    with pytest.raises(UserError, match="changes its logits in a way that the fusion loss does not support"):
        check_architecture(settings, config(), "some/model")


def saved(name, folder):
    """Saves a whole multimodal model with a tokenizer."""
    import transformers

    settings = copy.deepcopy(MULTIMODAL[name])
    torch.manual_seed(0)
    whole = {"llama4": "Llama4ForConditionalGeneration"}.get(name)
    model = getattr(transformers, whole)(settings) if whole else language_model_class(settings).from_config(settings)
    model.save_pretrained(folder)
    tiny.byte_level_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", MULTIMODAL)
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_of_a_multimodal_target_only_the_text_part_is_trained(name, lora, tmp_path):
    target, settings = saved(name, tmp_path / "target"), config(lora=lora)
    lines = check_trainable(str(target), None, settings)
    setting, module = Setting(settings), load_target(str(target), None, settings, CPU)
    before = {key: each.detach().clone() for key, each in module.model.named_parameters()}
    setting.run(setting.trainer(module=module))
    changed = {key for key, each in module.model.named_parameters() if not torch.equal(each, before[key])}
    assert changed
    assert not [key for key in changed if any(part in key for part in ("vision", "visual", "projector"))]
    assert all("lora_" in key for key in changed) == bool(lora)
    export(module, str(target), TargetConfig(model=str(target)), OwnTemplate(), tmp_path / "fused")
    found = AutoConfig.from_pretrained(tmp_path / "fused")
    fused = language_model_class(found).from_pretrained(tmp_path / "fused").eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        wanted, got = (backbone(each.eval())(input_ids=ids).last_hidden_state for each in (module.model, fused))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    multimodal = text_parameters(fused) is not None
    assert multimodal == (name != "llama4")
    assert any("only its text part is trained" in line for line in lines) == multimodal
    assert json.loads((tmp_path / "fused" / "config.json").read_text())["architectures"] == [type(fused).__name__]
