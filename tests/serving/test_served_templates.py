"""A source is served with the template of its recipe: the prompts of a request are those of the collection."""

from transformers import AutoTokenizer
from vllm.entrypoints.openai.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser

from profuser.corpus import Message, render_prompt
from profuser.recipe.loading import parse_recipe
from profuser.run.fusion_run import FusionRun
from ray_jobs.serving.model import vllm_flags
from ray_jobs.serving.models import compared_models
from tests import tiny
from tests.corpus.families import FAMILIES


def test_a_source_is_served_with_the_template_and_arguments_of_its_recipe(tmp_path):
    plain, path = (tiny.neox(tmp_path / name) for name in ("plain", "qwen"))
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = FAMILIES["qwen 3"].text
    tokenizer.save_pretrained(path)
    own = {"kind": "own", "arguments": {"enable_thinking": False}}
    recipe = {
        "name": "one",
        "storage": str(tmp_path),
        "corpus": {"path": "data.jsonl"},
        "sources": [{"name": "plain", "model": plain}, {"name": "qwen", "model": path, "template": own}],
        "target": {"model": plain},
        "rewards": [{"kind": "exact_match", "name": "exact"}],
    }
    run = FusionRun(parse_recipe(recipe, "the test"))
    unchanged, served = compared_models(run, ["plain", "qwen"], [])
    assert unchanged.chat_template is None
    flags = vllm_flags(served, path, "float32", on_gpu=False)
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
    conversation = [{"role": "user", "content": "a"}]
    options = {"chat_template": arguments.chat_template, "add_generation_prompt": True, "return_dict": False}
    found = tokenizer.apply_chat_template(conversation, **options)
    assert found == render_prompt(tokenizer, [Message("user", "a")], run.template(run.recipe.sources[1]))
    assert tokenizer.decode(found).endswith("<think>\n\n</think>\n\n")
