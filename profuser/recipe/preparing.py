"""The recipe section of the corpus."""

from typing import Literal

from pydantic import Field

from profuser.config import Config


class CorpusConfig(Config):
    """The instruction corpus with ground-truth responses."""

    path: str
    """File, folder, glob, URI (`s3://`) or Hub dataset (`hub:owner/name[:split]`); `lab://...` is a file of the laboratory."""
    format: Literal["auto", "alpaca", "qa", "messages", "sharegpt", "preference", "oasst"] = "auto"
    """Shape of the records; `auto` uses that of the first usable one."""
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
