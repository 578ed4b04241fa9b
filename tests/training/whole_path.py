"""Runs the training path without Ray: examples, packs, loss, steps, a checkpoint, and a Hugging Face folder. Prints JSON."""

import json
import sys
import tempfile
from pathlib import Path

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from profuser.recipe.models import OwnTemplate, TargetConfig
from profuser.training.checkpoint import Checkpointer, load_checkpoint
from profuser.training.export import export
from profuser.training.target import load_target
from tests import tiny
from tests.training.made import Setting, config, curve


def main(sharded: bool) -> None:
    if sharded:
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        target, checkpointer, setting = tiny.llama(folder / "target"), Checkpointer(), Setting(config())

        def trainer():
            return setting.trainer(module=load_target(target, None, setting.config, torch.device("cpu")))

        whole, resumed = trainer(), trainer()
        setting.run(whole, on_checkpoint=lambda t: checkpointer.save(t, folder / f"step-{t.step}")())
        load_checkpoint(resumed, folder / "step-3")
        setting.run(resumed)
        export(resumed.module, target, TargetConfig(model=target), OwnTemplate(), folder / "fused")
        fused = AutoModelForCausalLM.from_pretrained(folder / "fused").state_dict()
        before = AutoModelForCausalLM.from_pretrained(target).state_dict()
        facts = {
            "attention": str(whole.module.attention),
            "resumed_equals_whole": curve(whole) == curve(resumed),
            "losses": [record["ce_inference_nats"] for record in whole.history if "ce_inference_nats" in record],
            "changed_weights": sum(not torch.equal(fused[name], before[name]) for name in before),
            "weights": len(before),
        }
    print(json.dumps(facts))


if __name__ == "__main__":
    main("--sharded" in sys.argv)
