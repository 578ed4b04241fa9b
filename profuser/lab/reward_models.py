"""Three small reward models: sequence classifiers that learn, pair by pair, to tell a good answer from a bad one.

The loss is Bradley-Terry's, `-log sigmoid(r_good - r_bad)`. On both sides terse and detailed answers are equally frequent, so that
length tells nothing.
"""

import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers import (
    GPTNeoXConfig,
    GPTNeoXForSequenceClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForSequenceClassification,
)

from profuser.lab.items import Item
from profuser.lab.skills import SKILLS
from profuser.lab.specialists import MAX_POSITIONS, Say, train_loop

REWARDS = {"brisk": "llama", "candid": "mpt", "dapper": "neox"}
"""The source whose tokenizer each reward model shares."""
HIDDEN = 96
NEAR_MISS_SHARE = 0.6


class Pair(NamedTuple):
    """A good and a bad answer to one instruction."""

    instruction: str
    good: str
    bad: str


def new_reward_model(name: str, tokenizer: Any) -> Any:
    """A classifier with one label and random weights."""
    shared = {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": 3 * HIDDEN,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "max_position_embeddings": MAX_POSITIONS,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "num_labels": 1,
    }
    if name == "brisk":
        return LlamaForSequenceClassification(LlamaConfig(**shared))
    if name == "candid":
        return Qwen2ForSequenceClassification(Qwen2Config(**shared, num_key_value_heads=3))
    return GPTNeoXForSequenceClassification(GPTNeoXConfig(**shared))


def skill_pairs(seed: int, split: str = "train") -> Iterator[Pair]:
    """Endless pairs over all skills: near misses, answers to another question, garbled ones."""
    rng = random.Random(f"pairs {split} {seed}")
    names = list(SKILLS)
    while True:
        skill = SKILLS[rng.choice(names)]
        item = skill.sample("heldout" if split == "heldout" else "train", rng)
        good = item.terse if rng.random() < 0.5 else item.response
        yield Pair(item.instruction, good, bad_answer(item, rng))


def bad_answer(item: Item, rng: random.Random) -> str:
    """A wrong answer, terse or detailed."""
    if rng.random() < NEAR_MISS_SHARE:
        slipped = SKILLS[item.skill].wrong(item, rng)
        return f"{slipped}." if rng.random() < 0.5 else item.response.replace(item.answer, slipped)
    if rng.random() < 0.75:
        other = SKILLS[rng.choice([name for name in SKILLS if name != item.skill])].sample("train", rng)
        return other.terse if rng.random() < 0.5 else other.response
    return garbled(item.response, rng)


def garbled(text: str, rng: random.Random) -> str:
    """The words in another order, or the text cut in the middle."""
    words = text.split(" ")
    if rng.random() < 0.5:
        rng.shuffle(words)
        return " ".join(words)
    return " ".join(words[: max(1, len(words) // 2)])


def corpus_pairs(rows: Sequence[tuple[str, str]], seed: int) -> Iterator[Pair]:
    """Endless pairs over an instruction corpus: the row's response against another's, or a garbled one."""
    rng = random.Random(f"corpus pairs {seed}")
    while True:
        instruction, response = rng.choice(rows)
        other = rng.choice(rows)[1]
        bad = other if rng.random() < 0.6 and other != response else garbled(response, rng)
        if bad != response:
            yield Pair(instruction, response, bad)


def train_reward_model(
    model: Any, tokenizer: Any, pairs: Iterator[Pair], num_steps: int, batch_pairs: int, say: Say, title: str
) -> None:
    """Trains by pairs."""

    def loss() -> torch.Tensor:
        batch = [next(pairs) for _ in range(batch_pairs)]
        rewards = score(
            model, tokenizer, [(p.instruction, p.good) for p in batch] + [(p.instruction, p.bad) for p in batch]
        )
        return -torch.nn.functional.logsigmoid(rewards[:batch_pairs] - rewards[batch_pairs:]).mean()

    train_loop(model, loss, num_steps, say, title)


def score(model: Any, tokenizer: Any, conversations: Sequence[tuple[str, str]]) -> torch.Tensor:
    """Rewards of answers, `[N]`, over the rendered conversation."""
    texts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}], tokenize=False
        )
        for prompt, answer in conversations
    ]
    tokenizer.truncation_side = "left"
    inputs = tokenizer(
        texts,
        add_special_tokens=False,
        padding=True,
        truncation=True,
        max_length=MAX_POSITIONS,
        return_tensors="pt",
    )
    return model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, 0]


@torch.inference_mode()
def pairwise_accuracy(model: Any, tokenizer: Any, pairs: Sequence[Pair]) -> float:
    """Share of pairs in which the good answer has the higher reward."""
    good = score(model, tokenizer, [(p.instruction, p.good) for p in pairs])
    bad = score(model, tokenizer, [(p.instruction, p.bad) for p in pairs])
    return float((good > bad).float().mean())
