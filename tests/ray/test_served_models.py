"""Models that the command line serves: fused models of finished runs, others beside them, and the file for `serve deploy`."""

import json

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from profuser.errors import UserError
from profuser.recipe.loading import load_recipe, parse_recipe
from profuser.run.finding import RECIPE
from profuser.run.fusion_run import FusionRun
from profuser.serving.options import GatewayConfig, ServedModel
from ray_jobs.cli.options import RECIPES
from ray_jobs.serving.app import check_serving, serve_file
from ray_jobs.serving.model import vllm_flags
from ray_jobs.serving.models import serve_config

NO_REPLICAS: dict = {}


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """Returns a storage of two runs with a fused model and one without."""
    folder = tmp_path_factory.mktemp("runs")
    for name in ("first", "second", "unfinished"):
        run = FusionRun(load_recipe("demo", [f"storage={folder}", f"name={name}"], RECIPES))
        run.folder.write_bytes(RECIPE, yaml.safe_dump(run.recipe.model_dump(mode="json")).encode())
        if name != "unfinished":
            (run.fuse().folder / "model").write_bytes("config.json", json.dumps({"model_type": "llama"}).encode())
            run.fuse().finish([{"rows": 1}], 1.0)
    return str(folder)


def config(storage, runs, beside=(), models=(), name=None, **settings):
    return serve_config(runs, storage, beside, models, name, NO_REPLICAS, {"insecure": True, **settings})


def test_fused_models_come_first_then_target_and_sources(storage):
    found = config(storage, ["first", "second"], ["all"])
    assert [model.name for model in found.models] == ["first", "second", "target", "mpt", "neox"]
    assert found.models[0].model == f"{storage}/first/fuse/model"
    assert {model.max_model_len for model in found.models} == {256}, "the recipe's engine settings"
    check_serving(found, "127.0.0.1")
    assert [model.name for model in config(storage, ["first"], ["neox"], name="mine").models] == ["mine", "neox"]


def test_a_file_for_serve_deploy_describes_the_same_models(storage):
    given = config(storage, ["first"], ["mpt"], [f"org/m={storage}/second/fuse/model"], keys_file="/keys.yaml")
    tree = yaml.safe_load(serve_file(given, "0.0.0.0", 8001))
    *models, gateway = ServeDeploySchema.model_validate(tree).applications
    assert tuple(ServedModel.model_validate(each.args) for each in models) == given.models
    assert GatewayConfig.model_validate(gateway.args) == given.gateway
    assert [each.route_prefix for each in (*models, gateway)] == [None, None, None, "/"]
    assert (tree["http_options"]["host"], tree["http_options"]["port"]) == ("0.0.0.0", 8001)
    assert models[2].name == "profuser-org-m"


HUB = {"model": "org/name", "revision": "a1b2c3"}
ENGINE = {
    "dtype": "bfloat16",
    "max_model_len": 64,
    "quantization": "fp8",
    "tensor_parallel_size": 2,
    "pipeline_parallel_size": 2,
    "max_num_seqs": 7,
    "kv_cache_gib": 0.5,
    "options": {"max_num_batched_tokens": 512, "enable_prefix_caching": False},
    "trust_remote_code": True,
}


def test_sources_keep_their_revision_and_engine(storage, monkeypatch):
    run = FusionRun(load_recipe("demo", [f"storage={storage}", "name=hub"], RECIPES))
    tree = run.recipe.model_dump(mode="json")
    for number, source in enumerate(tree["sources"][1:]):  # two revisions of one repository
        source.update(HUB | {"revision": f"a{number}"}, engine=source["engine"] | ENGINE)
    tree["target"].update(HUB, engine=tree["target"]["engine"] | ENGINE)
    monkeypatch.setattr("ray_jobs.serving.models.find_run", lambda *_: FusionRun(parse_recipe(tree, "the test")))
    monkeypatch.setattr("ray_jobs.serving.models.finished_model", lambda run: "/fused")
    given = config(storage, ["hub"], ["mpt", "neox", "target"])
    file = yaml.safe_load(serve_file(given, "127.0.0.1", 8000))
    found = [ServedModel.model_validate(each["args"]) for each in file["applications"][:-1]]
    assert [model.revision for model in found] == [None, "a0", "a1", "a1b2c3"]
    assert [model.model for model in found] == ["/fused", *["org/name"] * 3]
    for model in found:
        assert {name: getattr(model, name) for name in ENGINE} == ENGINE


def test_a_served_model_gets_every_setting_as_a_flag():
    model = ServedModel.model_validate({"name": "m", "model": "org/name", "revision": "a1", **ENGINE})
    flags = vllm_flags(model, "org/name", "bfloat16", on_gpu=False)
    pairs = dict(zip(flags, [*flags[1:], ""], strict=True))
    assert pairs["--revision"] == "a1"
    assert pairs["--quantization"] == "fp8"
    assert pairs["--kv-cache-memory-bytes"] == str(2**29)
    assert pairs["--tensor-parallel-size"] == pairs["--pipeline-parallel-size"] == "2"
    assert pairs["--max-num-seqs"] == "7"
    assert "--trust-remote-code" in flags


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"runs": ["nobody"]}, "run 'nobody' not found; there are: first, second, unfinished"),
        ({"runs": ["unfinished"]}, "run 'unfinished' has no fused model yet"),
        (
            {"runs": ["first"], "beside": ["gpt"]},
            "--with gpt: run first has no such model; there are: target, llama, mpt",
        ),
        ({"runs": [], "models": ["just-a-name"]}, "--model just-a-name: write NAME=LOCATION"),
        ({"runs": [], "models": ["two words=/m"]}, "--model two words=/m: models.0.name"),
        ({"runs": ["first", "first"]}, "two models are named 'first'"),
        ({"runs": []}, "name a run, or a model with --model"),
    ],
)
def test_user_errors_are_one_line(storage, arguments, message):
    with pytest.raises(UserError) as caught:
        config(storage, **arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
