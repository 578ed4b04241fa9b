"""The recipe section of chat templates: whose template renders prompts, its arguments, its date, and what becomes of thinking."""

from datetime import date
from typing import Annotated, Any, ClassVar, Literal

import jinja2
import jinja2.ext
from jinja2.nodes import Scope
from pydantic import AfterValidator, BeforeValidator, Field, field_validator

from profuser.config import Config, later_field

RESERVED = {"messages", "tools", "documents", "add_generation_prompt", "strftime_now", "raise_exception"}
"""Names that Transformers passes to a template."""


class _Generation(jinja2.ext.Extension):
    """Parses `{% generation %}` as Transformers does; there it marks the text of answers, and changes nothing."""

    tags: ClassVar = {"generation"}

    def parse(self, parser: Any) -> Any:
        line = next(parser.stream).lineno
        return Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=line)


JINJA = jinja2.Environment(extensions=[_Generation, jinja2.ext.loopcontrols])
"""Parses chat templates as Transformers does."""


def _valid_date(value: str) -> str:
    return date.fromisoformat(value).isoformat()


IsoDate = Annotated[str, BeforeValidator(lambda value: str(value) if isinstance(value, date) else value)]
"""A date as `2026-11-27`. YAML reads such a value as a date."""
Argument = bool | int | float | str


class _Template(Config):
    """Settings of every kind of template."""

    arguments: dict[str, Argument] = later_field({})
    """Variables of the template by name, e.g. `{enable_thinking: false}` or `{reasoning_effort: low}`."""
    thinking: Annotated[
        # YAML reads a bare `off` as false.
        Literal["off", "strip", "keep"], BeforeValidator(lambda value: "off" if value is False else value)
    ] = later_field("strip")
    """Thinking of a reasoning model (`<think> ... </think>` and the like). `strip`: it thinks, and its answer is what follows;
    `keep`: its thinking is learnt with the answer, and judges see the answer alone; `off`: it is asked to answer at once. A ground
    truth never follows thinking that is still open."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = later_field(())
    """Texts that end an answer, e.g. `["\\nQuestion:"]` for a base model, which does not end its turn: its answer is what precedes
    them."""
    date: Annotated[IsoDate, AfterValidator(_valid_date)] | None = later_field(None)
    """Date that templates write (`strftime_now`); by default the day on which the run began."""

    @field_validator("arguments")
    @classmethod
    def _names_are_free(cls, value: dict[str, Argument]) -> dict[str, Argument]:
        for name in value:
            if not name.isidentifier() or name in RESERVED:
                raise ValueError(f"{name!r} cannot be set: it is no name of a variable, or it is the run's own")
        return value


class OwnTemplate(_Template):
    """Each model's own chat template."""

    kind: Literal["own"] = "own"


class JinjaTemplate(_Template):
    """One template for all models, as in FuseChat."""

    kind: Literal["jinja"]
    text: str
    """Jinja source as in a model's `chat_template.jinja`, rendered as Transformers renders it."""

    @field_validator("text")
    @classmethod
    def _text_is_jinja(cls, text: str) -> str:
        try:
            JINJA.parse(text)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"line {error.lineno}: {error.message}") from None
        return text


TemplateConfig = Annotated[OwnTemplate | JinjaTemplate, Field(discriminator="kind")]
