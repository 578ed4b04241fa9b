"""The recipe section of benchmarks. Tasks, prompts and scoring are those of lm-evaluation-harness."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from profuser.config import Config, Name, execution_field, later_field
from profuser.recipe.benchmarks import LEADERBOARD, PRESETS, Preset


class BenchmarkConfig(Config):
    """A benchmark: one of the six or another task or group of lm-evaluation-harness, by its name, or a task of your own."""

    name: Name
    """Name of one of the six, or of a task or group of the harness (`ifeval`, `mmlu_pro`, `bbh`); with `task`, the name of your own
    in artifacts, tables and plots."""
    task: str | None = execution_field(None)
    """YAML file of your own task, in the format of lm-evaluation-harness; on a cluster all nodes must see it and its data. Its
    content, not its path, decides the results."""
    path: str | None = execution_field(None)
    """Folder or JSONL file with the data of one of the six, in the columns of its dataset on the Hub; by default it is downloaded.
    For `open-llm-leaderboard`, a folder with one such folder for each; for another task of the harness, a folder with a file per
    split (`test.jsonl`), and for a group one such folder per task. Its content, not its path, decides the results."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Worked examples in the prompt; by default the leaderboard's number, or the task's."""
    limit: int | None = Field(default=None, gt=0)
    """Number of items to evaluate, from the first; for MMLU and other groups, per task."""
    metric: str | None = None
    """Headline metric of a task that is none of the six, a mean over items; by default the first in its `metric_list`."""
    apply_chat_template: bool = False
    """Whether prompts are put into the model's chat template, with examples as turns. The leaderboard does not."""
    system: str | None = later_field(None)
    """System turn before every prompt; needs `apply_chat_template`."""
    allow_code: bool = execution_field(False)
    """Whether a task of the harness that runs the code which models write (`humaneval`, `mbpp`) may do so: in the process that
    measures, without a sandbox."""
    batch_size: int | None = execution_field(None, gt=0)
    """Prompts per batch; by default all for vLLM, which batches automatically, and 8 for Transformers."""

    @property
    def preset(self) -> Preset | None:
        """Record of one of the six; None for any other task."""
        return None if self.task else PRESETS.get(self.name)

    @property
    def shots(self) -> int | None:
        """Worked examples in the prompt; None for the number of the task."""
        return self.num_fewshot if self.num_fewshot is not None or not self.preset else self.preset.num_fewshot

    @model_validator(mode="after")
    def _known(self) -> "BenchmarkConfig":
        if self.task is not None:
            if self.name in PRESETS:
                raise ValueError(f"{self.name!r} is one of the six; give your own task another name")
            if self.path is not None:
                raise ValueError(f"{self.name}: path is not for your own task, whose file defines where its data is")
        elif self.metric is not None and self.preset:
            raise ValueError(f"{self.name}: the metric of the six is the leaderboard's; metric is for other tasks")
        if self.system is not None and not self.apply_chat_template:
            raise ValueError(
                f"{self.name}: a system turn needs the model's chat template; set apply_chat_template: true"
            )
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
