"""Prints why a model has refused rows and how many of its answers are unreadable, when its stage has finished."""

from profuser.artifacts.artifact import Artifact, Manifest
from profuser.engines.answers import UNREADABLE
from ray_jobs.runtime.progress import print_line

NOTABLE = 0.03
"""Share of unreadable answers from which a stage prints it."""
REMEDIES = {
    "thinking": "raise max_tokens of their generation, or set template.thinking: off",
    "special_token": "check that the template is the model's own",
}


def report_answers(artifact: Artifact, manifest: Manifest, num_answers: float) -> None:
    """Prints a line on refused rows, with an example, one on answers without distributions, and one on unreadable answers if they
    are more than a few per cent.

    Args:
        artifact: a finished artifact with a column `refused`.
        manifest: its manifest.
        num_answers: answers of the model.
    """
    if manifest.counts.get("refused"):
        print_line(f"{artifact.stage}: {_refusals(artifact)}")
    if num_answers and (unscored := manifest.counts.get("unscored_answers")):
        print_line(
            f"{artifact.stage}: {unscored:,.0f} of {num_answers:,.0f} answers have no distributions; where they teach, it is by "
            "cross-entropy alone"
        )
    counts = {reason: manifest.counts.get(f"unreadable/{reason}", 0.0) for reason in UNREADABLE}
    total = sum(counts.values())
    if num_answers and total / num_answers > NOTABLE:
        parts = [f"{count:,.0f} {UNREADABLE[reason]}" for reason, count in counts.items() if count]
        remedy = REMEDIES.get(max(counts, key=lambda reason: counts[reason]))
        print_line(
            f"{artifact.stage}: {total:,.0f} of {num_answers:,.0f} answers ({total / num_answers:.0%}) are no answers: "
            f"{', '.join(parts)}{f'; {remedy}' if remedy else ''}"
        )


def _refusals(artifact: Artifact) -> str:
    reasons = [reason for table in artifact.tables(["refused"]) for reason in table["refused"].to_pylist() if reason]
    return f"{len(reasons):,} rows refused, e.g. {reasons[0]}"
