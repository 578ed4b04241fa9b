"""A run's tokenizers: the bytes of their tokens, and a projection from each source's vocabulary to the target's."""

from dataclasses import dataclass
from typing import Any

from profuser.alignment.token_bytes import TokenBytes
from profuser.alignment.vocab_projection import VocabProjection
from profuser.corpus.turn_ends import turn_ends
from profuser.errors import AlignmentError, UserError, one_line
from profuser.recipe.models import ModelConfig
from profuser.run.fusion_run import FusionRun
from profuser.selection.examples import Target


@dataclass(frozen=True)
class TokenizerPairs:
    """The target's tokenizer, and one projection per source, in source order."""

    target: Target
    projections: tuple[VocabProjection, ...]


def read_tokenizer_pairs(run: FusionRun) -> TokenizerPairs:
    """Reads all tokenizers and projects the vocabularies; takes some seconds for large ones.

    Raises:
        UserError: a tokenizer does not exist or cannot be expressed in bytes; the message names the recipe's key.
    """
    target, recipe = read_target(run), run.recipe
    how = (recipe.select.vocab_fallback, recipe.select.map_specials)
    return TokenizerPairs(
        target, tuple(VocabProjection.build(table, target.tokens, *how) for table in read_tokens(run))
    )


def read_target(run: FusionRun) -> Target:
    """Reads the target's tokenizer; raises UserError as in `read_tokenizer_pairs`."""
    return Target(*_read(run, "target.model", run.recipe.target), run.template(run.recipe.target))


def read_tokens(run: FusionRun) -> list[TokenBytes]:
    """Returns the bytes of each source's tokens; raises UserError as in `read_tokenizer_pairs`."""
    return [_read(run, source.setting, source)[1] for source in run.recipe.sources]


def _read(run: FusionRun, setting: str, config: ModelConfig) -> tuple[Any, TokenBytes]:
    from transformers import AutoTokenizer

    path = run.model(config).path
    options: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.engine.trust_remote_code}
    try:
        folder = run.model(config).local(weights=False, setting=setting)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        ends = turn_ends(tokenizer, run.template(config), folder, config.revision)
        return tokenizer, TokenBytes.from_tokenizer(tokenizer, run.vocab_size(setting), ends)
    except AlignmentError as error:
        raise UserError(f"{setting}: {path}: {error}; it cannot be used in this fusion") from None
    except (OSError, ValueError) as error:
        text = one_line(error)
        raise UserError(f"{setting}: the tokenizer of {path} cannot be read: {text}") from None
