"""Settings of models on the command line, for all or for one; what its files complete; what is refused before it starts."""

import json
import shutil

import pytest
import yaml
from transformers import AutoTokenizer

from profuser.errors import UserError
from profuser.serving.options import ServeConfig, ServedModel
from profuser.serving.resolve import check_known, resolve_serving
from ray_jobs.serving.app import serve_file
from ray_jobs.serving.model import vllm_flags
from ray_jobs.serving.settings import with_model_settings
from tests import tiny
from tests.corpus.families import FAMILIES


def config(*models, **settings):
    return ServeConfig(models=tuple(ServedModel(name=name, model=f"/{name}", **settings) for name in models))


def test_a_value_is_for_all_models_or_for_the_one_that_it_names(tmp_path):
    file = tmp_path / "chat.jinja"
    file.write_text("{{ messages[0].content }}")
    given = {
        "reasoning_parser": ["target=qwen3", "none"],
        "tool_parser": ["hermes"],
        "chat_template": [f"fused={file}"],
        "template_arguments": ["target={enable_thinking: false}"],
        "adapters": ["poems=/adapters/poems", "target=prose=/adapters/prose"],
        "quantization": ["target=fp8"],
    }
    fused, target = with_model_settings(config("fused", "target"), given).models
    assert (fused.reasoning_parser, target.reasoning_parser) == ("none", "qwen3")
    assert fused.tool_parser == target.tool_parser == "hermes"
    assert (fused.chat_template, target.chat_template) == ("{{ messages[0].content }}", None)
    assert (fused.template_arguments, target.template_arguments) == ({}, {"enable_thinking": False})
    assert (fused.adapters, target.adapters) == ({"poems": "/adapters/poems"}, {"prose": "/adapters/prose"})
    assert (fused.quantization, target.quantization) == (None, "fp8")


def test_a_written_file_has_the_settings_and_the_gateway_knows_the_adapters():
    given = with_model_settings(config("fused"), {"adapters": ["org/poems=/a"], "tool_parser": ["hermes"]})
    model, gateway = yaml.safe_load(serve_file(given, "127.0.0.1", 8000))["applications"]
    assert ServedModel.model_validate(model["args"]) == given.models[0]
    assert model["args"]["tool_parser"] == "hermes"
    assert gateway["args"]["adapters"] == {"org/poems": "fused"}


REFUSED = {
    "arguments": ({"template_arguments": ["enable_thinking"]}, "--template-arguments enable_thinking: write a mapping"),
    "an argument of the server": ({"template_arguments": ["{tools: 1}"]}, "template_arguments: 'tools' cannot be set"),
    "an adapter": ({"adapters": ["poems"]}, "--lora poems: write NAME=FOLDER"),
    "an adapter's name": ({"adapters": ["two words=/a"]}, "adapters"),
    "a name given twice": ({"adapters": ["target=fused=/a"]}, "two models are named 'fused'"),
    "no template": ({"chat_template": ["/nowhere.jinja"]}, "neither a Jinja source nor a file: No such file"),
    "a faulty template": ({"chat_template": ["{% if %}"]}, "chat_template: line 1"),
}


@pytest.mark.parametrize(("given", "words"), REFUSED.values(), ids=REFUSED)
def test_an_invalid_value_is_refused_in_one_line(given, words):
    with pytest.raises(UserError) as caught:
        with_model_settings(config("fused", "target"), given)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", ["reasoning_parser", "tool_parser", "quantization"])
def test_a_name_that_vllm_does_not_know_is_refused_with_the_known_ones(setting):
    with pytest.raises(UserError, match=f"serve: m: {setting}: 'nothing' is not known to vLLM; there are: ") as caught:
        check_known(ServedModel(name="m", model="/gone", **{setting: "nothing"}))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def hybrid(tmp_path_factory):
    """Returns the folder of a model with Qwen3's template."""
    folder = tiny.neox(tmp_path_factory.mktemp("models") / "hybrid")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<think>", "</think>"])
    tokenizer.chat_template = FAMILIES["qwen 3"].text
    tokenizer.save_pretrained(folder)
    return folder


def test_parsers_are_chosen_reported_and_passed_to_vllm(hybrid):
    given = ServeConfig(models=(ServedModel(name="m", model=hybrid, template_arguments={"enable_thinking": False}),))
    found, lines = resolve_serving(given)
    assert lines == [
        "m: reasoning parser: qwen3 (by its chat template); tool parser: hermes (by its chat template)",
    ]
    flags = vllm_flags(found.models[0], hybrid, "float32", on_gpu=False)
    pairs = dict(zip(flags, [*flags[1:], ""], strict=True))
    assert (pairs["--reasoning-parser"], pairs["--tool-call-parser"]) == ("qwen3", "hermes")
    assert json.loads(pairs["--default-chat-template-kwargs"]) == {"enable_thinking": False}
    assert "--enable-auto-tool-choice" in flags
    assert resolve_serving(found)[0] == found
    none = found.models[0].model_copy(update={"reasoning_parser": "none", "tool_parser": "none"})
    flags = vllm_flags(resolve_serving(ServeConfig(models=(none,)))[0].models[0], hybrid, "float32", on_gpu=False)
    assert not {"--reasoning-parser", "--tool-call-parser", "--enable-auto-tool-choice"} & set(flags)


def test_a_template_of_the_settings_decides_instead_of_the_tokenizers(hybrid):
    model = ServedModel(name="m", model=hybrid, chat_template=tiny.CHATML)
    found = resolve_serving(ServeConfig(models=(model,)))[0].models[0]
    assert (found.reasoning_parser, found.tool_parser) == ("none", "none")


STORED = {
    "weights that are not quantized": ({}, "awq", "awq reads weights that were quantized with it"),
    "another method": (
        {"quant_method": "gptq", "bits": 4},
        "awq",
        "quantized with gptq, 4 bits, not with awq; leave it out",
    ),
    "the same in another form": ({"quant_method": "awq", "bits": 4}, "awq_marlin", None),
    "quantized when loaded": ({}, "fp8", None),
}


@pytest.mark.parametrize(("stored", "method", "words"), STORED.values(), ids=STORED)
def test_quantization_fits_the_stored_weights(hybrid, tmp_path, stored, method, words):
    folder = shutil.copytree(hybrid, tmp_path / "m")
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | ({"quantization_config": stored} if stored else {})))
    given = ServeConfig(models=(ServedModel(name="m", model=str(folder), quantization=method),))
    if words is None:
        assert resolve_serving(given)[0].models[0].quantization == method
        return
    with pytest.raises(UserError) as caught:
        resolve_serving(given)
    assert words in str(caught.value)
