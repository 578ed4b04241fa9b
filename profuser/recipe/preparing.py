"""The recipe section of the corpus."""

from typing import Literal

from pydantic import Field, model_validator

from profuser.config import Config, Name, later_field


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
    tests: str | None = later_field(None)
    """Field of the tests of an answer's code, for `kind: code_tests`: Python code with asserts, or a list of such texts (MBPP's
    `test_list`). A record may lack it, but not all of them."""
    entry_point: str | None = later_field(None)
    """Field of the name of the tested function: `tests` then define `check`, which is called with it (HumanEval's `test`)."""
    json_schema: str | None = later_field(None)
    """Field of the JSON schema of an answer, for `kind: json_schema`: an object, or its text. A record may lack it, but not all of
    them."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a corpus row that these fields add."""
        return tuple(name for name in ("tests", "json_schema") if getattr(self, name))

    @model_validator(mode="after")
    def _entry_point_of_tests(self) -> "FieldsConfig":
        if self.entry_point and not self.tests:
            raise ValueError("entry_point names the function that `tests` check; set tests too")
        return self


class RowsConfig(Config):
    """Records that give rows: where they are stored and what they look like."""

    path: str | None = None
    """File, folder, glob, URI (`s3://`) or Hub dataset (`hub:owner/name[:split]`); `lab://...` is a file of the laboratory."""
    format: Literal["auto", "alpaca", "qa", "messages", "sharegpt", "preference", "oasst"] = "auto"
    """Shape of the records; `auto` uses that of the first usable one of each file."""
    fields: FieldsConfig | None = later_field(None)
    """Fields of records of any other shape; instead of `format`."""
    turns: Literal["all", "last"] = later_field("last")
    """Assistant turns of a conversation that are learnt, each with the turns before it as its prompt: all of them, or the last."""
    category_field: str | None = None
    """Field of the records (a skill, a topic) by which results are broken down. A record may lack it, but not all of them."""

    @property
    def setting(self) -> str:
        """Key of this section in the recipe."""
        return "corpus"

    @property
    def category_path(self) -> str | None:
        """Field of the category, or the dotted path to it."""
        return self.fields.category if self.fields and self.fields.category else self.category_field

    @property
    def optional_fields(self) -> dict[str, str]:
        """Fields that a record may lack, but not all of them, by the setting that names them."""
        named = {f"{self.setting}.category_field": self.category_field}
        if self.fields:
            names = ("context", "system", "category", "tests", "entry_point", "json_schema")
            named |= {f"{self.setting}.fields.{name}": getattr(self.fields, name) for name in names}
        return {setting: path for setting, path in named.items() if path is not None}

    @model_validator(mode="after")
    def _one_shape(self) -> "RowsConfig":
        own = self.setting
        if self.fields and self.format != "auto":
            raise ValueError(f"{own}.format and {own}.fields both say what the records look like; remove one")
        if self.fields and self.fields.category and self.category_field:
            raise ValueError(f"{own}.category_field and {own}.fields.category name the same thing; remove one")
        return self


class PartConfig(RowsConfig):
    """One part of a mix: some records, and how many of their rows are used."""

    path: str  # type: ignore[assignment]  (required here)
    """File, folder, glob, URI (`s3://`) or Hub dataset (`hub:owner/name[:split]`); `lab://...` is a file of the laboratory."""
    name: Name
    """Name of the part, and the category of its rows that have none."""
    share: float | None = Field(default=None, gt=0, le=1)
    """Share of the part's usable rows that is used, drawn at random with the recipe's seed; by default all."""
    max_rows: int | None = Field(default=None, gt=0)
    """Number of the part's usable rows that is used, at most, drawn at random with the recipe's seed; instead of `share`."""

    @property
    def setting(self) -> str:
        """Key of this section in the recipe."""
        return f"corpus.parts.{self.name}"

    def num_used(self, num_rows: int) -> int:
        """Returns how many of the part's usable rows are used, at least one."""
        if self.share is not None:
            return max(1, round(self.share * num_rows))
        return min(num_rows, self.max_rows or num_rows)

    @model_validator(mode="after")
    def _one_limit(self) -> "PartConfig":
        if self.share is not None and self.max_rows is not None:
            raise ValueError(f"{self.setting}.share and {self.setting}.max_rows both limit the rows; remove one")
        return self


class CorpusConfig(RowsConfig):
    """The instruction corpus with ground-truth responses: `path`, or a mix of `parts`."""

    max_rows: int | None = Field(default=None, gt=0)
    """Number of usable rows to read, at most."""
    heldout: str | None = None
    """Separate corpus to evaluate on, in the same shapes as `path`."""
    heldout_rows: int = Field(default=200, ge=0)
    """Without `heldout`: number of rows of the corpus held out for evaluation. With it: number of rows read, at most."""
    rows_per_shard: int = Field(default=256, gt=0)
    """Rows in a shard, the unit of work, retry and resume."""
    max_row_bytes: int = Field(default=1_000_000, gt=0)
    """Size above which a row is quarantined; its tests and schema count."""
    max_quarantined_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of quarantined rows above which the run stops."""
    parts: tuple[PartConfig, ...] = later_field(())
    """Parts of a mix, instead of `path`. Then `format`, `fields`, `turns` and `category_field` describe only `heldout`."""
    decontaminate: bool = later_field(False)
    """Whether training rows are dropped that share 13 words in a row with a question of `evaluate.benchmarks` or with a held-out
    row. Words are compared in lower case and without punctuation; what more than 10 prompts share is a common phrase (GPT-3,
    arXiv 2005.14165, appendix C)."""

    @property
    def sources(self) -> tuple[RowsConfig, ...]:
        """The parts; a corpus without parts is its own only one."""
        return self.parts or (self,)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that the rows have for verifiers, in addition to those of every corpus."""
        named = [source.fields.columns for source in (self, *self.parts) if source.fields]
        return tuple(sorted({name for names in named for name in names}))

    @property
    def by_first_question(self) -> bool:
        """Whether rows count as having one prompt if their conversations begin with the same question."""
        return any(source.turns == "all" for source in (self, *self.parts))

    @model_validator(mode="after")
    def _path_or_parts(self) -> "CorpusConfig":
        if self.path is None and not self.parts:
            raise ValueError("corpus.path: is required, or corpus.parts")
        if self.parts:
            names = [part.name for part in self.parts]
            if twice := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"corpus.parts: the name {twice[0]!r} is used twice")
            for name in ("path", "max_rows", *(() if self.heldout else tuple(RowsConfig.model_fields))):
                if getattr(self, name) != type(self).model_fields[name].default:
                    raise ValueError(
                        f"corpus.{name} does not apply to corpus.parts; set it in each part, and leave it out here"
                    )
        return self
