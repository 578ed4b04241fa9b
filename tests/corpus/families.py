"""Chat templates of released families, and tokenizers with their special tokens.

The files in `released/` render what the released templates do: the same blanks, defaults, dates, refusals and thinking. Their
layout is our own, without what conversations do not reach: pictures, and the descriptions of tools. Mistral's numbered versions are
those that mistral_common generates for its tokenizers.
"""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from mistral_common.integrations.chat_templates.template_generator import TemplateConfig, build_chat_template
from mistral_common.tokens.tokenizers.base import TokenizerVersion
from tokenizers import AddedToken

from tests import tiny


@dataclass(frozen=True)
class Family:
    """A family's template and special tokens."""

    text: str
    end: str
    """The token that ends an answer."""
    specials: tuple[str, ...] = ()
    added: tuple[str, ...] = ()
    """Added tokens that are not special."""
    bos: str | None = None
    eos: str | None = None
    """The tokenizer's end of sequence, where that is not `end`."""
    refuses: tuple[str, ...] = ()
    """Orders of roles that it does not accept, by their initials."""
    drops: tuple[str, ...] = ()
    """Orders of roles of which it leaves out the system turn if an answer follows."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Arguments that change what it writes."""
    thinks: tuple[str, str] | None = None
    """For a reasoning model: what its generation prompt ends with, and what a prompt without open thinking ends with."""
    silent: str | None = None
    """What the prompt ends with if it is asked not to think."""


def mistral(version: str, **options: Any) -> str:
    """Returns the template of a Mistral tokenizer's version."""
    return build_chat_template(TemplateConfig(version=TokenizerVersion(version), **options))


def released(name: str) -> str:
    """Returns a template of `released/`."""
    return (Path(__file__).parent / "released" / f"{name}.jinja").read_text(encoding="utf-8")


CHATML = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
HEADERS = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
GEMMA = ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
INST = ("<s>", "</s>", "[INST]", "[/INST]")
SYSTEM_PROMPT = ("[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
THINK = ("<think>", "</think>")
EMPTY = "<think>\n\n</think>\n\n"
DEEPSEEK = ("<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>")
ASSISTANT = "<\uff5cAssistant\uff5c>"
DEEPSEEK_TURNS = ("<\uff5cUser\uff5c>", ASSISTANT)

# Above each family: the model, and where its released template was read. Repositories are on GitHub. `trl` is huggingface/trl
# 1.16.0, `llama.cpp` is ggml-org/llama.cpp as in llama-cpp-python 0.3.36, and `ollama-utils` is huggingface/huggingface.js
# packages/ollama-utils/src/chat-template-automap.ts (npm @huggingface/ollama-utils 0.0.18), which lists the templates inside files
# of the format GGUF.
FAMILIES = {
    # Llama-2-7b-chat: ollama-utils, llama2:7b.
    "llama 2": Family(released("llama-2"), "</s>", ("<s>", "</s>"), bos="<s>", refuses=("uu", "au")),
    # Meta-Llama-3-8B-Instruct: trl trl/chat_templates/llama3.jinja.
    "llama 3": Family(released("llama-3"), "<|eot_id|>", HEADERS, bos="<|begin_of_text|>"),
    # Llama-3.2-3B-Instruct: llama.cpp models/templates/meta-llama-Llama-3.2-3B-Instruct.jinja.
    "llama 3.2": Family(
        released("llama-3.2"), "<|eot_id|>", HEADERS, bos="<|begin_of_text|>", arguments={"date_string": "1 Apr 2020"}
    ),
    # Qwen2.5-7B-Instruct: llama.cpp models/templates/Qwen-Qwen2.5-7B-Instruct.jinja.
    "qwen 2.5": Family(released("qwen-2.5"), "<|im_end|>", CHATML),
    # Qwen3: trl trl/chat_templates/qwen3.jinja.
    "qwen 3": Family(
        released("qwen-3"),
        "<|im_end|>",
        CHATML,
        (*THINK, "<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
        arguments={"enable_thinking": False},
        thinks=("assistant\n", "assistant\n"),
        silent=EMPTY,
    ),
    # QwQ-32B: ollama-utils, qwq:32b (the third).
    "qwq": Family(released("qwq"), "<|im_end|>", CHATML, THINK, thinks=("<think>\n", EMPTY), silent=EMPTY),
    # gemma-2-2b-it: llama.cpp models/templates/google-gemma-2-2b-it.jinja.
    "gemma 2": Family(
        released("gemma-2"), "<end_of_turn>", GEMMA, bos="<bos>", eos="<eos>", refuses=("su", "suau", "uu", "au")
    ),
    # gemma-3-*-it: trl trl/chat_templates/gemma3.jinja.
    "gemma 3": Family(released("gemma-3"), "<end_of_turn>", GEMMA, bos="<bos>", eos="<eos>", refuses=("uu", "au")),
    # mistral_common's own, and below those of its tokenizers of versions 3, 7 and 13.
    "mistral v1": Family(mistral("v1", spm=True), "</s>", ("<s>", "</s>"), bos="<s>", refuses=("au",)),
    "mistral v3": Family(mistral("v3", spm=True), "</s>", INST, bos="<s>", refuses=("au",)),
    "mistral v7": Family(mistral("v7"), "</s>", (*INST, *SYSTEM_PROMPT), bos="<s>", refuses=("au",)),
    "magistral": Family(
        mistral("v13", thinking_support=True),
        "</s>",
        (*INST, *SYSTEM_PROMPT, "[THINK]", "[/THINK]"),
        bos="<s>",
        refuses=("au",),
        silent="[/INST][THINK][/THINK]",
    ),
    # Mistral-Nemo-Instruct-2407: llama.cpp models/templates/mistralai-Mistral-Nemo-Instruct-2407.jinja.
    "mistral nemo": Family(
        released("mistral-nemo"), "</s>", INST, bos="<s>", refuses=("uu", "au"), drops=("su", "suau")
    ),
    # Phi-3-mini: trl trl/chat_templates/phi3.jinja.
    "phi 3": Family(
        released("phi-3"),
        "<|end|>",
        ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|endoftext|>"),
        eos="<|endoftext|>",
    ),
    # phi-4: rpatil524/sdg_hub src/sdg_hub/prompts.py; and as it was first: ollama-utils, phi4:14b.
    "phi 4": Family(released("phi-4"), "<|im_end|>", (*CHATML, "<|im_sep|>")),
    "phi 4 first": Family(released("phi-4-first"), "<|im_end|>", (*CHATML, "<|im_sep|>")),
    # SmolLM2-135M-Instruct: ollama-utils, smollm2:135m.
    "smollm 2": Family(released("smollm-2"), "<|im_end|>", CHATML),
    # SmolLM3-3B: EricLBuehler/mistral.rs chat_templates/smollm3.jinja, commit 85dcfbe.
    "smollm 3": Family(
        released("smollm-3"),
        "<|im_end|>",
        CHATML,
        THINK,
        arguments={"enable_thinking": False},
        thinks=("assistant\n", "assistant\n"),
        silent="<think>\n\n</think>\n",
    ),
    # vicuna-7b-v1.5 has no template of its own: lm-sys/FastChat fastchat/conversation.py, vicuna_v1.1 (fschat 0.2.36).
    "vicuna": Family(released("vicuna"), "</s>", ("<s>", "</s>"), bos="<s>", refuses=("uu", "au")),
    # gpt-oss-120b: llama.cpp models/templates/openai-gpt-oss-120b.jinja.
    "gpt-oss": Family(
        released("gpt-oss"),
        "<|return|>",
        ("<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>", "<|call|>"),
        arguments={"reasoning_effort": "low"},
        thinks=("<|start|>assistant", "<|start|>assistant<|channel|>final<|message|>"),
        silent="<|start|>assistant<|channel|>final<|message|>",
    ),
    # DeepSeek-R1: trl trl/chat_templates/deepseekv3.jinja.
    "deepseek r1": Family(
        released("deepseek-r1"),
        DEEPSEEK[1],
        DEEPSEEK,
        (*THINK, *DEEPSEEK_TURNS),
        bos=DEEPSEEK[0],
        thinks=(f"{ASSISTANT}<think>\n", f"{ASSISTANT}{EMPTY}"),
        silent=f"{ASSISTANT}{EMPTY}",
    ),
    # DeepSeek-R1-Distill-*: trl trl/chat_templates/deepseek_r1_distill.jinja.
    "deepseek r1 distill": Family(
        released("deepseek-r1-distill"),
        DEEPSEEK[1],
        DEEPSEEK,
        (*THINK, *DEEPSEEK_TURNS),
        bos=DEEPSEEK[0],
        thinks=(f"{ASSISTANT}<think>\n", f"{ASSISTANT}{EMPTY}"),
        silent=f"{ASSISTANT}{EMPTY}",
    ),
    # DeepSeek-R1-0528-Qwen3-8B: ollama-utils, deepseek-r1:latest.
    "deepseek r1 0528": Family(
        released("deepseek-r1-0528"),
        DEEPSEEK[1],
        DEEPSEEK,
        (*THINK, *DEEPSEEK_TURNS),
        bos=DEEPSEEK[0],
        thinks=(ASSISTANT, ASSISTANT),
        silent=f"{ASSISTANT}{EMPTY}",
    ),
    # DeepSeek-V3: ollama-utils, deepseek-v3:671b.
    "deepseek v3": Family(released("deepseek-v3"), DEEPSEEK[1], DEEPSEEK, DEEPSEEK_TURNS, bos=DEEPSEEK[0]),
    # GLM-4.5: trl trl/chat_templates/glm4moe.jinja.
    "glm 4.5": Family(
        released("glm-4.5"),
        "<|endoftext|>",
        ("[gMASK]", "<sop>", "<|user|>", "<|assistant|>", "<|system|>", "<|endoftext|>"),
        THINK,
        arguments={"enable_thinking": False},
        thinks=("<|assistant|>", "<|assistant|>"),
        silent="<|assistant|>\n<think></think>",
    ),
    # Seed-OSS-36B-Instruct: llama.cpp models/templates/ByteDance-Seed-OSS.jinja.
    "seed-oss": Family(
        released("seed-oss"),
        "<seed:eos>",
        ("<seed:bos>", "<seed:eos>"),
        ("<seed:think>", "</seed:think>", "<seed:cot_budget_reflect>", "</seed:cot_budget_reflect>"),
        bos="<seed:bos>",
        arguments={"thinking_budget": 512},
        thinks=("assistant\n", "assistant\n"),
        silent="start answering the question.</seed:cot_budget_reflect>\n</seed:think>",
    ),
    # granite-3.3-2b-instruct: ollama-utils, granite3.3:2b.
    "granite": Family(
        released("granite-3.3"),
        "<|end_of_text|>",
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        arguments={"controls": "brief"},
    ),
}


@cache
def tokenizer_of(name: str) -> Any:
    """Returns a byte-level tokenizer with a family's special tokens and its template."""
    family = FAMILIES[name]
    tokenizer = tiny.byte_level_tokenizer()
    tokens = [AddedToken(text, special=True, normalized=False) for text in family.specials]
    tokenizer.add_special_tokens({"additional_special_tokens": tokens})
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in family.added])
    tokenizer.eos_token, tokenizer.bos_token = family.eos or family.end, family.bos
    tokenizer.chat_template = family.text
    return tokenizer
