"""The recipe section of a generative judge: a language model that grades answers by a rubric, or compares two of them."""

from typing import Annotated, Literal

import jinja2
from jinja2 import meta
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import AfterValidator, Field, model_validator

from profuser.config import Config
from profuser.recipe.judging import JudgeBase
from profuser.recipe.sources import ServedModelConfig
from profuser.recipe.template import OwnTemplate, TemplateConfig

RESPONSES = {"pointwise": ("response",), "pairwise": ("response_a", "response_b")}
"""Variables of a rubric that hold what is judged, by mode."""
VARIABLES = ("prompt", "messages", "reference", "category", "grades")
"""Other variables of a rubric."""
REPLY_TOKENS, THINKING_TOKENS = 16, 2048
"""Longest reply by default: of a judge that answers at once, and of one that thinks first."""
ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
"""Renders rubrics. Line breaks are trimmed as in Transformers' chat templates."""


def _valid_template(text: str) -> str:
    try:
        names = meta.find_undeclared_variables(ENVIRONMENT.parse(text))
    except jinja2.TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno}: {error.message}") from None
    known = (*VARIABLES, *(name for names in RESPONSES.values() for name in names))
    if unknown := sorted(names - {*known, *ENVIRONMENT.globals}):
        raise ValueError(f"a rubric has no variable {unknown[0]!r}; it has {', '.join(known)}")
    return text


RubricText = Annotated[str, Field(min_length=1), AfterValidator(_valid_template)]
Grade = Annotated[int, Field(ge=0, le=9)]


class RubricConfig(Config):
    """Instructions of a judge, as sandboxed Jinja templates.

    Their variables: `prompt` (the conversation as text), `messages` (its turns, with `role` and `content`), `reference` (the ground
    truth without thinking), `category`, and what is judged: `response` and `grades`, or in pairwise mode `response_a` and
    `response_b`.
    """

    prompt: RubricText
    """User turn. It must ask for the verdict alone: one of the grades, or the letter A or B."""
    system: RubricText | None = None
    """System turn, for models whose chat template has one; by default none."""

    @property
    def variables(self) -> set[str]:
        """Names of the variables that it shows."""
        return meta.find_undeclared_variables(ENVIRONMENT.parse(f"{self.system or ''}{self.prompt}"))


class LlmJudgeConfig(JudgeBase, ServedModelConfig):
    """A language model that judges by a rubric. It reads its verdict from the probabilities of its reply's tokens."""

    kind: Literal["llm_judge"]
    mode: Literal["pointwise", "pairwise"] = "pointwise"
    """`pointwise`: each answer gets the expected value of its grade. `pairwise`: every two answers to a row are compared in both
    orders; an answer's score is its mean probability of being preferred to the others."""
    rubric: Literal["helpfulness", "correctness"] | RubricConfig = "helpfulness"
    """Instructions: a shipped rubric, both against the ground truth as reference, or your own. The text is part of the run's
    identity."""
    grades: tuple[Grade, ...] = Field(default=(1, 2, 3, 4, 5), min_length=2)
    """Grades of pointwise mode, worst first. Each is one digit, so that one token decides: for ten of them `[0, 1, 2, 3, 4, 5,
    6, 7, 8, 9]`."""
    tie_margin: float = Field(default=0.05, ge=0, lt=0.5)
    """A pair is a tie if the probability that the first is preferred, averaged over both orders, is within this of 0.5; or if the
    two orders prefer different answers, each by more than this."""
    max_tokens: int | None = Field(default=None, gt=0)
    """Longest reply in tokens: by default 16, and 2,048 with `template.thinking: strip`. A reply that is cut inside its thinking is
    no verdict; an endpoint whose model thinks needs more than 16."""
    template: TemplateConfig = OwnTemplate(thinking="off")
    """Template of its conversations; by default its own, asked not to think. Not for an endpoint, whose server renders them."""

    @property
    def num_devices(self) -> int:
        """GPUs that one actor needs; an endpoint needs none."""
        return 0 if self.endpoint else self.engine.num_devices

    @property
    def section(self) -> str:
        """Key of its section in the recipe."""
        return f"rewards.{self.name}"

    @property
    def reply_tokens(self) -> int:
        """Longest reply, in tokens."""
        thinks = self.endpoint is None and self.template.thinking == "strip"
        return self.max_tokens or (THINKING_TOKENS if thinks else REPLY_TOKENS)

    @property
    def verdicts(self) -> tuple[str, ...]:
        """Texts of the possible verdicts, the worst first; `A` prefers the answer that is shown first."""
        return tuple(map(str, self.grades)) if self.mode == "pointwise" else ("A", "B")

    def num_replies(self, num_answers: int) -> int:
        """Returns the number of replies that so many different answers to a row need."""
        return num_answers if self.mode == "pointwise" else num_answers * (num_answers - 1)

    @model_validator(mode="after")
    def _fits_its_mode(self) -> "LlmJudgeConfig":
        if list(self.grades) != sorted(set(self.grades)):
            raise ValueError("grades must rise: the worst first, each once")
        # Not `model_fields_set`: a stored recipe has every field.
        if self.mode == "pairwise" and self.grades != type(self).model_fields["grades"].default:
            raise ValueError("grades are for mode: pointwise; a pair is compared by the letters A and B")
        if isinstance(self.rubric, RubricConfig):
            shown = self.rubric.variables
            for name in RESPONSES[self.mode]:
                if name not in shown:
                    raise ValueError(f"rubric.prompt does not show {name!r}, which mode: {self.mode} judges")
            others = {name for names in RESPONSES.values() for name in names} - {*RESPONSES[self.mode]}
            if wrong := sorted(shown & others):
                raise ValueError(f"rubric: mode: {self.mode} has no {wrong[0]!r}")
        return self

    @model_validator(mode="after")
    def _fits_its_place(self) -> "LlmJudgeConfig":
        if self.template.thinking == "keep":
            raise ValueError("template.thinking: a judge's thinking is never part of its verdict; use strip or off")
        if self.endpoint and self.endpoint.tokenizer:
            raise ValueError("endpoint.tokenizer: a judge reads the texts of the server's tokens; leave it out")
        if self.endpoint and self.template != type(self).model_fields["template"].default:
            raise ValueError(
                "template: the endpoint's server renders the prompts; arguments of its template go into endpoint.options"
            )
        return self
