"""A target that cannot be trained is reported before training, in one line, from its config alone."""

import json
from pathlib import Path

import pytest

from profuser.errors import UserError
from profuser.recipe.fusing import FuseConfig
from profuser.training.target import check_trainable
from tests import tiny


@pytest.fixture
def target(tmp_path):
    folder = Path(tiny.llama(tmp_path))
    (folder / "model.safetensors").unlink()
    return folder


def edit(target, **settings):
    file = target / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_a_trainable_target_passes_without_its_weights(target):
    check_trainable(str(target), None, FuseConfig.model_validate({"lora": {"modules": ["q_proj"]}}))


def test_a_missing_layer_is_reported(target):
    with pytest.raises(UserError, match=r"'q_prjo' names no linear layer .*it has down_proj"):
        check_trainable(str(target), None, FuseConfig.model_validate({"lora": {"modules": ["q_prjo"]}}))


def test_an_architecture_with_its_own_code_is_reported_and_its_code_not_run(target):
    (target / "code.py").write_text("raise SystemExit('was run')")
    edit(target, model_type="own", auto_map={"AutoConfig": "code.Config"})
    with pytest.raises(UserError, match=r"target.model: .*custom code.*a class of Transformers' own"):
        check_trainable(str(target), None, FuseConfig())


def test_an_unknown_architecture_is_reported(target):
    edit(target, model_type="own")
    with pytest.raises(UserError, match=r"target.model: .*`own`"):
        check_trainable(str(target), None, FuseConfig())
