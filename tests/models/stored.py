"""Stores tiny models in the formats of released checkpoints: FP8 with scales, GGUF, a LoRA adapter, quantised by other methods."""

import json
import shutil
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

BLOCK = 32
OTHER_METHODS = {
    "gptq": {"quant_method": "gptq", "bits": 4, "group_size": 128},
    "awq": {"quant_method": "awq", "bits": 4, "version": "gemm"},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "compressed-tensors": {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
    "mxfp4": {"quant_method": "mxfp4"},
}
"""`quantization_config` of methods whose weights Transformers does not multiply out here."""


def edit_config(folder: Path, **settings) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def fp8(model: Path, folder: Path, scales: str) -> dict[str, torch.Tensor]:
    """Stores a model's linear layers in FP8 with scales by block or by tensor; returns the dequantised weights."""
    shutil.copytree(model, folder)
    stored, exact = {}, {}
    for name, weight in load_file(model / "model.safetensors").items():
        exact[name] = stored[name] = weight
        if "_proj." not in name:
            continue
        rows, columns = weight.shape
        if scales == "block":
            scale = weight.reshape(rows // BLOCK, BLOCK, columns // BLOCK, BLOCK).abs().amax((1, 3)) / 448
            wide = scale.repeat_interleave(BLOCK, 0).repeat_interleave(BLOCK, 1)
        else:
            scale = wide = weight.abs().max() / 448
        stored[name] = (weight / wide).to(torch.float8_e4m3fn)
        stored[f"{name}_scale_inv"], exact[name] = scale, stored[name].float() * wide
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    size = [BLOCK, BLOCK] if scales == "block" else None
    scheme = "dynamic" if scales == "block" else "static"
    method = {"quant_method": "fp8", "activation_scheme": scheme, "weight_block_size": size}
    edit_config(folder, quantization_config=method)
    return exact


def gguf(model: Path, file: Path, kind: str = "F32") -> None:
    """Stores a Llama with a byte-level tokenizer as a GGUF file, as llama.cpp's converter does."""
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType
    from gguf.quants import quantize

    config, tokenizer = json.loads((model / "config.json").read_text()), AutoTokenizer.from_pretrained(model)
    heads = config["num_attention_heads"]
    writer = GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_file_type(LlamaFileType.ALL_F32 if kind == "F32" else LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["id"]: token["content"] for token in spec["added_tokens"]}
    pieces = [added.get(index) or tokenizer.convert_ids_to_tokens(index) for index in range(config["vocab_size"])]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(pieces)
    writer.add_token_types([3 if index in added else 1 for index in range(len(pieces))])
    writer.add_token_merges([" ".join(merge) for merge in spec["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)
    for name, weight in load_file(model / "model.safetensors").items():
        array = weight.numpy()
        for part in ("q_proj", "k_proj"):
            if part in name:  # llama.cpp keeps the two halves of a rotated head interleaved
                count = heads if part == "q_proj" else config["num_key_value_heads"]
                array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        quantised = kind != "F32" and "_proj" in name
        if quantised:
            array = quantize(np.ascontiguousarray(array), GGMLQuantizationType[kind])
        raw = GGMLQuantizationType[kind] if quantised else None
        writer.add_tensor(_gguf_name(name), np.ascontiguousarray(array), raw_dtype=raw)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _gguf_name(name: str) -> str:
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "lm_head": "output",
        "model.layers": "blk",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "post_attention_layernorm": "ffn_norm",
        "input_layernorm": "attn_norm",
    }
    for old, new in names.items():
        name = name.replace(old, new)
    return name


def adapter(model: Path, folder: Path, base: str | None = None, rows: int | None = None) -> torch.nn.Module:
    """Stores a LoRA adapter of a model with peft, and returns the adapted model.

    Args:
        model: folder of the base.
        folder: the adapter's folder.
        base: how the adapter names its base; by default by its path.
        rows: rows of an enlarged embedding and output layer that the adapter holds whole.
    """
    plain = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    if rows:
        plain.resize_token_embeddings(rows)
    whole = ["embed_tokens", "lm_head"] if rows else None
    found = get_peft_model(
        plain, LoraConfig(r=4, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", modules_to_save=whole)
    )
    for name, parameter in found.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    found.save_pretrained(folder)
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": base or str(model)}))
    return found.eval()


def on_hub(cache: Path, name: str, folder: Path) -> None:
    """Puts a folder into a cache of the Hub, as if it had been downloaded."""
    place, commit = cache / f"models--{name.replace('/', '--')}", "0" * 39 + "1"
    shutil.copytree(folder, place / "snapshots" / commit)
    (place / "refs").mkdir()
    (place / "refs" / "main").write_text(commit)
