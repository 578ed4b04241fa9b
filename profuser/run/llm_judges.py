"""Checks the generative judges of a run before it starts: whether the rubric renders, and which rows fit the judge's context."""

from collections.abc import Sequence
from typing import Any

from profuser.corpus.prepare import CorpusRow
from profuser.corpus.rendering import Refusal
from profuser.corpus.template import render_prompts
from profuser.errors import UserError
from profuser.recipe.llm_judge import RESPONSES, LlmJudgeConfig
from profuser.rewards.rubrics import conversation
from profuser.run.fusion_run import FusionRun
from profuser.run.stage_plans import BYTES_PER_TOKEN


def llm_judge_line(run: FusionRun, judge: LlmJudgeConfig, rows: Sequence[CorpusRow]) -> str:
    """Returns a line on what a judge will be asked, tried on some rows with the ground truth in place of the answers.

    Raises:
        UserError: the rubric cannot be rendered, its chat template refuses it, or no row fits the judge's context.
    """
    asked = [conversation(judge, _record(row), [row.response] * len(RESPONSES[judge.mode])) for row in rows]
    name = judge.rubric if isinstance(judge.rubric, str) else "its own rubric"
    line = f"judge {judge.name}: {judge.mode}, {name}"
    if not asked:
        return f"{line}; not tried: no row of the corpus can be read yet"
    if judge.endpoint:
        longest = max(sum(len(message.content.encode()) for message in messages) for messages in asked)
        return f"{line}; the longest of the first {len(rows):,} prompts is of about {longest / BYTES_PER_TOKEN:,.0f} tokens"
    from transformers import AutoConfig, AutoTokenizer

    from profuser.engines.device import context_length

    folder = run.model(judge).local(weights=False)
    options: dict[str, Any] = {"revision": judge.revision, "trust_remote_code": judge.engine.trust_remote_code}
    found = render_prompts(AutoTokenizer.from_pretrained(folder, **options), asked, judge.template)
    refused = [each for each in found if isinstance(each, Refusal)]
    if len(refused) == len(found):
        raise UserError(
            f"{judge.section}: its chat template refuses the rubric: {refused[0].reason}; if it has no system turn, move "
            "rubric.system into rubric.prompt"
        )
    lengths = [len(each) + judge.reply_tokens for each in found if not isinstance(each, Refusal)]
    limit = context_length(AutoConfig.from_pretrained(folder, **options), judge.engine)
    long = sum(length > limit for length in lengths)
    if long == len(lengths):
        raise UserError(
            f"{judge.section}: none of the first {len(rows):,} rows fits its {limit:,} tokens; the shortest takes {min(lengths):,} "
            f"(max_tokens: {judge.reply_tokens:,}): raise engine.max_model_len, shorten the rubric, or use another judge"
        )
    longest = f"the longest of the first {len(rows):,} rows takes {max(lengths):,} of its {limit:,} tokens"
    return f"{line}; with references as answers, {longest}{f'; {long:,} do not fit and get no score' if long else ''}"


def _record(row: CorpusRow) -> dict[str, Any]:
    messages = [message._asdict() for message in row.messages]
    return {"row_id": row.row_id, "messages": messages, "response": row.response, "category": row.category}
