"""The recipe section of the corpus."""

from typing import Literal

from pydantic import Field, model_validator

from profuser.config import Config, later_field


class FieldsConfig(Config):
    """The fields of records that have no known shape: names, or dotted paths into objects and lists (`data.turns.0.text`)."""

    prompt: str
    """Field of the prompt: text, or a list of turns."""
    response: str
    """Field of the response: text, or a list of turns."""
    context: str | None = None
    """Field of text that follows the prompt after a blank line. A record may lack it, but not all of them."""
    system: str | None = None
    """Field of the system turn. A record may lack it, but not all of them."""
    category: str | None = None
    """Field of the category, as `corpus.category_field`."""


class CorpusConfig(Config):
    """The instruction corpus with ground-truth responses."""

    path: str
    """File, folder, glob, URI (`s3://`) or Hub dataset (`hub:owner/name[:split]`); `lab://...` is a file of the laboratory."""
    format: Literal["auto", "alpaca", "qa", "messages", "sharegpt", "preference", "oasst"] = "auto"
    """Shape of the records; `auto` uses that of the first usable one."""
    fields: FieldsConfig | None = later_field(None)
    """Fields of records of any other shape; instead of `format`."""
    turns: Literal["all", "last"] = later_field("last")
    """Assistant turns of a conversation that are learnt, each with the turns before it as its prompt: all of them, or the last."""
    category_field: str | None = None
    """Field of the records (a skill, a topic) by which results are broken down. A record may lack it, but not all of them."""
    max_rows: int | None = Field(default=None, gt=0)
    """Number of usable rows to read, at most."""
    heldout: str | None = None
    """Separate corpus to evaluate on, in the same shapes as `path`."""
    heldout_rows: int = Field(default=200, ge=0)
    """Without `heldout`: number of rows of the corpus held out for evaluation. With it: number of rows read, at most."""
    rows_per_shard: int = Field(default=256, gt=0)
    """Rows in a shard, the unit of work, retry and resume."""
    max_row_bytes: int = Field(default=1_000_000, gt=0)
    """Size above which a row is quarantined."""
    max_quarantined_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of quarantined rows above which the run stops."""

    @model_validator(mode="after")
    def _consistent(self) -> "CorpusConfig":
        if self.fields and self.format != "auto":
            raise ValueError("corpus.format and corpus.fields both say what the records look like; remove one")
        if self.fields and self.fields.category and self.category_field:
            raise ValueError("corpus.category_field and corpus.fields.category name the same thing; remove one")
        return self

    @property
    def category_path(self) -> str | None:
        """Field of the category, or the dotted path to it."""
        return self.fields.category if self.fields and self.fields.category else self.category_field

    @property
    def optional_fields(self) -> dict[str, str]:
        """Fields that a record may lack, but not all of them, by the setting that names them."""
        named = {"corpus.category_field": self.category_field}
        if self.fields:
            named |= {f"corpus.fields.{name}": getattr(self.fields, name) for name in ("context", "system", "category")}
        return {setting: path for setting, path in named.items() if path is not None}
