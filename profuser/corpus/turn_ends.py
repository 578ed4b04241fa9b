"""Finds the tokens that end a model's turn: those that its template, its tokenizer and its generation config name."""

from typing import Any

from profuser.corpus.template import end_token_id
from profuser.recipe.template import TemplateConfig


def turn_ends(tokenizer: Any, template: TemplateConfig, path: str, revision: str | None) -> list[int]:
    """Returns every token with which a model ends its turn, the template's first.

    Args:
        tokenizer: the model's tokenizer.
        template: the template of its prompts.
        path: folder or Hub name of the model.
        revision: revision of a Hub model.

    Raises:
        UserError: as `end_token_id`.
    """
    named = [end_token_id(tokenizer, template), tokenizer.eos_token_id, *_generation_ends(path, revision)]
    return list(dict.fromkeys(i for i in named if isinstance(i, int) and 0 <= i < len(tokenizer)))


def _generation_ends(path: str, revision: str | None) -> list[int]:
    """Returns the ids at which the model's generation config stops; without such a file, those of its config."""
    from transformers import GenerationConfig

    for name in (None, "config.json"):
        try:
            found = GenerationConfig.from_pretrained(path, name, revision=revision or "main").eos_token_id
        except (OSError, ValueError, TypeError):
            # A folder with a tokenizer alone is a TypeError to Transformers.
            continue
        return found if isinstance(found, list) else [] if found is None else [found]
    return []
