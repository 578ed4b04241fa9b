"""Checks the chat templates of a run before it starts: what ends a turn, what becomes of thinking, which rows are refused."""

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from profuser.corpus.locations import HUB
from profuser.corpus.prepare import CorpusRow, corpus_rows
from profuser.corpus.readers import read_corpus
from profuser.corpus.rendering import PROBE, Refusal, chat_texts
from profuser.corpus.seen import SeenRows
from profuser.corpus.template import render_conversations, render_prompts
from profuser.corpus.template_text import mentions
from profuser.corpus.thinking import FAMILIES
from profuser.corpus.tool_calls import CALLS, RESULT
from profuser.corpus.tool_turns import probes
from profuser.corpus.turn_ends import turn_ends
from profuser.corpus.turns import Message
from profuser.errors import UserError
from profuser.recipe.models import ModelConfig, SourceConfig
from profuser.recipe.rewards import RewardModelConfig
from profuser.recipe.template import JinjaTemplate, TemplateConfig
from profuser.run.fusion_run import FusionRun
from profuser.run.llm_judges import llm_judge_line

CHECKED_ROWS = 1_000
"""Rows of the corpus whose roles and their order the templates are tried on."""


def template_lines(run: FusionRun) -> Iterator[str]:
    """Yields a line per source, for the target and per judge: its template under the recipe, and the first rows it refuses.

    Raises:
        UserError: a template cannot render a question and its answer.
    """
    rows = [*_rows(run)]
    models = {f"source {source.name}": source for source in run.recipe.sources if not source.lacks_tokenizer}
    models |= {"target": run.recipe.target}
    for name, config in models.items():
        tokenizer, template = _tokenizer(run, config, config.engine.trust_remote_code), run.template(config)
        ends = turn_ends(tokenizer, template, run.model(config).local(weights=False), config.revision)
        text = chat_texts(tokenizer, template).asking
        parts = [f"turns end with {', '.join(tokenizer.convert_ids_to_tokens(ends))}", *_thinking(tokenizer, template)]
        parts += [f"answers end before {', '.join(map(repr, template.stop))}"] if template.stop else []
        unused = [argument for argument in template.arguments if not mentions(_own_text(tokenizer, template), argument)]
        parts += [f"the template does not use {', '.join(unused)}"] if unused else []
        if isinstance(config, SourceConfig) and config.endpoint:
            parts.append("its server renders the prompts of its answers")
        parts += [f"the template writes the date {template.date or 'of the day'}"] if "strftime_now" in text else []
        yield f"{name}: {'; '.join(parts + _refused(tokenizer, template, rows))}"
    for reward in run.recipe.reward_models:
        yield from _judge_line(run, reward, rows)
    for judge in run.recipe.llm_judges:
        yield llm_judge_line(run, judge, rows)


def _rows(run: FusionRun) -> Iterator[CorpusRow]:
    """Yields the first usable rows of the corpus, or of its parts, as far as they can be read at once."""
    config = run.corpus_config
    for source in config.sources:
        if source.path and not source.path.startswith(HUB):
            found = corpus_rows(config, read_corpus(source.path), SeenRows(), source)
            usable = (row for row in found if isinstance(row, CorpusRow))
            yield from islice(usable, CHECKED_ROWS // len(config.sources))


def _tokenizer(run: FusionRun, config: ModelConfig | RewardModelConfig, trust_remote_code: bool) -> Any:
    from transformers import AutoTokenizer

    folder = run.model(config).local(weights=False)
    return AutoTokenizer.from_pretrained(folder, revision=config.revision, trust_remote_code=trust_remote_code)


def _own_text(tokenizer: Any, template: TemplateConfig) -> str:
    return template.text if isinstance(template, JinjaTemplate) else tokenizer.get_chat_template()


def _thinking(tokenizer: Any, template: TemplateConfig) -> list[str]:
    texts = chat_texts(tokenizer, template)
    known = next((f for f in FAMILIES if f.close in _own_text(tokenizer, template)), None)
    if known is None and texts.family is None:
        return []
    if template.thinking == "off":
        return ["it is asked not to think"]
    kept = "learnt with its thinking" if template.thinking == "keep" else "what follows its thinking"
    begins = (
        f"the prompt opens {texts.family.open}" if texts.family else f"it may begin with {(known or FAMILIES[0]).open}"
    )
    return [f"{begins}; its answer is {kept} (template.thinking: {template.thinking})"]


def _refused(tokenizer: Any, template: TemplateConfig, rows: Sequence[CorpusRow]) -> list[str]:
    """Returns a phrase on the rows whose roles or their order a template does not accept."""
    orders = [*dict.fromkeys(_order(row) for row in rows)]
    found = zip(orders, render_prompts(tokenizer, orders, template), strict=True)
    return _phrase({order: each for order, each in found if isinstance(each, Refusal)}, rows)


def _order(row: CorpusRow) -> tuple[Message, ...]:
    """Returns a row's turns without their texts, except that tool calls keep their ids."""
    tools = (CALLS, RESULT)
    return tuple(each if each.role in tools else Message(each.role, PROBE) for each in probes(row.messages))


def _phrase(refusals: dict[tuple[Message, ...], Refusal], rows: Sequence[CorpusRow]) -> list[str]:
    wrong = [(row, refusals[order]) for row, order in ((row, _order(row)) for row in rows) if order in refusals]
    if not wrong:
        return []
    row, refusal = wrong[0]
    return [
        f"its template refuses {len(wrong):,} of the first {len(rows):,} rows, "
        f"e.g. {row.source_file}:{row.source_line}: {refusal.reason}"
    ]


def _judge_line(run: FusionRun, reward: RewardModelConfig, rows: Sequence[CorpusRow]) -> Iterator[str]:
    """Yields a line on a judge whose template refuses rows."""
    tokenizer, template = _tokenizer(run, reward, reward.trust_remote_code), reward.template
    if not (tokenizer.chat_template or isinstance(template, JinjaTemplate)):
        return
    answer = Message("assistant", PROBE)
    (probe,) = render_conversations(tokenizer, [[Message("user", PROBE), answer]], template)
    if isinstance(probe, Refusal):
        raise UserError(f"rewards.{reward.name}: its chat template refuses a question and its answer: {probe.reason}")
    orders = [*dict.fromkeys(_order(row) for row in rows)]
    turns = [[*order, answer] for order in orders]
    found = zip(orders, render_conversations(tokenizer, turns, template), strict=True)
    for phrase in _phrase({order: each for order, each in found if isinstance(each, Refusal)}, rows):
        yield f"judge {reward.name}: {phrase}"
