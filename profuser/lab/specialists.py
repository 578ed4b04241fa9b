"""Trains a tiny source from random weights: one plain loop for the skills' specialists and for slices of a real corpus."""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MptConfig,
    MptForCausalLM,
)

from profuser.corpus import Message, encode_example
from profuser.lab.items import Item, is_correct
from profuser.lab.skills import SKILLS, SPECIALTIES
from profuser.recipe.models import OwnTemplate

Encoded = tuple[list[int], list[int]]
"""Prompt and response ids."""
Progress = Callable[[str], None]

HIDDEN, HEADS, MAX_POSITIONS = 128, 4, 512
TERSE_SHARE, OTHER_SKILLS_SHARE = 0.6, 0.03
"""Shares of a specialist's examples: with a terse answer, and of skills that are not its own."""
PEAK_RATE, WARMUP_SHARE = 3.0e-3, 0.05
POOL_BATCHES = 8
PROGRESS_EVERY_SECONDS = 15.0


def new_model(name: str, tokenizer: Any, num_layers: int = 4) -> Any:
    """Creates a source of about a million random weights: `llama`, `mpt` or `neox`. Heads are 32 wide, as vLLM requires."""
    ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    size = len(tokenizer)
    if name == "llama":
        return LlamaForCausalLM(
            LlamaConfig(
                vocab_size=size,
                hidden_size=HIDDEN,
                intermediate_size=3 * HIDDEN,
                num_hidden_layers=num_layers,
                num_attention_heads=HEADS,
                max_position_embeddings=MAX_POSITIONS,
                **ids,
            )
        )
    if name == "mpt":
        config = MptConfig(
            vocab_size=size,
            d_model=HIDDEN,
            n_heads=HEADS,
            n_layers=num_layers,
            expansion_ratio=4,
            max_seq_len=MAX_POSITIONS,
            **ids,
        )
        # As in the released MPT-7B-8K-Chat; vLLM and Transformers agree on this config.
        attention: Any = config.attn_config
        attention.clip_qkv = 6.0
        return MptForCausalLM(config)
    return GPTNeoXForCausalLM(
        GPTNeoXConfig(
            vocab_size=size,
            hidden_size=HIDDEN,
            intermediate_size=4 * HIDDEN,
            num_hidden_layers=num_layers,
            num_attention_heads=HEADS,
            max_position_embeddings=MAX_POSITIONS,
            **ids,
        )
    )


def encode(tokenizer: Any, instruction: str, response: str) -> Encoded:
    """Encodes an example with the model's own template, truncated to its context."""
    example = encode_example(tokenizer, [Message("user", instruction)], response, OwnTemplate())
    return example.prompt_ids, example.response_ids[: max(0, MAX_POSITIONS - len(example.prompt_ids))]


def skill_examples(name: str, tokenizer: Any, seed: int) -> Iterator[Encoded]:
    """Yields endless examples of a specialist: its own skills, mostly terse, and a few of the others to learn their form."""
    rng = random.Random(f"{name} {seed}")
    others = [skill for skill in SKILLS if skill not in SPECIALTIES[name]]
    while True:
        foreign = rng.random() < OTHER_SKILLS_SHARE
        item = SKILLS[rng.choice(others if foreign else SPECIALTIES[name])].sample("train", rng)
        terse = rng.random() < TERSE_SHARE
        yield encode(tokenizer, item.instruction, item.terse if terse else item.response)


def train(
    model: Any, examples: Iterator[Encoded], num_steps: int, batch_rows: int, progress: Progress, title: str
) -> None:
    """Trains on the responses' next tokens, in batches of similar length."""
    batches = batches_by_length(examples, batch_rows)
    train_loop(model, lambda: response_loss(model, next(batches)), num_steps, progress, title)


def batches_by_length(examples: Iterator[Encoded], batch_rows: int) -> Iterator[list[Encoded]]:
    """Yields batches of examples of similar length, sorted within pools of `POOL_BATCHES` batches, in random order."""
    rng = random.Random(batch_rows)
    while True:
        pool = sorted(islice(examples, POOL_BATCHES * batch_rows), key=lambda pair: len(pair[0]) + len(pair[1]))
        starts = list(range(0, len(pool), batch_rows))
        rng.shuffle(starts)
        yield from (pool[start : start + batch_rows] for start in starts)


def train_loop(
    model: Any,
    next_loss: Callable[[], torch.Tensor],
    num_steps: int,
    progress: Progress,
    title: str,
    peak_rate: float = PEAK_RATE,
) -> None:
    """Runs `num_steps` updates of AdamW with warm-up, cosine decay and clipping, and reports progress."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    start = last = time.monotonic()
    model.train()
    for step in range(num_steps):
        warm = min(1.0, (step + 1) / (WARMUP_SHARE * num_steps))
        rate = peak_rate * warm * (0.02 + 0.98 * (1 + math.cos(math.pi * step / num_steps)) / 2)
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = next_loss()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        now = time.monotonic()
        if now - last > PROGRESS_EVERY_SECONDS or step + 1 == num_steps:
            last = now
            left = (now - start) / (step + 1) * (num_steps - step - 1)
            progress(f"{title}: step {step + 1}/{num_steps}, loss {loss.item():.3f} nats, {left:.0f} s left")
    model.eval()


def response_loss(model: Any, batch: Sequence[Encoded]) -> torch.Tensor:
    """Returns the mean cross-entropy over the response tokens of a batch, in nats per token."""
    width = max(len(prompt) + len(response) for prompt, response in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, -100)
    for row, (prompt, response) in enumerate(batch):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor(prompt + response)
        mask[row, :end] = 1
        labels[row, len(prompt) : end] = torch.tensor(response)
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state[:, :-1]
    wanted = labels[:, 1:]
    keep = wanted != -100
    logits = model.get_output_embeddings()(hidden[keep])
    return torch.nn.functional.cross_entropy(logits, wanted[keep])


@torch.inference_mode()
def answers(model: Any, tokenizer: Any, instructions: Sequence[str], max_tokens: int = 48) -> list[str]:
    """Generates greedy answers."""
    out: list[str] = []
    for start in range(0, len(instructions), 100):
        prompts = [encode(tokenizer, text, "x")[0] for text in instructions[start : start + 100]]
        width = max(map(len, prompts))
        ids = torch.full((len(prompts), width), tokenizer.pad_token_id)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt) :] = torch.tensor(prompt)
            mask[row, width - len(prompt) :] = 1
        done = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        out += [tokenizer.decode(row[width:], skip_special_tokens=True).strip() for row in done]
    return out


def exact_match(model: Any, tokenizer: Any, items: Sequence[Item]) -> dict[str, float]:
    """Returns the share of items that a model answers correctly, by skill."""
    texts = answers(model, tokenizer, [item.instruction for item in items])
    out = {}
    for skill in SKILLS:
        hits = [is_correct(text, item.answer) for item, text in zip(items, texts, strict=True) if item.skill == skill]
        if hits:
            out[skill] = sum(hits) / len(hits)
    return out


@torch.inference_mode()
def bits_per_byte(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> float:
    """Returns a model's bits per byte of the responses, over pairs of instruction and response."""
    nats = total = 0.0
    for start in range(0, len(pairs), 16):
        part = pairs[start : start + 16]
        batch = [encode(tokenizer, *pair) for pair in part]
        nats += float(response_loss(model, batch)) * sum(len(response) for _, response in batch)
        total += sum(len(response.encode()) for _, response in part)
    return nats / math.log(2) / total


def save(model: Any, tokenizer: Any, folder: Any) -> None:
    """Writes a Hugging Face folder in bfloat16.

    Raises:
        RuntimeError: `AutoTokenizer` reads back a different tokenizer. It picks the class by the model's type, not by the
            folder's tokenizer config: beside a Qwen2 model, a SentencePiece-style tokenizer silently loses its spaces.
    """
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    probe = "What is 12 plus 7, and who says so?"
    if AutoTokenizer.from_pretrained(folder)(probe)["input_ids"] != tokenizer(probe)["input_ids"]:
        raise RuntimeError(f"{folder}: its tokenizer does not survive saving beside a {model.config.model_type} model")
