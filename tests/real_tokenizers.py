"""Loads tokenizers of released models from the files that vLLM's dependency mistral_common ships."""

import json
import shutil
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import mistral_common

DATA = Path(mistral_common.__file__).parent / "data"
SENTENCEPIECE = "tokenizer.model.v1"
"""Mistral 7B v1's tokenizer: SentencePiece BPE with byte fallback over 32,000 pieces, like Llama 2's and Vicuna's."""
SENTENCEPIECE_CONTROL = "mistral_instruct_tokenizer_240323.model.v3"
"""Mistral 7B v3's tokenizer: the same with 768 control tokens in front."""
TEKKEN = "tekken_240718.json"
"""Mistral Nemo's tokenizer: byte-level BPE over 131,072 tokens, built like Llama 3's."""


@cache
def sentencepiece(name: str = SENTENCEPIECE, **options: Any) -> Any:
    """Returns a SentencePiece model as a fast tokenizer, as converted by `transformers`."""
    from transformers import LlamaTokenizer

    with TemporaryDirectory() as folder:
        shutil.copy(DATA / name, Path(folder) / "tokenizer.model")
        return LlamaTokenizer.from_pretrained(folder, **options)


@cache
def tekken(num_tokens: int = 131_072) -> Any:
    """Returns Tekken, or the BPE of its first ranks, which is complete: a merge needs only tokens of lower rank."""
    from transformers.integrations.mistral import convert_tekken_tokenizer

    spec = json.loads((DATA / TEKKEN).read_text(encoding="utf-8"))
    spec["config"]["default_vocab_size"] = num_tokens
    with TemporaryDirectory() as folder:
        file = Path(folder) / "tekken.json"
        file.write_text(json.dumps(spec), encoding="utf-8")
        return convert_tekken_tokenizer(str(file), chat_template="")
