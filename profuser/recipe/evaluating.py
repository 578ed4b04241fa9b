"""The recipe section of benchmarks. Tasks, prompts and scoring are those of lm-evaluation-harness."""

import difflib
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from profuser.config import Config, Name, execution_field
from profuser.recipe.benchmarks import LEADERBOARD, PRESETS, Preset


class BenchmarkConfig(Config):
    """A benchmark: one of the six by its name, or a task of your own."""

    name: Name
    """Name of one of the six, or of your own task in artifacts, tables and plots."""
    task: str | None = execution_field(None)
    """YAML file of your own task, in the format of lm-evaluation-harness; on a cluster all nodes must see it and its data. Its
    content, not its path, decides the results."""
    path: str | None = execution_field(None)
    """Folder or JSONL file with the data of one of the six, in the columns of its dataset on the Hub; by default it is downloaded.
    For `open-llm-leaderboard`, a folder with one such folder for each. Its content, not its path, decides the results."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Worked examples in the prompt; by default the leaderboard's number, or your own task's."""
    limit: int | None = Field(default=None, gt=0)
    """Number of items to evaluate, from the first; for MMLU, per subject."""
    metric: str | None = None
    """Headline metric of your own task, a mean over items; by default the first in its `metric_list`."""
    apply_chat_template: bool = False
    """Whether prompts are put into the model's chat template, with examples as turns. The leaderboard does not."""
    batch_size: int | None = execution_field(None, gt=0)
    """Prompts per batch; by default all for vLLM, which batches automatically, and 8 for Transformers."""

    @property
    def preset(self) -> Preset | None:
        """Record of one of the six; None for your own task."""
        return None if self.task else PRESETS[self.name]

    @property
    def shots(self) -> int | None:
        """Worked examples in the prompt; None for the number of your own task."""
        return self.num_fewshot if self.num_fewshot is not None or not self.preset else self.preset.num_fewshot

    @model_validator(mode="after")
    def _known(self) -> "BenchmarkConfig":
        if self.task is not None:
            if self.name in PRESETS:
                raise ValueError(f"{self.name!r} is one of the six; give your own task another name")
            if self.path is not None:
                raise ValueError(f"{self.name}: path is for the six; your own task's file defines where its data is")
            return self
        if self.name not in PRESETS:
            near = difflib.get_close_matches(self.name, [*PRESETS, LEADERBOARD], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join([*PRESETS, LEADERBOARD])}"
            raise ValueError(f"no benchmark {self.name!r}, {hint}; your own task needs task: FILE.yaml")
        if self.metric is not None:
            raise ValueError(f"{self.name}: the metric of the six is the leaderboard's; metric is for your own task")
        return self


def _expanded(value: Any) -> Any:
    """Expands benchmarks given by name into mappings, and `open-llm-leaderboard` into the six."""
    out: list[Any] = []
    for entry in [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]:
        entry = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or entry.get("name") != LEADERBOARD:
            out.append(entry)
            continue
        if "task" in entry:
            raise ValueError(f"{LEADERBOARD} takes no task")
        path = entry.get("path")
        out += [entry | {"name": name} | ({"path": f"{path}/{name}"} if path else {}) for name in PRESETS]
    return out


Benchmarks = Annotated[tuple[BenchmarkConfig, ...], BeforeValidator(_expanded)]
