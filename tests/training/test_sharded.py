"""The loss on sharded parameters: two processes with FSDP2 give the gradients of one."""

import pickle

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from profuser.training.examples import ExampleStore
from profuser.training.loop import Trainer
from tests.training.test_plan_and_loop import K, V, config, llama, make_table, other_models

WORLD = 2


def tied():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 16, "final_logit_softcapping": 2.0}
    return Gemma2ForCausalLM(Gemma2Config(vocab_size=V, max_position_embeddings=64, pad_token_id=0, **shape, **heads))


MODELS = {"llama": llama, "gemma2, tied and capped": tied, "mpt, tied": lambda: list(other_models())[1]}


def gradients(name: str, checkpointing: bool) -> dict[str, torch.Tensor]:
    """Of one update, whole, by parameter; on as many processes as there are."""
    store = ExampleStore([make_table()], K, V, 64)
    trainer = Trainer(MODELS[name](), store, config(activation_checkpointing=checkpointing), 0, K)
    update = trainer.plan.update(5)
    for indices in update.micro_batches:
        (trainer.module(trainer._collate(update, indices)).total * trainer.world_size).backward()
    whole = {}
    for key, parameter in trainer.module.named_parameters():
        grad = parameter.grad
        whole[key] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return whole


def worker(rank: int, name: str, file: str, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=WORLD)
    found = {checkpointing: gradients(name, checkpointing) for checkpointing in (False, True)}
    if rank == 0:
        with open(f"{folder}/gradients.pkl", "wb") as stream:
            pickle.dump(found, stream)
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_gradients_on_two_workers_equal_those_on_one(name, tmp_path):
    mp.spawn(worker, (name, str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=WORLD)
    found = pickle.loads((tmp_path / "gradients.pkl").read_bytes())
    alone = gradients(name, checkpointing=False)
    for checkpointing in (False, True):
        assert found[checkpointing].keys() == alone.keys()
        for key, grad in alone.items():
            torch.testing.assert_close(found[checkpointing][key], grad, rtol=1e-4, atol=1e-6)
