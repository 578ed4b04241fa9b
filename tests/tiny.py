"""Builds tiny models of real architectures with random weights and different kinds of tokenizers, for tests of the wiring."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MptConfig,
    MptForCausalLM,
    PreTrainedTokenizerFast,
)

TEXT = [
    f"Sort the letters {a} {b} and say {n}. The answer is {n * 7}."
    for a in "abcdef"
    for b in "uvwxyz"
    for n in range(9)
]
TWO_LAYERS = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
BYTES = [f"<0x{value:02X}>" for value in range(256)]
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}USER: {{ m.content }} ASSISTANT:"
    "{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)


def byte_level_tokenizer(vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """Returns a byte-level BPE with ChatML's template."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXT, trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=specials, initial_alphabet=alphabet)
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    fast.chat_template = CHATML
    return fast


def sentencepiece_tokenizer(vocab_size: int = 460) -> PreTrainedTokenizerFast:
    """Returns a SentencePiece-style BPE (Metaspace, byte fallback) with Vicuna's template."""
    words = [word for text in TEXT for word in text.replace(" ", " \u2581").split(" ")]
    trained = Tokenizer(models.BPE())
    trained.train_from_iterator(words, trainers.BpeTrainer(vocab_size=vocab_size - 259, special_tokens=[]))
    import json

    spec = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>", *BYTES, *sorted(spec["vocab"], key=spec["vocab"].get)]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    merges = [tuple(merge) for merge in spec["merges"]]
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>"
    )
    fast.chat_template = VICUNA
    return fast


def save(model, tokenizer, folder: Path) -> str:
    model.config.eos_token_id = tokenizer.eos_token_id
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def llama(folder: Path, seed: int = 0, **shape: int) -> str:
    torch.manual_seed(seed)
    tokenizer = sentencepiece_tokenizer()
    shape = {"vocab_size": len(tokenizer), "max_position_embeddings": 256, **TWO_LAYERS, **shape}
    return save(LlamaForCausalLM(LlamaConfig(initializer_range=0.3, **shape)), tokenizer, folder)


def mpt(folder: Path, seed: int = 1) -> str:
    torch.manual_seed(seed)
    tokenizer = byte_level_tokenizer()
    config = MptConfig(vocab_size=len(tokenizer), d_model=64, n_heads=2, n_layers=2, max_seq_len=256)
    config.attn_config.clip_qkv = 8.0
    return save(MptForCausalLM(config), tokenizer, folder)


def neox(folder: Path, seed: int = 2) -> str:
    torch.manual_seed(seed)
    tokenizer = byte_level_tokenizer(480)
    config = GPTNeoXConfig(vocab_size=len(tokenizer), max_position_embeddings=256, initializer_range=0.3, **TWO_LAYERS)
    return save(GPTNeoXForCausalLM(config), tokenizer, folder)


def reward(folder: Path, seed: int = 3) -> str:
    torch.manual_seed(seed)
    tokenizer = sentencepiece_tokenizer()
    shape = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=256,
        num_labels=1,
        pad_token_id=0,
        initializer_range=0.3,
        **shape,
    )
    return save(LlamaForSequenceClassification(config), tokenizer, folder)
