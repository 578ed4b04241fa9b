"""The section of a recipe that says on which benchmarks the models are measured. Tasks, prompts and scoring are those of
lm-evaluation-harness."""

import difflib
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from profuser.config import Config, Name, execution_field
from profuser.recipe.benchmarks import LEADERBOARD, PRESETS, Preset


class BenchmarkConfig(Config):
    """A benchmark: one of the six by its name, or a task of your own."""

    name: Name
    """One of the six, or how a task of your own is called in artifacts, tables and plots."""
    task: str | None = execution_field(None)
    """YAML file of a task of your own, as lm-evaluation-harness reads it; on a cluster all nodes must see it and its data. Its
    content, not its place, decides the results."""
    path: str | None = execution_field(None)
    """Folder or JSONL file with the data of one of the six, in the columns of its dataset on the Hub; without it the Hub is asked.
    For `open-llm-leaderboard`, a folder that holds one for each. Its content, not its place, decides the results."""
    num_fewshot: int | None = Field(default=None, ge=0)
    """Worked examples in the prompt; by default the leaderboard's, or what a task of your own says."""
    limit: int | None = Field(default=None, gt=0)
    """Measure the first so many items only; of MMLU so many of each subject."""
    metric: str | None = None
    """Of a task of your own: the headline metric, a mean over items; by default the first in its `metric_list`."""
    apply_chat_template: bool = False
    """Put the prompts into the model's chat template, examples as turns. The leaderboard does not."""
    batch_size: int | None = execution_field(None, gt=0)
    """Prompts that the model gets at one time; by default all to vLLM, which batches by itself, and 8 to Transformers."""

    @property
    def preset(self) -> Preset | None:
        """What is known of one of the six; None for a task of your own."""
        return None if self.task else PRESETS[self.name]

    @property
    def shots(self) -> int | None:
        """Worked examples in the prompt; None: as a task of your own says."""
        return self.num_fewshot if self.num_fewshot is not None or not self.preset else self.preset.num_fewshot

    @model_validator(mode="after")
    def _known(self) -> "BenchmarkConfig":
        if self.task is not None:
            if self.name in PRESETS:
                raise ValueError(f"{self.name!r} is one of the six; call a task of your own otherwise")
            if self.path is not None:
                raise ValueError(
                    f"{self.name}: path is for the six; the file of a task of your own says where its data are"
                )
            return self
        if self.name not in PRESETS:
            near = difflib.get_close_matches(self.name, [*PRESETS, LEADERBOARD], n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join([*PRESETS, LEADERBOARD])}"
            raise ValueError(f"no benchmark {self.name!r}, {hint}; a task of your own needs task: FILE.yaml")
        if self.metric is not None:
            raise ValueError(
                f"{self.name}: the metric of the six is the leaderboard's; metric is for a task of your own"
            )
        return self


def _expanded(value: Any) -> Any:
    """Benchmarks given by name alone as mappings, and `open-llm-leaderboard` as the six that it stands for."""
    out: list[Any] = []
    for entry in [value] if isinstance(value, str) else value if isinstance(value, (list, tuple)) else [value]:
        entry = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(entry, dict) or entry.get("name") != LEADERBOARD:
            out.append(entry)
            continue
        if "task" in entry:
            raise ValueError(f"{LEADERBOARD} has no task of its own")
        path = entry.get("path")
        out += [entry | {"name": name} | ({"path": f"{path}/{name}"} if path else {}) for name in PRESETS]
    return out


Benchmarks = Annotated[tuple[BenchmarkConfig, ...], BeforeValidator(_expanded)]
