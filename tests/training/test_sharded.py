"""Sharded parameters: two processes with FSDP2 give the results of one, from loading through checkpoints to the export."""

import copy
import pickle
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import AutoModelForCausalLM

from profuser.models.classes import language_model_class
from profuser.training.batches import read_packs
from profuser.training.checkpoint import Checkpointer, load_checkpoint
from profuser.training.export import whole_weights
from profuser.training.loop import Hooks, Trainer
from profuser.training.target import load_target
from tests.training.families import MULTIMODAL, WITH_EXPERTS
from tests.training.made import Setting, config, curve, model, tables

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
LORA = {"rank": 2}
VARIANTS = {
    "whole": {},
    "full checkpointing": {"memory": {"activation_checkpointing": "full"}},
    "selective checkpointing, not resharded": {
        "memory": {"activation_checkpointing": "selective", "reshard_after_forward": False}
    },
    "adapters": {"lora": LORA},
    "unpacked": {"packing": False},
    "pairs and the target's own answers": {
        "schedule": [
            {"until": 0.5, "inference": 1, "training": 1},
            {"until": 1, "inference": 0, "training": 1, "preference": 1, "on_policy": 1},
        ],
        "divergence": {"on_policy": "skew"},
    },
    "divergences by mode, where the teacher is ahead": {
        "divergence": {"inference": "reverse_kl", "training": "jsd"},
        "kl_positions": "ahead",
    },
}


def make_trainer(setting, folder):
    """Returns a trainer for this process, with its own share of everything."""
    world_size, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    module = load_target(str(folder), None, setting.config, CPU)
    packs = setting.plan.deal_validation(world_size, rank)
    validation = list(read_packs(setting.index, setting.reader, packs, 0))
    return Trainer(module, setting.plan, setting.config, 0, validation), setting.stream(world_size, rank)


def train(settings, folder, start=None, save=None):
    """Trains from a checkpoint or from the start; returns the curve and the final weights."""
    shards = tables(pairs=True, on_policy=True) if "schedule" in settings else None
    trainer, stream = make_trainer(Setting(config(**settings), shards), folder)
    if start:
        load_checkpoint(trainer, Path(start))
    checkpointer = Checkpointer()

    def on_checkpoint(trainer):
        if save:
            checkpointer.save(trainer, Path(save) / str(trainer.step))()

    trainer.run(stream, Hooks(on_checkpoint=on_checkpoint))
    weights = {name: weight.clone() for name, weight in whole_weights(trainer.module.model)}
    return curve(trainer), weights


def worker(rank, world_size, port_file, result, jobs):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{port_file}", rank=rank, world_size=world_size)
    found = [train(*job) for job in jobs]
    if rank == 0:
        Path(result).write_bytes(pickle.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def on_workers(world_size, tmp_path, *jobs):
    """Returns the result of each job on that many processes."""
    number = len(list(tmp_path.iterdir()))
    result = tmp_path / f"result{number}"
    mp.spawn(worker, (world_size, str(tmp_path / f"meet{number}"), str(result), jobs), nprocs=world_size)
    return pickle.loads(result.read_bytes())


def check_close(found, wanted):
    """Compares curves and weights of two trainings."""
    for mine, other in zip(found[0], wanted[0], strict=True):
        assert mine == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert found[1].keys() == wanted[1].keys()
    for key, weight in wanted[1].items():
        torch.testing.assert_close(found[1][key], weight, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gemma2, tied and capped", "mpt"])
def test_two_workers_train_the_same_as_one(name, tmp_path):
    model(name).save_pretrained(tmp_path / "target")
    gentle = {"optimizer": {"learning_rate": 1.0e-4}}
    found = on_workers(2, tmp_path, *[({**gentle, **each}, tmp_path / "target") for each in VARIANTS.values()])
    for variant, result in zip(VARIANTS.values(), found, strict=True):
        alone = {key: value for key, value in variant.items() if key != "memory"}
        check_close(result, train({**gentle, **alone}, tmp_path / "target"))


@pytest.mark.parametrize("name", ["qwen3_moe", "gemma3"])
def test_two_workers_train_experts_adapters_and_text_parts_the_same_as_one(name, tmp_path):
    settings = copy.deepcopy({**WITH_EXPERTS, **MULTIMODAL}[name])
    torch.manual_seed(0)
    language_model_class(settings).from_config(settings).save_pretrained(tmp_path / "target")
    gentle = {"optimizer": {"learning_rate": 1.0e-4}, "lora": LORA}
    whole = {**gentle, "lora": None}
    found = on_workers(2, tmp_path, (gentle, tmp_path / "target"), (whole, tmp_path / "target"))
    for result, each in zip(found, (gentle, whole), strict=True):
        check_close(result, train(each, tmp_path / "target"))


@pytest.mark.parametrize("name", ["llama", "mpt", "gpt_neox"])
def test_bfloat16_trains_nearly_the_same_as_float32(name, tmp_path):
    model(name).save_pretrained(tmp_path / "target")
    settings = {"optimizer": {"learning_rate": 1.0e-4}, "lora": None, "memory": {"activation_checkpointing": "full"}}
    low, full = on_workers(
        2, tmp_path, ({**settings, "dtype": "bfloat16"}, tmp_path / "target"), (settings, tmp_path / "target")
    )
    assert low[0] != full[0]
    for mine, other in zip(low[0], full[0], strict=True):
        assert mine == pytest.approx(other, rel=0.05, abs=0.01)
    assert {weight.dtype for weight in low[1].values()} == {torch.float32}


@pytest.mark.parametrize("variant", [{}, {"lora": LORA}], ids=["whole", "adapters"])
def test_a_run_continues_with_another_number_of_workers(variant, tmp_path):
    settings = {"duration": {"kind": "steps", "value": 9}, "optimizer": {"learning_rate": 1.0e-4}, **variant}
    target, saved = tmp_path / "target", tmp_path / "saved"
    model().save_pretrained(target)
    ((curve, weights),) = on_workers(2, tmp_path, (settings, target, None, saved))
    same, fewer = (
        on_workers(2, tmp_path, (settings, target, saved / "3"))[0],
        train(settings, target, saved / "3", tmp_path / "fewer"),
    )
    assert same[0] == curve
    assert all(torch.equal(same[1][key], weight) for key, weight in weights.items())
    check_close(fewer, (curve, weights))
    check_close(on_workers(2, tmp_path, (settings, target, tmp_path / "fewer" / "6"))[0], (curve, weights))


def test_a_target_with_pickled_weights_is_loaded(tmp_path):
    target = model()
    target.save_pretrained(tmp_path / "plain")
    target.save_pretrained(tmp_path / "pickled")
    torch.save(target.state_dict(), tmp_path / "pickled" / "pytorch_model.bin")
    (tmp_path / "pickled" / "model.safetensors").unlink()
    settings = {"duration": {"kind": "steps", "value": 1}}
    plain, pickled = on_workers(2, tmp_path, (settings, tmp_path / "plain"), (settings, tmp_path / "pickled"))
    assert plain[0] == pickled[0]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "pickled") is not None
