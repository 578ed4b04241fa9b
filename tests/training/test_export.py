"""The fused model's folder loads in Transformers, vLLM and lm-evaluation-harness, and prompts as the run did."""

import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer, DeepseekV3Config, MixtralConfig

from profuser.corpus.template import encode_example
from profuser.corpus.turns import Message
from profuser.engines.base import Request
from profuser.engines.loading import load_engine
from profuser.engines.loop import EngineLoop
from profuser.recipe.engine import EngineConfig
from profuser.recipe.models import GenerationConfig, TargetConfig
from profuser.recipe.template import JinjaTemplate, OwnTemplate
from profuser.training import export as exporting
from profuser.training.export import export, whole_weights
from profuser.training.target import load_target
from tests import tiny
from tests.training.made import CONFIGS, SMALL, V, config

CPU = torch.device("cpu")
MAKERS = {"llama": tiny.llama, "mpt": tiny.mpt, "gpt_neox": tiny.neox}
EXPERTS = {**SMALL, "vocab_size": V, "num_key_value_heads": 2, "num_experts_per_tok": 2}
OTHERS = {
    "gemma2, tied": CONFIGS["gemma2, tied and capped"],
    "mixtral, experts": MixtralConfig(num_local_experts=4, **EXPERTS),
    "deepseek, a buffer": DeepseekV3Config(
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        **EXPERTS,
    ),
}


def save(settings, folder, dtype=torch.float32, **saving):
    """Saves a target of any architecture, with a tokenizer."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(settings, dtype=dtype)
    for buffer in model.state_dict().values():
        buffer += 0.01 * torch.rand(buffer.shape)
    model.save_pretrained(folder, **saving)
    tiny.byte_level_tokenizer().save_pretrained(folder)
    return folder


def fuse(target, folder, template=OwnTemplate(), engine=EngineConfig(), **settings):
    """Returns a changed module, after exporting it."""
    module = load_target(str(target), None, config(**settings), CPU).eval()
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=random)
    export(module, str(target), TargetConfig(model=str(target), engine=engine), template, folder)
    return module


@pytest.fixture(scope="module", params=MAKERS)
def fused(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    return fuse(MAKERS[request.param](folder / "target"), folder / "fused").model, folder / "fused"


def saved(folder):
    """Returns every weight of a folder by name."""
    out = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, "pt") as tensors:
            out |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    return out


def edit(file, **settings):
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | settings))


def ends(folder):
    """Returns the tokens at which a loaded model stops."""
    found = AutoModelForCausalLM.from_pretrained(folder).generation_config.eos_token_id
    return found if isinstance(found, list) else [found]


def log_likelihood(model, prompt_ids, response_ids):
    """Returns the log-likelihood of every token of a response."""
    ids = torch.tensor([[*prompt_ids, *response_ids]])
    with torch.no_grad():
        logprobs = model(ids).logits[0, len(prompt_ids) - 1 : -1].log_softmax(-1)
    return logprobs.gather(1, torch.tensor(response_ids)[:, None])[:, 0].numpy()


def test_transformers_returns_the_logits_of_the_module(fused):
    module, folder = fused
    loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.arange(40).reshape(2, 20) * 7 % 300
    torch.testing.assert_close(loaded(ids).logits, module(ids).logits, rtol=0, atol=1e-6)


@pytest.mark.vllm
def test_vllm_generates_what_the_module_generates(fused):
    module, folder = fused
    rng = np.random.default_rng(0)
    forced = [Request(rng.integers(5, 300, 9).tolist(), 4, rng.integers(5, 300, n).tolist()) for n in (1, 30)]
    greedy = [Request(r.prompt_ids, 4, generation=GenerationConfig(), max_tokens=12) for r in forced]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
        responses = process.submit(vllm_responses, str(folder), [*forced, *greedy]).result()
    for request, response in zip([*forced, *greedy], responses, strict=True):
        ids = response.ids.tolist()
        assert ids == request.response_ids or ids == continued(module, request.prompt_ids)
        np.testing.assert_allclose(response.logprobs, log_likelihood(module, request.prompt_ids, ids), atol=2e-4)


def vllm_responses(path, requests):
    """Runs in a separate process, since vLLM leaves state behind."""
    return EngineLoop(load_engine(path, None, EngineConfig(kind="vllm", max_model_len=128))).run(requests)


def continued(model, prompt_ids):
    ids = torch.tensor([prompt_ids])
    settings = {"max_new_tokens": 12, "do_sample": False, "attention_mask": torch.ones_like(ids), "pad_token_id": 0}
    return model.generate(ids, **settings)[0, len(prompt_ids) :].tolist()


@pytest.mark.slow
def test_lm_evaluation_harness_returns_the_log_likelihoods_of_the_module(fused, tmp_path, monkeypatch):
    module, folder = fused
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    rows = [{"question": f"Sort {a}.", "choices": [f"{a} b", f"b {a}"], "answer": 0} for a in ("u v", "c", "a z")]
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows)))
    task = {
        "task": "sorting",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "rows.json")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "{{answer}}",
        "metric_list": [{"metric": "acc"}],
    }
    (tmp_path / "sorting.yaml").write_text(yaml.safe_dump(task))
    found = simple_evaluate(
        model="hf",
        model_args={"pretrained": str(folder), "dtype": "float32"},
        tasks=["sorting"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        device="cpu",
        bootstrap_iters=0,
    )
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for sample in found["samples"]["sorting"]:
        question, choices = sample["doc"]["question"], sample["doc"]["choices"]
        asked = tokenizer.encode(question)
        for choice, (likelihood, _) in zip(choices, sample["filtered_resps"], strict=True):
            answer = tokenizer.encode(f"{question} {choice}")[len(asked) :]
            assert float(likelihood) == pytest.approx(log_likelihood(module, asked, answer).sum(), abs=1e-4)
    assert len(found["samples"]["sorting"]) == len(rows)


@pytest.mark.parametrize("name", OTHERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_keep_the_targets_names_and_types(name, dtype, tmp_path):
    target = save(OTHERS[name], tmp_path / "target", dtype, max_shard_size="20KB")
    assert (target / "model.safetensors.index.json").exists()
    module = fuse(target, tmp_path / "fused").model
    before, after = saved(target), saved(tmp_path / "fused")
    assert {k: w.shape for k, w in after.items()} == {k: w.shape for k, w in before.items()}
    buffers = [key for key in before if key.endswith("e_score_correction_bias")]
    assert bool(buffers) == name.startswith("deepseek")
    assert all(after[key].dtype == before[key].dtype for key in before if key not in buffers)
    assert all(torch.equal(after[key], before[key].float()) for key in buffers)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "fused").eval()
    assert loaded.dtype == dtype
    for (key, mine), (other, wanted) in zip(whole_weights(loaded), whole_weights(module), strict=True):
        assert key == other
        assert torch.equal(mine, wanted.to(mine.dtype))


def test_adapters_are_merged_into_the_weights(tmp_path):
    module = fuse(tiny.mpt(tmp_path / "target"), tmp_path / "fused", lora={"rank": 2}).model
    assert saved(tmp_path / "fused").keys() == saved(tmp_path / "target").keys()
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "fused").eval()
    ids = torch.arange(20)[None]
    torch.testing.assert_close(loaded(ids).logits, module(ids).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gemma2, tied", "deepseek, a buffer"])
def test_two_workers_write_the_same_as_one(name, tmp_path):
    target = save(OTHERS[name], tmp_path / "target", torch.bfloat16)
    torch.multiprocessing.spawn(export_of_worker, (2, target, tmp_path), nprocs=2)
    found, wanted = saved(tmp_path / "fused 0"), saved(target)
    assert not list((tmp_path / "fused 1").iterdir())
    assert found.keys() == wanted.keys()
    assert not [key for key, weight in wanted.items() if not torch.equal(found[key], weight)]


def export_of_worker(rank, world_size, target, folder):
    """Exports the target unchanged, with adapters that change nothing."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=world_size)
    module = load_target(str(target), None, config(lora={"rank": 2}), CPU)
    (folder / f"fused {rank}").mkdir()
    export(module, str(target), TargetConfig(model=str(target)), OwnTemplate(), folder / f"fused {rank}")
    dist.barrier()
    dist.destroy_process_group()


def test_a_large_model_is_written_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "SHARD_SIZE", "50KB")
    module = fuse(tiny.llama(tmp_path / "target"), tmp_path / "fused").model
    files = set(json.loads((tmp_path / "fused" / "model.safetensors.index.json").read_text())["weight_map"].values())
    assert len(files) > 2
    assert files == {file.name for file in (tmp_path / "fused").glob("*.safetensors")}
    assert saved(tmp_path / "fused").keys() == dict(whole_weights(module)).keys()


def test_all_files_but_the_weights_are_the_targets_own(tmp_path):
    target = save(CONFIGS["llama"], tmp_path / "target")
    edit(target / "config.json", auto_map={"AutoConfig": "code.Config"}, rope_theta=5000.0, max_length=99)
    # As in Vicuna's folder: Transformers would not save it again.
    edit(target / "generation_config.json", temperature=0.9, top_p=0.6, eos_token_id=2)
    for name in ("code.py", "LICENSE.txt", "tokenizer.model", "README.md", "training_args.bin", "optimizer.json"):
        (target / name).write_text(name)
    fuse(target, tmp_path / "fused")
    kept = {file.name for file in (tmp_path / "fused").iterdir()}
    assert kept == {file.name for file in target.iterdir()} - {"README.md", "training_args.bin", "optimizer.json"}
    for name in kept - {"config.json", "model.safetensors"}:
        assert (tmp_path / "fused" / name).read_bytes() == (target / name).read_bytes(), name
    before, after = (json.loads((f / "config.json").read_text()) for f in (target, tmp_path / "fused"))
    assert before.pop("auto_map")
    assert after == before


def test_a_target_without_generation_settings_gets_some(tmp_path):
    target = save(CONFIGS["llama"], tmp_path / "target")
    (target / "generation_config.json").unlink()
    fuse(target, tmp_path / "fused")
    end = AutoTokenizer.from_pretrained(target).eos_token_id
    assert end in ends(tmp_path / "fused")


MULTILINE = """{{ bos_token }}
{# One turn a line. #}
{% for message in messages %}
  {% if message.role == 'user' %}
    Q: {{ message.content }}
  {% else -%}
    A: {{ message.content }}<|endoftext|>
  {% endif %}
{% endfor %}
{% if add_generation_prompt %}A:{% endif %}
"""
TEMPLATES = {
    "one line": "{% for m in messages %}[{{ m.role }}] {{ m.content }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
    "several lines": MULTILINE,
}


@pytest.mark.parametrize("text", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("has_own", [True, False])
def test_the_recipes_template_becomes_the_tokenizers(text, has_own, tmp_path):
    target = save(CONFIGS["llama"], tmp_path / "target")
    if not has_own:
        (target / "chat_template.jinja").unlink()
    edit(target / "tokenizer_config.json", chat_template="of old")
    template = JinjaTemplate(kind="jinja", text=text)
    fuse(target, tmp_path / "fused", template)
    assert "chat_template" not in json.loads((tmp_path / "fused" / "tokenizer_config.json").read_text())
    served, trained = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "fused", target))
    turns = [Message("user", "Sort b a."), Message("assistant", "a b"), Message("user", "And c?")]
    example = encode_example(trained, turns, "a b c", template)
    found = served.apply_chat_template([t._asdict() for t in turns], add_generation_prompt=True, return_dict=False)
    assert found == example.prompt_ids
    assert example.response_ids[-1] in ends(tmp_path / "fused")


def test_a_tokenizer_with_its_own_code_is_kept(tmp_path):
    target = save(CONFIGS["llama"], tmp_path / "target")
    code = "import transformers\n\n\nclass Own(transformers.PreTrainedTokenizerFast):\n    mark = 'own'\n"
    (target / "own.py").write_text(code)
    edit(target / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "own.Own"]}, tokenizer_class="Own")
    fuse(target, tmp_path / "fused", engine=EngineConfig(trust_remote_code=True))
    assert AutoTokenizer.from_pretrained(tmp_path / "fused", trust_remote_code=True).mark == "own"
