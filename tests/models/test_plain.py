"""Models as they are released (FP8, GGUF, LoRA adapters, other quantisations) become plain folders, or are refused by name."""

import json
import shutil
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from profuser.errors import UserError
from profuser.models import plain
from profuser.models.formats import Format
from profuser.models.reference import ModelRef, local_model
from tests import tiny
from tests.models import stored

IDS = torch.arange(24).reshape(2, 12) * 7 % 300
SETTING = "target.model"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(plain, "PLAIN", tmp_path / "cache")
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Returns a Llama with a byte-level tokenizer."""
    folder = tmp_path_factory.mktemp("llama")
    tokenizer = tiny.byte_level_tokenizer()
    tiny.llama(folder, vocab_size=len(tokenizer), num_key_value_heads=1)
    for file in folder.glob("tokenizer*"):
        file.unlink()
    tokenizer.save_pretrained(folder)
    stored.edit_config(folder, eos_token_id=tokenizer.eos_token_id)
    return folder


def logits(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return model(IDS).logits.detach()


def config(folder):
    return json.loads((Path(folder) / "config.json").read_text())


@pytest.mark.parametrize("scales", ["block", "tensor"])
def test_fp8_weights_are_multiplied_by_their_scales_for_training(scales, llama, tmp_path):
    exact = stored.fp8(llama, tmp_path / "fp8", scales)
    ref = ModelRef(str(tmp_path / "fp8"))
    light = ref.local(weights=False, setting=SETTING, trained=True)
    assert "quantization_config" not in config(light)
    folder = ref.local(setting=SETTING, trained=True)
    assert "quantization_config" not in config(folder)
    oracle = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32).eval()
    plainly = oracle(IDS).logits.detach()
    oracle.load_state_dict(exact, strict=False)
    torch.testing.assert_close(logits(folder), oracle(IDS).logits.detach(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(folder), plainly, rtol=1e-4, atol=1e-4)
    assert "multiplied by their scales" in (ref.conversion(SETTING, trained=True) or "")
    assert ref.conversion(SETTING, trained=False) is None
    # An engine reads FP8 itself.
    assert ref.local() == str(tmp_path / "fp8")


@pytest.mark.parametrize("method", stored.OTHER_METHODS)
def test_other_quantised_weights_are_refused_as_a_target_from_the_config_alone(method, llama, tmp_path):
    folder = tmp_path / "quantised"
    folder.mkdir()
    shutil.copy(llama / "config.json", folder)
    stored.edit_config(folder, quantization_config=stored.OTHER_METHODS[method])
    with pytest.raises(
        UserError, match=rf"^target.model: .*quantised \({method}.*name the checkpoint that they were made"
    ):
        ModelRef(str(folder)).local(weights=False, setting=SETTING, trained=True)
    assert local_model(str(folder)) == str(folder)


def test_a_gguf_file_becomes_a_plain_folder_with_tokenizer_and_template(llama, tmp_path):
    file = tmp_path / "tiny-F32.gguf"
    stored.gguf(llama, file)
    ref = ModelRef(str(file))
    assert ref.config(SETTING)["vocab_size"] == config(llama)["vocab_size"]
    light = Path(ref.local(weights=False))
    assert not list(light.glob("*.safetensors"))
    folder = ref.local()
    torch.testing.assert_close(logits(folder), logits(llama), rtol=1e-4, atol=1e-4)
    ours, theirs = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(llama)
    text = "Sort the letters a b<|im_end|> 17"
    assert ours(text, add_special_tokens=False)["input_ids"] == theirs(text)["input_ids"]
    turns = [{"role": "user", "content": "hello"}]
    assert ours.apply_chat_template(turns, tokenize=False) == theirs.apply_chat_template(turns, tokenize=False)
    assert ours.eos_token_id == theirs.eos_token_id
    assert config(folder)["architectures"] == ["LlamaForCausalLM"]
    assert "quantization_config" not in config(folder)


def test_a_quantised_gguf_file_alone_in_its_folder_is_dequantised_once(llama, tmp_path, capsys):
    folder = tmp_path / "repository"
    folder.mkdir()
    stored.gguf(llama, folder / "tiny-Q8_0.gguf", "Q8_0")
    made = local_model(str(folder))
    near, exact = logits(made), logits(llama)
    assert 1e-4 < float((near - exact).abs().max() / exact.abs().max()) < 0.2
    assert "converted once into" in capsys.readouterr().out
    assert local_model(str(folder)) == local_model(str(folder / "tiny-Q8_0.gguf")) == made
    assert not capsys.readouterr().out


def test_of_several_gguf_files_one_must_be_named(llama, tmp_path):
    for name in ("a-Q4_K_M.gguf", "b-Q8_0.gguf", "mmproj-F16.gguf"):
        (tmp_path / name).write_bytes(b"GGUF")
    with pytest.raises(
        UserError, match=r"sources.a.model: .*2 GGUF files: a-Q4_K_M.gguf, b-Q8_0.gguf; name one: .*/a-Q4_K_M"
    ):
        ModelRef(str(tmp_path)).digest("sources.a.model")


@pytest.mark.parametrize("content", [b"GGUF", b"not at all", b""])
def test_a_damaged_gguf_file_is_reported_in_one_line(content, tmp_path):
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(UserError, match=r"^sources.a.model: .*x.gguf .*cannot be converted: ") as error:
        ModelRef(str(tmp_path / "x.gguf")).config("sources.a.model")
    assert "\n" not in str(error.value)


def test_a_missing_gguf_file_is_reported(tmp_path):
    with pytest.raises(UserError, match=r"target.model: .*no such file"):
        ModelRef(str(tmp_path / "x.gguf")).digest(SETTING)


@pytest.mark.parametrize("rows", [None, 320])
def test_an_adapter_is_merged_into_its_base(rows, llama, tmp_path):
    oracle = stored.adapter(llama, tmp_path / "adapter", rows=rows)
    ref = ModelRef(str(tmp_path / "adapter"))
    assert ref.format is Format.ADAPTER
    assert f"merged into {llama}, once in the cache" in (ref.conversion(SETTING, trained=False) or "")
    assert ref.config(SETTING)["vocab_size"] == (rows or config(llama)["vocab_size"])
    folder = ref.local(setting=SETTING, trained=True)
    torch.testing.assert_close(logits(folder), oracle(IDS).logits.detach(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(logits(folder)[..., : logits(llama).shape[-1]], logits(llama), rtol=1e-3, atol=1e-3)
    assert AutoTokenizer.from_pretrained(folder).chat_template


def test_an_adapters_own_tokenizer_is_used(llama, tmp_path):
    stored.adapter(llama, tmp_path / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(llama)
    tokenizer.chat_template = "{{ messages[0].content }}!"
    tokenizer.save_pretrained(tmp_path / "adapter")
    found = AutoTokenizer.from_pretrained(ModelRef(str(tmp_path / "adapter")).local(weights=False))
    assert found.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False) == "hello!"


def test_another_base_or_another_adapter_is_another_model(llama, tmp_path):
    for name in ("a", "b"):
        shutil.copytree(llama, tmp_path / f"base-{name}")
        stored.adapter(llama, tmp_path / name, base=f"./base-{name}")
    stored.edit_config(tmp_path / "base-b", rope_parameters={"rope_theta": 5.0, "rope_type": "default"})
    first, second = (ModelRef(str(tmp_path / name)).digest(SETTING) for name in ("a", "b"))
    assert first != second
    weights = tmp_path / "a" / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"1234")
    assert ModelRef(str(tmp_path / "a")).digest(SETTING) != first


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"base_model_name_or_path": None}, "names no base_model_name_or_path"),
        ({"base_model_name_or_path": "./nowhere"}, "'./nowhere' is not a model: no such folder"),
        ({"task_type": "SEQ_CLS"}, "an adapter for SEQ_CLS cannot be merged"),
    ],
)
def test_an_adapter_without_a_usable_base_is_reported(settings, reason, llama, tmp_path):
    stored.adapter(llama, tmp_path / "adapter")
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    with pytest.raises(UserError, match=rf"^sources.a.model: .*{reason}"):
        ModelRef(str(tmp_path / "adapter")).digest("sources.a.model")


def test_an_adapter_of_a_quantised_base_is_refused(llama, tmp_path):
    shutil.copytree(llama, tmp_path / "base")
    stored.adapter(llama, tmp_path / "adapter", base=str(tmp_path / "base"))
    stored.edit_config(tmp_path / "base", quantization_config=stored.OTHER_METHODS["bitsandbytes"])
    with pytest.raises(UserError, match=r"a LoRA adapter for .*base: .*quantised \(bitsandbytes, 4 bits\)"):
        ModelRef(str(tmp_path / "adapter")).local(weights=False)


def test_models_of_the_hub_are_converted_from_its_cache(llama, tmp_path, monkeypatch):
    hub = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    stored.on_hub(hub, "org/base", llama)
    oracle = stored.adapter(llama, tmp_path / "adapter", base="org/base")
    stored.on_hub(hub, "org/adapter", tmp_path / "adapter")
    (tmp_path / "gguf").mkdir()
    stored.gguf(llama, tmp_path / "gguf" / "tiny.gguf")
    stored.on_hub(hub, "org/tiny-GGUF", tmp_path / "gguf")
    assert local_model("org/base") == "org/base"
    adapted, unpacked = ModelRef("org/adapter"), ModelRef("org/tiny-GGUF/tiny.gguf")
    assert not adapted.is_local
    assert not unpacked.is_local
    torch.testing.assert_close(logits(adapted.local()), oracle(IDS).logits.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(logits(unpacked.local()), logits(llama), rtol=1e-4, atol=1e-4)
    assert len({adapted.digest(SETTING), unpacked.digest(SETTING), ModelRef("org/base").digest(SETTING)}) == 3
