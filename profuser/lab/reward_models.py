"""Trains three small reward models: sequence classifiers that learn from pairs to distinguish a good answer from a bad one.

All three are fine-tuned from one small generalist, a language model of the whole corpus, as released reward models are from their
base models; each sees different pairs. The loss is Bradley-Terry's, `-log sigmoid(r_good - r_bad)`. Terse and detailed answers are
equally frequent on both sides, so that length carries no information.
"""

import copy
import random
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from profuser.lab.items import Item
from profuser.lab.skills import SKILLS
from profuser.lab.specialists import HEADS, HIDDEN, MAX_POSITIONS, TERSE_SHARE, Encoded, Progress, encode, train_loop

REWARDS = ("brisk", "candid", "dapper")
TOKENIZER = "llama"
"""Source whose tokenizer the reward models share: it splits numbers into digits."""
NUM_LAYERS = 3
PEAK_RATE = 5.0e-4
PRACTICE = {"addition": 3.0, "sorting": 2.0, "reversal": 2.0}
"""Sampling weights of skills that take longer to learn; the others have weight 1."""
NEAR_MISS_SHARE, OTHER_CASE_SHARE, OTHER_SKILL_SHARE = 0.35, 0.4, 0.17
"""Shares of the bad answers; the rest is garbled."""


class Pair(NamedTuple):
    """A good and a bad answer to one instruction."""

    instruction: str
    good: str
    bad: str


def new_generalist(tokenizer: Any) -> Any:
    """Creates the language model that the reward models start from, with random weights."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=HIDDEN,
            intermediate_size=3 * HIDDEN,
            num_hidden_layers=NUM_LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=HEADS,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


def new_reward_model(generalist: Any) -> Any:
    """Creates a classifier with one label on the generalist's body, with a random head."""
    # A copy: saving a model writes its type into its config.
    config = copy.deepcopy(generalist.config)
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(generalist.model.state_dict())
    return model


def all_skills_examples(tokenizer: Any, seed: int) -> Iterator[Encoded]:
    """Yields endless examples of all skills, for the generalist."""
    rng = random.Random(f"generalist {seed}")
    while True:
        item = _any_item("train", rng)
        yield encode(tokenizer, item.instruction, item.terse if rng.random() < TERSE_SHARE else item.response)


def skill_pairs(seed: int, split: str = "train") -> Iterator[Pair]:
    """Yields endless pairs over all skills: near misses, answers to another question, garbled answers."""
    rng = random.Random(f"pairs {split} {seed}")
    while True:
        item = _any_item("heldout" if split == "heldout" else "train", rng)
        yield Pair(item.instruction, _answer(item, item.answer, rng), bad_answer(item, rng))


def bad_answer(item: Item, rng: random.Random) -> str:
    """Draws a wrong answer, terse or detailed: close to the correct one, correct for another case or skill, or garbled."""
    skill, kind = SKILLS[item.skill], rng.random()
    if kind < NEAR_MISS_SHARE:
        return _answer(item, skill.wrong(item, rng), rng)
    if kind < NEAR_MISS_SHARE + OTHER_CASE_SHARE:
        other = skill.sample("train", rng)
        if other.answer != item.answer:
            return _answer(item if rng.random() < 0.7 else other, other.answer, rng)
        return _answer(item, skill.wrong(item, rng), rng)
    if kind < NEAR_MISS_SHARE + OTHER_CASE_SHARE + OTHER_SKILL_SHARE:
        other = SKILLS[rng.choice([name for name in SKILLS if name != item.skill])].sample("train", rng)
        return _answer(other, other.answer, rng)
    return garbled(item.response, rng)


def _any_item(split: Any, rng: random.Random) -> Item:
    names = list(SKILLS)
    return SKILLS[rng.choices(names, [PRACTICE.get(name, 1.0) for name in names])[0]].sample(split, rng)


def _answer(item: Item, answer: str, rng: random.Random) -> str:
    """Formats an answer, tersely or with the item's working."""
    return f"{answer}." if rng.random() < 0.5 else item.response.replace(item.answer, answer)


def garbled(text: str, rng: random.Random) -> str:
    """Shuffles the words, or cuts the text in the middle."""
    words = text.split(" ")
    if rng.random() < 0.5:
        rng.shuffle(words)
        return " ".join(words)
    return " ".join(words[: max(1, len(words) // 2)])


def corpus_pairs(rows: Sequence[tuple[str, str]], seed: int) -> Iterator[Pair]:
    """Yields endless pairs over an instruction corpus: the row's response against another row's, or a garbled one."""
    rng = random.Random(f"corpus pairs {seed}")
    while True:
        instruction, response = rng.choice(rows)
        other = rng.choice(rows)[1]
        bad = other if rng.random() < 0.6 and other != response else garbled(response, rng)
        if bad != response:
            yield Pair(instruction, response, bad)


def train_reward_model(
    model: Any, tokenizer: Any, pairs: Iterator[Pair], num_steps: int, batch_pairs: int, progress: Progress, title: str
) -> None:
    """Trains a reward model on pairs."""

    def loss() -> torch.Tensor:
        batch = [next(pairs) for _ in range(batch_pairs)]
        rewards = score(
            model, tokenizer, [(p.instruction, p.good) for p in batch] + [(p.instruction, p.bad) for p in batch]
        )
        return -torch.nn.functional.logsigmoid(rewards[:batch_pairs] - rewards[batch_pairs:]).mean()

    train_loop(model, loss, num_steps, progress, title, PEAK_RATE)


def score(model: Any, tokenizer: Any, conversations: Sequence[tuple[str, str]]) -> torch.Tensor:
    """Returns the rewards of answers, `[N]`, over the rendered conversations."""
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
    """Returns the share of pairs in which the good answer has the higher reward."""
    good = score(model, tokenizer, [(p.instruction, p.good) for p in pairs])
    bad = score(model, tokenizer, [(p.instruction, p.bad) for p in pairs])
    return float((good > bad).float().mean())
