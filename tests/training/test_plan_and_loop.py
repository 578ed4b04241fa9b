"""Which rows make up which update, and a loop that continues where it stopped."""

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM, MptConfig, MptForCausalLM

from profuser.errors import ArtifactError, TrainingError
from profuser.recipe.fusing import FuseConfig, OptimizerConfig, Steps
from profuser.schedule import ModeWeights
from profuser.schemas import select_schema
from profuser.training.checkpoint import load_checkpoint, save_checkpoint
from profuser.training.examples import ExampleStore, UpdatePlan
from profuser.training.loop import Trainer, learning_rate
from profuser.training.step import FusionModule, collate

V, K = 50, 4


def make_table(num_rows=11, seed=0):
    rng = np.random.default_rng(seed)
    records = []
    for row in range(num_rows):
        for mode in ("training", "inference")[: 1 + (row % 3 > 0)]:
            prompt, response = rng.integers(1, V, rng.integers(2, 6)), rng.integers(1, V, rng.integers(1, 9))
            logprobs = -np.sort(rng.exponential(2.0, (len(response), K)) + 1.5, axis=1)
            records.append(
                {
                    "row_id": f"row{row:02d}",
                    "mode": mode,
                    "category": None,
                    "teacher": "a",
                    "advantages": [1.0],
                    "prompt_ids": prompt.tolist(),
                    "response_ids": response.tolist(),
                    "topk_ids": np.stack([rng.permutation(V)[:K] for _ in response]).reshape(-1).tolist(),
                    "topk_logprobs": logprobs.astype(np.float16).reshape(-1),
                    "rules": [1] * len(response),
                }
            )
    return pa.Table.from_pylist(records, schema=select_schema(V))


@pytest.fixture
def store():
    return ExampleStore([make_table()], K, V, 64)


def config(**settings):
    return FuseConfig.model_validate(
        {
            "duration": Steps(kind="steps", value=6),
            "batch_rows": 4,
            "checkpoint_every_steps": 3,
            "micro_batch_tokens": 32,
            "optimizer": OptimizerConfig(learning_rate=1e-2),
            **settings,
        }
    )


def llama():
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    return LlamaForCausalLM(LlamaConfig(vocab_size=V, max_position_embeddings=64, **shape))


def other_models():
    torch.manual_seed(0)
    neox = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    yield GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=V, max_position_embeddings=64, **neox))
    yield MptForCausalLM(MptConfig(vocab_size=V, d_model=32, n_heads=2, n_layers=2, max_seq_len=64))


def test_every_row_once_per_epoch_in_another_order(store):
    plan = UpdatePlan(store, config(duration=Steps(kind="steps", value=11)), seed=3)
    seen = [row for step in range(11) for row in plan.rows(step)]
    epochs = [seen[i * 11 : (i + 1) * 11] for i in range(4)]
    assert all(sorted(epoch) == store.row_ids for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_workers_share_an_update_without_loss_and_in_step(store, world_size):
    plans = [UpdatePlan(store, config(), 0, world_size, rank) for rank in range(world_size)]
    for step in range(6):
        parts = [plan.update(step).micro_batches for plan in plans]
        assert len({len(part) for part in parts}) == 1
        shared = sorted(i for part in parts for batch in part for i in batch)
        alone = UpdatePlan(store, config(), 0).update(step).micro_batches
        assert shared == sorted(i for batch in alone for i in batch)


def test_a_mode_without_weight_is_not_computed(store):
    plan = UpdatePlan(store, config(), 0)
    first, last = plan.update(0), plan.update(5)
    assert first.num_tokens["training"] == 0 < first.num_tokens["inference"]
    assert last.num_tokens["training"] > 0 < last.num_tokens["inference"]
    assert all(store.examples[i].mode == "inference" for batch in first.micro_batches for i in batch)


def test_micro_batching_changes_no_gradient(store):
    gradients = []
    for tokens in (16, 1000):
        trainer = Trainer(llama(), store, config(micro_batch_tokens=tokens), 0, K)
        update = trainer.plan.update(5)
        for indices in update.micro_batches:
            trainer.module(trainer._collate(update, indices)).total.backward()
        gradients.append([p.grad.clone() for p in trainer.module.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_the_cross_entropy_is_that_of_the_model_itself(store):
    """An oracle by the model's own loss: response tokens only, each predicted from the token before it."""
    for model in (llama(), *other_models()):
        example = max(store.examples, key=lambda e: e.num_tokens)
        batch = collate([example], ModeWeights(1, 1), {example.mode: len(example.response_ids)}, 0.0, 0, K)
        losses = FusionModule(model.eval(), config())(batch)
        ids = torch.from_numpy(np.concatenate([example.prompt_ids, example.response_ids]))[None]
        labels = ids.clone()
        labels[0, : len(example.prompt_ids)] = -100
        torch.testing.assert_close(losses.total, model(ids, labels=labels).loss, rtol=1e-5, atol=1e-6)


def test_padding_changes_no_loss(store):
    model = llama().eval()
    module = FusionModule(model, config())
    weights, tokens = ModeWeights(0.5, 1.0), {"training": 10, "inference": 10}
    together = module(collate(store.examples[:6], weights, tokens, 0.1, 0, K)).total
    apart = sum(module(collate([e], weights, tokens, 0.1, 0, K)).total for e in store.examples[:6])
    torch.testing.assert_close(together, apart)


def test_an_empty_micro_batch_gives_zero(store):
    loss = FusionModule(llama(), config())(collate([], ModeWeights(1, 0), {}, 0.1, 0, K))
    loss.total.backward()
    assert loss.total == 0


def test_a_stopped_run_continues_to_the_same_bits(store, tmp_path):
    whole = Trainer(llama(), store, config(), 0, K)
    whole.run(lambda _: None, lambda t: save_checkpoint(t, tmp_path / str(t.step)))
    assert sorted(f.name for f in tmp_path.iterdir()) == ["3", "6"]
    resumed = Trainer(llama(), store, config(), 0, K)
    load_checkpoint(resumed, tmp_path / "3")
    resumed.run(lambda _: None, lambda _: None)
    for a, b in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(a, b)
    strip = [{k: v for k, v in step.items() if k != "tokens_per_second"} for step in whole.history]
    assert strip == [{k: v for k, v in step.items() if k != "tokens_per_second"} for step in resumed.history]


def test_learning_lowers_the_loss(store):
    trainer = Trainer(llama(), store, config(duration=Steps(kind="steps", value=40)), 0, K)
    trainer.run(lambda _: None, lambda _: None)
    assert trainer.history[-1]["ce_training_nats"] < trainer.history[20]["ce_training_nats"] - 0.5


def test_steps_without_a_finite_gradient_are_skipped_then_stop_the_run(store):
    trainer = Trainer(llama(), store, config(max_consecutive_skips=2), 0, K)
    before = [p.clone() for p in trainer.module.parameters()]
    with torch.no_grad():
        trainer.module.model.lm_head.weight[3] = float("nan")
        before[-1] = trainer.module.model.lm_head.weight.clone()
    with pytest.raises(TrainingError, match="2 steps in a row"):
        trainer.run(lambda _: None, lambda _: None)
    assert trainer.skipped == 2
    for a, b in zip(trainer.module.parameters(), before, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


def test_a_long_example_is_cut_and_counted():
    store = ExampleStore([make_table()], K, V, 8)
    assert store.num_cut > 0
    assert max(e.num_tokens for e in store.examples) <= 8


def test_no_example_at_all_is_said():
    with pytest.raises(ArtifactError, match="no training example"):
        ExampleStore([make_table().slice(0, 0)], K, V, 64)


def test_learning_rate_warms_up_and_decays():
    opt = OptimizerConfig(learning_rate=1.0, warmup_fraction=0.1, final_fraction=0.1)
    rates = [learning_rate(opt, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
