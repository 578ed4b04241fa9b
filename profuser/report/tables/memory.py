"""Shows the planned device memory of training, as a table for a terminal and in words."""

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from profuser.report.tables.table import new_table
from profuser.training.memory_plan import MOMENTS, PARTS, MemoryPlan, Moment

NAMES: dict[Moment, str] = {
    "forward": "forward pass",
    "loss": "loss",
    "backward": "backward pass",
    "step": "optimizer's step",
}
CAPTION = (
    "Parameters, gradients and optimizer: a device's shard, in float32. Gathered: parameters that are temporarily unsharded. "
    "Loss: a chunk's logits, and the gradient of the output layer. Backward: unsharded gradients, and recomputed activations."
)
LEFT_OUT = "Only tensors are counted: the CUDA context, NCCL and allocator fragmentation take some GiB more."


def memory_table(plan: MemoryPlan, dtype: str) -> Table:
    """Returns each part at the peak of each moment. Columns add up; the largest sum, in bold, is the overall peak.

    Args:
        plan: of the target's training.
        dtype: compute dtype of the parameters, for the title.
    """
    size, unit = _unit(plan.peak_bytes)
    rows, length = plan.micro_batch
    where = "1 device" if plan.world_size == 1 else f"each of {plan.world_size} devices"
    table = new_table(f"fuse: {unit} on {where}, with {rows} x {length:,} tokens at a time, in {dtype}", "part")
    table.caption = CAPTION
    for moment in MOMENTS:
        table.add_column(Text(NAMES[moment].replace(" ", "\n")), justify="right")
    for part in PARTS:
        table.add_row(part, *(f"{plan.moments[moment][part] / size:,.2f}" for moment in MOMENTS))
    table.add_section()
    styles = ("bold" if moment == plan.peak_moment else "" for moment in MOMENTS)
    sums = (f"{plan.total(moment) / size:,.2f}" for moment in MOMENTS)
    table.add_row("all", *(Text(text, style=style) for text, style in zip(sums, styles, strict=True)))
    return table


def memory_words(plan: MemoryPlan, others: Sequence[MemoryPlan]) -> list[str]:
    """Describes the attention, the peak, host memory, and the peak on other numbers of devices; a sentence each."""
    words = [f"{plan.attention[:1].upper()}{plan.attention[1:]}."]
    words.append(f"The peak is {_amount(plan.peak_bytes)} on each device, in the {NAMES[plan.peak_moment]}.")
    if plan.host:
        words.append(f"Each worker also keeps {_amount(sum(plan.host.values()))} in host memory.")
    peaks = [
        f"{_amount(other.peak_bytes)} on {other.world_size}" for other in others if other.world_size != plan.world_size
    ]
    if peaks:
        words.append(f"On other numbers of devices the peak is about {', '.join(peaks)}.")
    return [*words, LEFT_OUT]


def _amount(num_bytes: int) -> str:
    size, unit = _unit(num_bytes)
    return f"{num_bytes / size:,.1f} {unit}"


def _unit(num_bytes: int) -> tuple[int, str]:
    """Returns the size of a suitable unit in bytes, and its name."""
    return (2**30, "GiB") if num_bytes >= 2**30 else (2**20, "MiB")
