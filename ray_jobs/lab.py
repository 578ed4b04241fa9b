"""`profuser lab build`: makes a laboratory from the six skills, or from any instruction corpus."""

from pathlib import Path

from profuser.lab.build import build_lab, build_sources_from_corpus

from ray_jobs.progress import console


def build(output: Path, corpus: str | None, seed: int, num_rows: int | None, overwrite: bool) -> None:
    """Builds into a folder and says how to use it."""

    def say(text: str) -> None:
        console.print(text, markup=False)

    if corpus is None:
        build_lab(output, seed=seed, overwrite=overwrite, progress=say)
    else:
        build_sources_from_corpus(read_pairs(corpus, num_rows), output, seed=seed, overwrite=overwrite, progress=say)
    say(f"laboratory: {output}; use it with profuser run RECIPE --set lab={output}")
