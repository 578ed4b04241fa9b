"""The loop continues where it stopped, skips non-finite gradients, and names the rows concerned."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from profuser.artifacts.schemas import MODES
from profuser.errors import ArtifactError, TrainingError
from profuser.recipe.fusing import OptimizerConfig
from profuser.training.batches import read_packs
from profuser.training.checkpoint import Checkpointer, load_checkpoint
from profuser.training.guards import SpikeWatch, explain_out_of_memory
from profuser.training.loop import HELDOUT
from profuser.training.optimizer import learning_rate
from profuser.training.step_metrics import ModelFlops
from tests.training.made import Setting, config, curve, model


def saver(folder):
    checkpointer = Checkpointer()
    return lambda trainer: checkpointer.save(trainer, folder / str(trainer.step))()


COMPETENCE = [
    {"until": 0.8, "inference": 1.0, "training": 0.0, "moves_on": {"window_steps": 2, "min_gain": 0.5}},
    {"until": 1.0, "inference": 0.1, "training": 1.0},
]


DIVERGENCES = {"divergence": {"inference": "reverse_kl", "training": {"kind": "jsd", "alpha": 0.1}}}


@pytest.mark.parametrize(
    "settings",
    [{}, {"lora": {"rank": 2, "dropout": 0.1}}, {"schedule": COMPETENCE}, DIVERGENCES | {"kl_positions": "ahead"}],
)
def test_a_resumed_run_equals_an_uninterrupted_one_bit_by_bit(settings, tmp_path):
    setting = Setting(config(duration={"kind": "steps", "value": 12}, **settings))
    whole = setting.trainer()
    assert setting.run(whole, on_checkpoint=saver(tmp_path))
    assert sorted(int(f.name) for f in tmp_path.iterdir()) == [3, 6, 9, 12]
    resumed = setting.trainer()
    load_checkpoint(resumed, tmp_path / "6")
    assert resumed.step == 6
    setting.run(resumed)
    for a, b in zip(whole.module.parameters(), resumed.module.parameters(), strict=True):
        assert torch.equal(a, b)
    assert curve(whole) == curve(resumed)


def test_a_run_asked_to_stop_writes_a_checkpoint_and_continues_from_it(tmp_path):
    setting = Setting()
    whole, stopped = setting.trainer(), setting.trainer()
    setting.run(whole)
    assert not setting.run(stopped, on_checkpoint=saver(tmp_path), wants_stop=lambda: stopped.step == 1)
    assert (stopped.step, [f.name for f in tmp_path.iterdir()]) == (2, ["2"])
    resumed = setting.trainer()
    load_checkpoint(resumed, tmp_path / "2")
    assert setting.run(resumed)
    assert curve(resumed) == curve(whole)


def overlapping(setting):
    """Returns a trainer as on a GPU: each update's numbers are read while the next one runs."""
    trainer = setting.trainer()
    assert not trainer.overlaps
    trainer.overlaps = True
    return trainer


def test_reading_numbers_one_update_late_changes_no_update(tmp_path):
    setting = Setting(config(duration={"kind": "steps", "value": 8}))
    at_once, late = setting.trainer(), overlapping(setting)
    logged = []
    setting.run(at_once)
    assert setting.run(
        late, on_checkpoint=saver(tmp_path), on_step=lambda record: logged.append((record["step"], late.step))
    )
    assert curve(late) == curve(at_once)
    # Read one update late, except before a due checkpoint, which contains all updates before it.
    assert logged == [(0, 2), (1, 3), (2, 3), (3, 5), (4, 6), (5, 6), (6, 8), (7, 8)]
    for a, b in zip(late.module.parameters(), at_once.module.parameters(), strict=True):
        assert torch.equal(a, b)
    resumed = overlapping(setting)
    load_checkpoint(resumed, tmp_path / "3")
    assert setting.run(resumed)
    assert curve(resumed) == curve(at_once)


def test_a_stop_request_that_is_read_late_loses_no_update(tmp_path):
    setting = Setting()
    whole, stopped = setting.trainer(), overlapping(setting)
    setting.run(whole)
    assert not setting.run(stopped, on_checkpoint=saver(tmp_path), wants_stop=lambda: stopped.step == 0)
    assert (stopped.step, len(stopped.history), [f.name for f in tmp_path.iterdir()]) == (2, 2, ["2"])
    resumed = overlapping(setting)
    load_checkpoint(resumed, tmp_path / "2")
    assert setting.run(resumed)
    assert curve(resumed) == curve(whole)


def test_skipped_steps_are_counted_when_read_late(capsys):
    setting = Setting(config(guards={"max_consecutive_skips": 2}))
    trainer = overlapping(setting)
    with torch.no_grad():
        trainer.module.model.lm_head.weight[3] = float("nan")
    before = [p.clone() for p in trainer.module.parameters()]
    with pytest.raises(TrainingError, match=r"2 steps in a row .* row"):
        setting.run(trainer)
    assert trainer.skipped == 2
    for a, b in zip(trainer.module.parameters(), before, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


def test_a_step_with_a_non_finite_gradient_leaves_the_optimizer_unchanged():
    setting = Setting()
    trainer = setting.trainer()
    updates = setting.stream()(trainer)
    trainer.train_step(*next(updates))
    before = copy.deepcopy(trainer.optimizer.state_dict()["state"])
    weight = trainer.module.model.lm_head.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight[3] = float("inf")
    trainer.train_step(*next(updates))
    with torch.no_grad():
        weight[3] = kept[3]
    for place, state in trainer.optimizer.state_dict()["state"].items():
        for name, value in state.items():
            assert torch.equal(value, before[place][name])
    assert torch.equal(weight, kept)


def test_a_stage_that_stops_improving_ends_early_and_no_row_is_lost():
    setting = Setting(config(duration={"kind": "steps", "value": 12}, schedule=COMPETENCE))
    trainer = setting.trainer()
    taken = []
    inner = trainer.train_step
    trainer.train_step = lambda update, batches, stop: taken.append(update) or inner(update, batches, stop)
    setting.run(trainer)
    stages = [record["weight_training"] for record in trainer.history]
    assert 3 < stages.index(1.0) < 9
    assert stages == sorted(stages)
    assert all(a.end == b.cursor for a, b in pairwise(taken))


@pytest.mark.parametrize(
    "settings",
    [{}, {"divergence": "reverse_kl"}, {"divergence": "jsd"}, {"divergence": "skew"}, DIVERGENCES],
    ids=str,
)
def test_micro_batching_changes_no_gradient(settings):
    found = []
    for tokens in (24, 1000):
        setting = Setting(config(micro_batch_tokens=tokens, **settings))
        trainer = setting.trainer()
        setting.run(trainer)
        found.append(
            [record[name] for record in trainer.history for name in ("ce_inference_nats", "kl_inference_nats")]
        )
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_margin_weighting_gives_the_weighted_mean_of_the_examples_gradients():
    schedule = [{"until": 1.0, "inference": 0.3, "training": 1.0}]
    optimizer = {"learning_rate": 1.0e-3, "clip_norm": 1.0e9}
    setting = Setting(config(weighting="margin", schedule=schedule, optimizer=optimizer))
    trainer = setting.trainer()
    update = setting.plan.update(0, 0, trainer.schedule.weights(0))
    for name, part in (("training", 1.0), ("inference", 0.3)):
        alone = [each for key in update.keys if MODES[key[1]] == name for each in _alone(setting, key)]
        leads = [_lead(packed.row_ids[0], name) for packed in alone]
        assert len(set(leads)) > 1
        total = sum(lead * len(packed.targets) for lead, packed in zip(leads, alone, strict=True))
        for lead, packed in zip(leads, alone, strict=True):
            packed.weight[:] = 1.0
            trainer.module(packed.tensors(trainer.device), torch.full((2,), part * lead / total)).total.backward()
    expected = [parameter.grad.clone() for parameter in trainer.module.parameters()]
    trainer.optimizer.zero_grad()
    found = []
    trainer._apply = lambda *_: found.extend(p.grad.clone() for p in trainer.module.parameters()) or True
    _, batches = next(iter(setting.stream()(trainer)))
    trainer.train_step(update, batches)
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def _alone(setting, key):
    return read_packs(setting.index, setting.reader, [[[key]]], 0)


def _lead(row_id, mode):
    """Returns the lead that follows from the made-up rows' cross-entropies, or votes, of 1 and 2 to 4."""
    second = 2 + int(row_id.removeprefix("row")) % 3
    return 1 - 1 / second if mode == "training" else (second - 1) / (second + 1)


@pytest.mark.slow
def test_compiled_blocks_train_the_same():
    curves = []
    for compiled in (False, True):
        setting = Setting(config(memory={"compile": compiled}))
        trainer = setting.trainer()
        setting.run(trainer)
        curves.append([(r["ce_inference_nats"], r["grad_norm"]) for r in trainer.history])
    assert curves[0] == [pytest.approx(pair, rel=1e-3) for pair in curves[1]]


def test_training_lowers_the_loss_and_held_out_bits_per_byte_equal_the_models():
    setting = Setting(config(duration={"kind": "steps", "value": 60}))
    trainer = setting.trainer()
    setting.run(trainer)
    assert trainer.history[-1]["ce_training_nats"] < trainer.history[30]["ce_training_nats"] - 0.3
    nats, size = [0.0, 0.0], [0.0, 0.0]
    keys = [(int(row), mode) for row in setting.plan.validation for mode in (0, 1) if setting.index.tokens[row, mode]]
    for (_, mode), example in setting.reader.read(setting.index, keys):
        ids = torch.from_numpy(np.concatenate([example.prompt_ids, example.response_ids]).astype(np.int64))[None]
        logprobs = trainer.module.model(ids).logits[0].log_softmax(-1)
        first = len(example.prompt_ids)
        nats[mode] -= float(logprobs[range(first - 1, ids.shape[1] - 1), ids[0, first:]].sum().detach())
        size[mode] += example.response_bytes
    last = trainer.history[-1]
    for mode, name in enumerate(("training", "inference")):
        assert last[f"{HELDOUT}_{name}"] == pytest.approx(nats[mode] / math.log(2) / size[mode], rel=1e-4)
    assert last[HELDOUT] == last[f"{HELDOUT}_training"]
    assert HELDOUT not in trainer.history[-2]


def test_steps_with_a_non_finite_gradient_are_skipped_then_stop_the_run(capsys):
    setting = Setting(config(guards={"max_consecutive_skips": 2}))
    trainer = setting.trainer()
    with torch.no_grad():
        trainer.module.model.lm_head.weight[3] = float("nan")
    before = [p.clone() for p in trainer.module.parameters()]
    with pytest.raises(TrainingError, match=r"2 steps in a row .* row"):
        setting.run(trainer)
    assert trainer.skipped == 2
    assert capsys.readouterr().out.startswith("step 0: gradient norm nan; skipped; highest nats per token: row")
    for a, b in zip(trainer.module.parameters(), before, strict=True):
        assert torch.equal(a.nan_to_num(), b.nan_to_num())


def test_a_spike_is_reported_with_the_row_that_caused_it(capsys):
    setting = Setting(config(duration={"kind": "steps", "value": 40}, batch_tokens=200))
    trainer = setting.trainer()
    inner, poisoned = trainer.train_step, []

    def train_step(update, batches, stop):
        if update.step == 30:
            # Answers that no model would give.
            batches[0].targets[batches[0].example == 0] = int(batches[0].targets[0]) * 7 % 50
            trainer.module.model.lm_head.weight.data.mul_(30)
            poisoned.append(batches[0].row_ids[0])
        return inner(update, batches, stop)

    trainer.train_step = train_step
    setting.run(trainer)
    lines = [line for line in capsys.readouterr().out.splitlines() if "spikes" in line]
    assert lines[0].startswith("step 30: cross-entropy spikes")
    assert "row" in lines[0].split("highest nats per token: ")[1]


def test_a_spike_is_a_loss_far_above_the_running_median():
    watch = SpikeWatch(8.0)
    rng = np.random.default_rng(0)
    steady = [2.0 + 0.1 * x for x in rng.standard_normal(200)]
    assert not any(watch.observe({"training": value}) for value in steady)
    again = SpikeWatch(8.0)
    again.load_state_dict(watch.state_dict())
    for each in (watch, again):
        assert each.observe({"training": 4.0, "inference": None}) == ["training"]
        assert each.observe({"training": float("nan")}) == ["training"]
        assert each.observe({"training": 2.1}) == []


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: not enough memory")]
)
def test_running_out_of_memory_names_the_settings_to_change(error):
    words = r"micro_batch_tokens \(48\).*activation_checkpointing: full.*cpu_offload"
    with pytest.raises(TrainingError, match=words), explain_out_of_memory(config(), torch.device("cpu")):
        raise error
    with pytest.raises(RuntimeError, match="another"), explain_out_of_memory(config(), torch.device("cpu")):
        raise RuntimeError("another")


def test_a_missing_checkpoint_or_one_of_another_model_is_rejected(tmp_path):
    setting = Setting()
    setting.run(setting.trainer(), on_checkpoint=saver(tmp_path))
    with pytest.raises(ArtifactError, match=r"checkpoint .*3: .*--redo fuse"):
        load_checkpoint(setting.trainer(model("mpt")), tmp_path / "3")
    with pytest.raises(ArtifactError, match="No such file"):
        load_checkpoint(setting.trainer(), tmp_path / "4")


def test_the_learning_rate_warms_up_and_decays_over_the_run_or_each_stage():
    opt = OptimizerConfig(learning_rate=1.0, warmup_fraction=0.1, final_fraction=0.1)
    rates = [learning_rate(opt, step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert max(rates) == 1.0
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)
    settings = {"learning_rate": 1.0, "warmup_fraction": 0.34, "decay": "stage"}
    setting = Setting(config(optimizer=settings))
    trainer = setting.trainer()
    setting.run(trainer)
    rates = [record["learning_rate"] for record in trainer.history]
    assert rates[:3] == rates[3:]
    assert rates[0] < rates[1] >= rates[2]


def test_model_flops_equal_a_count_of_matrix_products():
    """Compared with torch's own counter, which ignores norms and attention in one kernel."""
    from torch.utils.flop_counter import FlopCounterMode

    target = model()
    target.set_attn_implementation("eager")
    ids = torch.arange(16)[None] % 50
    with FlopCounterMode(display=False) as counter:
        target(ids).logits.sum().backward()
    ours = ModelFlops.of(target).update(np.array([16]), 16)
    assert counter.get_total_flops() == pytest.approx(ours, rel=0.01)
