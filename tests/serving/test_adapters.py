"""LoRA adapters of a served model: another model's are refused, and so are those that vLLM would apply wrongly."""

import json
import shutil
from pathlib import Path

import pytest
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from profuser.errors import UserError
from profuser.models.reference import ModelRef
from profuser.serving.adapters import adapter_flags, read_adapter
from tests import tiny


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Returns a model, an adapter of rank 4 on it, and one of rank 12."""
    folder = tmp_path_factory.mktemp("adapters")
    base = tiny.llama(folder / "base")
    for name, rank in (("small", 4), ("large", 12)):
        model = AutoModelForCausalLM.from_pretrained(base)
        get_peft_model(model, LoraConfig(r=rank, target_modules=["q_proj", "v_proj"])).save_pretrained(folder / name)
    return folder


def changed(made, folder, **settings):
    """Returns a copy of the small adapter with other settings."""
    shutil.copytree(made / "small", folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return str(folder)


def read(made, location, base="base"):
    return read_adapter("poems", str(location), ModelRef(str(made / base)))


def test_rank_and_number_are_reserved_from_the_adapters(made):
    small, large = read(made, made / "small"), read(made, made / "large")
    assert (small.rank, large.rank, small.note) == (4, 12, None)
    flags = adapter_flags([small, large], on_gpu=True)
    assert flags[:7] == ["--enable-lora", "--max-lora-rank", "16", "--max-loras", "2", "--max-cpu-loras", "2"]
    assert json.loads(flags[8]) == {"name": "poems", "path": str(made / "small")}
    assert adapter_flags([], on_gpu=True) == []


def test_a_moved_base_is_known_by_its_weights(made, tmp_path):
    moved = shutil.copytree(made / "base", tmp_path / "moved")
    (moved / "chat_template.jinja").write_text("another template")
    assert read(made, made / "small", moved).note is None


def test_an_adapter_of_another_model_is_refused(made, tmp_path):
    other = tiny.llama(tmp_path / "other", seed=1)
    with pytest.raises(
        UserError, match=r"is an adapter of .*base, and the served model is .*other; serve its own model"
    ):
        read(made, made / "small", other)


@pytest.mark.parametrize(("size", "words"), [("wide", "features for model.layers.0"), ("shallow", "which .* lacks")])
def test_an_adapter_whose_base_is_gone_is_compared_by_its_shapes(made, tmp_path, size, words):
    location = changed(made, tmp_path / "a", base_model_name_or_path="/gone/base")
    assert "does not exist here; only the shapes" in read(made, location).note
    kind = {"hidden_size": 128} if size == "wide" else {"num_hidden_layers": 1}
    with pytest.raises(UserError, match=words):
        read(made, location, tiny.llama(tmp_path / size, **kind))


UNUSABLE = {
    "DoRA": ({"use_dora": True}, "`use_dora`"),
    "a layer that is saved whole": ({"modules_to_save": ["lm_head"]}, "`modules_to_save`"),
    "ranks that differ": ({"rank_pattern": {"q_proj": 8}}, "`rank_pattern`"),
    "scales that differ": ({"alpha_pattern": {"q_proj": 8}}, "`alpha_pattern`"),
    "biases": ({"bias": "all"}, "`bias`"),
    "another kind": ({"peft_type": "IA3"}, "type IA3"),
    "too large a rank": ({"r": 1024}, "rank 1024; vLLM applies 1 to 512"),
}


@pytest.mark.parametrize(("settings", "words"), UNUSABLE.values(), ids=UNUSABLE)
def test_what_vllm_would_not_apply_is_refused_with_the_way_to_serve_it(made, tmp_path, settings, words):
    with pytest.raises(UserError, match="merged into its model it can be served: --model poems=") as caught:
        read(made, changed(made, tmp_path / "a", **settings))
    assert words in str(caught.value)


@pytest.mark.parametrize("location", ["base", "nowhere"])
def test_a_folder_that_is_no_adapter_is_refused(made, location):
    with pytest.raises(UserError, match="is not a LoRA adapter"):
        read(made, made / location)


def test_an_adapter_with_a_bin_file_is_left_to_vllm(made, tmp_path):
    location = changed(made, tmp_path / "a")
    (Path(location) / "adapter_model.safetensors").unlink()
    assert read(made, location).rank == 4
