"""The shipped rubrics of generative judges, one record each, and the rendering of rubrics.

To add a rubric, add a record here and its name to `LlmJudgeConfig.rubric`.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import jinja2

from profuser.corpus.thinking import without_thinking
from profuser.corpus.turns import Message
from profuser.errors import UserError, one_line
from profuser.recipe.llm_judge import ENVIRONMENT, RESPONSES, LlmJudgeConfig, RubricConfig

_CONTEXT = """[Conversation]
{{ prompt }}
[End of conversation]

[Reference response]
{{ reference }}
[End of reference response]

"""
_ONE = """[Response]
{{ response }}
[End of response]

"""
_TWO = """[Response A]
{{ response_a }}
[End of response A]

[Response B]
{{ response_b }}
[End of response B]

"""
_GRADE = (
    "Grade the response from {{ grades | first }} (worst) to {{ grades | last }} (best). Reply with one digit alone."
)
_LETTER = "Which response is better? Reply with one letter alone: A or B."
_HELPFULNESS = (
    "Judge helpfulness: whether a response does what the user asks, is correct and complete, and is clear. The reference is one "
    "good response; another can be as good without resembling it. Length is no merit.\n"
)
_CORRECTNESS = (
    "Judge correctness alone: whether a response comes to the same result as the reference, which is correct, and whether what it "
    "states on the way is true. Style, completeness of the explanation and length do not count.\n"
)


def _by_mode(about: str) -> dict[str, RubricConfig]:
    return {
        "pointwise": RubricConfig(
            prompt=f"You judge an assistant's response to a user.\n\n{_CONTEXT}{_ONE}{about}{_GRADE}"
        ),
        "pairwise": RubricConfig(
            prompt=f"You compare two assistants' responses to a user.\n\n{_CONTEXT}{_TWO}{about}{_LETTER}"
        ),
    }


RUBRICS: dict[str, dict[str, RubricConfig]] = {
    "helpfulness": _by_mode(_HELPFULNESS),
    "correctness": _by_mode(_CORRECTNESS),
}
"""Shipped rubrics by name and mode."""
PROBE = {
    "row_id": "probe",
    "messages": [{"role": "user", "content": "question"}],
    "response": "reference",
    "category": None,
}
"""Row on which rubrics are tried before a run."""


def rubric_of(config: LlmJudgeConfig) -> RubricConfig:
    """Returns a judge's instructions: its own, or the shipped ones that it names."""
    return config.rubric if isinstance(config.rubric, RubricConfig) else RUBRICS[config.rubric][config.mode]


def with_rubric(config: LlmJudgeConfig) -> LlmJudgeConfig:
    """Returns a judge with the text of its rubric, which is part of the run's identity."""
    return config.model_copy(update={"rubric": rubric_of(config)})


def conversation(config: LlmJudgeConfig, row: Mapping[str, Any], responses: Sequence[str]) -> tuple[Message, ...]:
    """Renders what a judge is asked.

    Args:
        config: the judge.
        row: a corpus row.
        responses: the answer; in pairwise mode two, in the order in which they are shown.

    Raises:
        UserError: the rubric cannot be rendered.
    """
    turns = row["messages"]
    variables: dict[str, Any] = {
        "prompt": turns[0]["content"]
        if len(turns) == 1
        else "\n\n".join(f"{t['role']}: {t['content']}" for t in turns),
        "messages": turns,
        "reference": without_thinking(row["response"]),
        "category": row.get("category"),
        "grades": config.grades,
        **dict(zip(RESPONSES[config.mode], responses, strict=True)),
    }
    rubric = rubric_of(config)
    texts = {"system": rubric.system, "user": rubric.prompt}
    try:
        return tuple(Message(role, _template(text).render(variables)) for role, text in texts.items() if text)
    except (jinja2.TemplateError, TypeError, ValueError, LookupError, OverflowError) as error:
        key = f"{config.section}.rubric"
        raise UserError(
            f"{key}: row {row['row_id']} cannot be rendered: {one_line(error)}; correct the template"
        ) from None


@lru_cache(maxsize=16)
def _template(text: str) -> jinja2.Template:
    return ENVIRONMENT.from_string(text)


def check_rubric(config: LlmJudgeConfig) -> None:
    """Raises UserError if the rubric cannot be rendered."""
    conversation(config, PROBE, ["answer"] * len(RESPONSES[config.mode]))
