"""Implements `profuser lab build`: builds a laboratory from the six skills or from an instruction corpus."""

from pathlib import Path

from profuser.corpus import CorpusRow, RowCounts, check_quarantine, prepare_rows, read_corpus, unused_line
from profuser.errors import UserError
from profuser.lab.build import build_lab, build_sources_from_corpus
from ray_jobs.runtime.progress import print_line


def build(output: Path, corpus: str | None, seed: int, skip_rows: int, overwrite: bool) -> None:
    """Builds a laboratory in a folder and prints how to use it."""

    def log(text: str) -> None:
        print_line(text)

    if corpus is None:
        if skip_rows:
            raise UserError("--skip-rows: needs --corpus")
        build_lab(output, seed=seed, overwrite=overwrite, progress=log)
    else:
        build_sources_from_corpus(
            read_prompts_and_responses(corpus, skip_rows), output, seed=seed, overwrite=overwrite, progress=log
        )
    log(f"laboratory: {output}; use it with profuser run RECIPE --set lab={output}")


def read_prompts_and_responses(location: str, skip_rows: int) -> list[tuple[str, str]]:
    """Returns prompt and response of a corpus's usable rows after the skipped ones; a prompt's turns are joined by blank lines."""
    summary, rows = RowCounts(), []
    for row in prepare_rows(read_corpus(location)):
        summary.add(row)
        if isinstance(row, CorpusRow):
            rows.append(row)
    check_quarantine(location, summary, 1.0)
    if line := unused_line(summary.not_used()):
        print_line(line)
    return [("\n\n".join(message.content for message in row.messages), row.response) for row in rows[skip_rows:]]
