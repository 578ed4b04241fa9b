"""The laboratory's tokenizers encode every text, survive saving, and are of three kinds."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from profuser.alignment.token_bytes import TokenBytes
from profuser.corpus import Message, encode_example, end_token_id
from profuser.lab.skills import draw_rows
from profuser.lab.tokenizers import TOKENIZERS
from profuser.recipe.models import OwnTemplate

TEXTS = [text for row in draw_rows("train", 600, seed=0) for text in (row.instruction, row.response)]
ENDS = {"llama": "</s>", "mpt": "<|im_end|>", "neox": "</s>"}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    out = {}
    for name, kind in TOKENIZERS.items():
        folder = tmp_path_factory.mktemp(name)
        kind.make(TEXTS, kind.lab_vocab_size).save_pretrained(folder)
        out[name] = AutoTokenizer.from_pretrained(folder)
    return out


@pytest.mark.parametrize("name", TOKENIZERS)
class TestEachTokenizer:
    def test_has_the_requested_size(self, made, name):
        assert len(made[name]) == TOKENIZERS[name].lab_vocab_size

    @given(text=st.text(max_size=40))
    def test_spells_any_text_in_bytes(self, made, name, text):
        tokenizer = made[name]
        table = TokenBytes.from_tokenizer(tokenizer, len(tokenizer), [])
        ids = tokenizer.encode("x\n" + text, add_special_tokens=False)
        spelt = b"".join(table[i] or b"?" for i in ids)
        assert spelt.endswith(("x\n" + text).encode())
        assert len(spelt) - len(("x\n" + text).encode()) in (0, 1)

    def test_separates_prompt_and_response(self, made, name):
        tokenizer = made[name]
        for row in draw_rows("heldout", 60, seed=2):
            example = encode_example(tokenizer, [Message("user", row.instruction)], row.response, OwnTemplate())
            assert tokenizer.decode(example.response_ids, skip_special_tokens=True).strip() == row.response
            assert example.response_ids[-1] == tokenizer.convert_tokens_to_ids(ENDS[name])
            assert end_token_id(tokenizer, OwnTemplate()) == example.response_ids[-1]

    def test_is_reproducible(self, name):
        kind = TOKENIZERS[name]
        first, second = (kind.make(TEXTS, kind.lab_vocab_size) for _ in range(2))
        assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_they_are_of_three_kinds(made):
    specs = {name: json.loads(tokenizer.backend_tokenizer.to_str()) for name, tokenizer in made.items()}
    assert [specs[name]["model"]["type"] for name in TOKENIZERS] == ["BPE", "BPE", "Unigram"]
    assert specs["llama"]["model"]["byte_fallback"]
    assert "Metaspace" in json.dumps(specs["llama"]["pre_tokenizer"])
    assert specs["mpt"]["pre_tokenizer"]["type"] == "ByteLevel"
    assert len({len(tokenizer) for tokenizer in made.values()}) == 3
