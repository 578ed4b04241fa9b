"""Models that the command line serves: fused models of finished runs, others beside them, and the file for `serve deploy`."""

import json

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from profuser.errors import UserError
from profuser.recipe.loading import load_recipe
from profuser.run.finding import RECIPE
from profuser.run.fusion_run import FusionRun
from profuser.serving.options import GatewayConfig, ServedModel
from ray_jobs.cli.options import RECIPES
from ray_jobs.serving.app import check_serving, serve_file
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
