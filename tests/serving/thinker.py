"""A tiny model that reasons and calls tools: trained in seconds to continue a few conversations as a reasoning model would."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM

from tests import tiny

QUESTION, THOUGHT, ANSWER = "Sort c a b.", "First a, then b.", "a b c"
CITY, WEATHER, REPORT = "Weather in Oslo?", "4 degrees", "It is 4 degrees in Oslo."
POEM = "Roses are red."
"""The adapter's answer to `QUESTION`."""
TOOL: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Returns the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "enum": ["Oslo", "Rome"]}},
            "required": ["city"],
            "additionalProperties": False,
        },
    },
}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Oslo"}}\n</tool_call>'
SILENT = "<think>\n\n</think>\n\n"
# In the manner of Qwen3's: hybrid thinking, and tools in Hermes' format.
TEMPLATE = (
    "{% if tools %}<|im_start|>system\n{% for tool in tools %}{{ tool.function.name }}: {{ tool.function.description }}\n"
    '{% endfor %}<tool_call>\n{"name": ..., "arguments": ...}\n</tool_call><|im_end|>\n{% endif %}'
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}{% for call in m.tool_calls %}<tool_call>\n"
    '{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "{% else %}{{ m.content }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}"
    + repr(SILENT).join(("{{ ", " }}"))
    + "{% endif %}{% endif %}"
)
STEPS, RATE = 220, 3e-3


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def called(city: str = "Oslo") -> dict[str, Any]:
    """Returns the turn that calls the tool."""
    function = {"name": "weather", "arguments": {"city": city}}
    return {"role": "assistant", "content": "", "tool_calls": [{"id": "1", "type": "function", "function": function}]}


def thinker(folder: Path) -> str:
    """Makes the model; returns its folder."""
    tokenizer = tiny.byte_level_tokenizer()
    marks = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    tokenizer.add_tokens([AddedToken(text, special=False, normalized=False) for text in marks])
    tokenizer.chat_template = TEMPLATE
    path = tiny.llama(folder, vocab_size=len(tokenizer))
    tokenizer.save_pretrained(path)
    model: Any = AutoModelForCausalLM.from_pretrained(path)
    model.config.eos_token_id = model.generation_config.eos_token_id = tokenizer.eos_token_id
    reasoned = f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}"
    result = {"role": "tool", "content": WEATHER, "tool_call_id": "1"}
    train(
        model,
        tokenizer,
        [
            ([user(QUESTION)], None, True, reasoned),
            ([user(QUESTION)], None, False, ANSWER),
            ([user(CITY)], [TOOL], True, f"<think>\nI ask.\n</think>\n\n{CALL}"),
            ([user(CITY), called(), result], [TOOL], True, f"<think>\nI know.\n</think>\n\n{REPORT}"),
        ],
    )
    model.save_pretrained(path)
    return path


def poet(base: str, folder: Path) -> str:
    """Makes a LoRA adapter of the model, which answers otherwise; returns its folder."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=12, lora_alpha=24, target_modules="all-linear")
    )
    train(model, tokenizer, [([user(QUESTION)], None, True, f"<think>\nA poem.\n</think>\n\n{POEM}")])
    model.save_pretrained(folder)
    return str(folder)


def train(model: Any, tokenizer: Any, examples: list[tuple[list, list | None, bool, str]]) -> None:
    """Trains on examples of messages, tools, whether the model thinks, and its answer."""
    rows = []
    for messages, tools, thinks, answer in examples:
        options = {"tools": tools, "enable_thinking": thinks, "add_generation_prompt": True, "tokenize": False}
        prompt = tokenizer.encode(tokenizer.apply_chat_template(messages, **options), add_special_tokens=False)
        rest = tokenizer.encode(f"{answer}<|im_end|>", add_special_tokens=False)
        rows.append((torch.tensor([prompt + rest]), torch.tensor([[-100] * len(prompt) + rest])))
    optimizer = torch.optim.AdamW((each for each in model.parameters() if each.requires_grad), lr=RATE)
    model.train()
    loss: Any = None
    for _ in range(STEPS):
        loss = sum(model(input_ids=ids, labels=labels).loss for ids, labels in rows)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    assert loss.item() < 0.05 * len(rows), loss.item()
