"""Reads the questions of a benchmark, to compare a corpus with them."""

from collections.abc import Iterator

from profuser.evaluation.benchmarks.checks import check_data, local_data
from profuser.recipe.evaluating import BenchmarkConfig

Question = tuple[str, ...]
"""The texts of a question: usually one; two or more where it can be written in several ways."""


def benchmark_questions(config: BenchmarkConfig) -> list[Question]:
    """Returns all questions of the evaluated split, whatever `limit` is: of local files, of the Hub, or of a user's own task.

    Raises:
        UserError: the data cannot be read, with the remedy (see `check_data`).
    """
    if not config.path:
        check_data(config)
    return list(_questions(config))


def _questions(config: BenchmarkConfig) -> Iterator[Question]:
    preset, pack = config.preset, local_data(config)
    if preset and pack:
        for splits in pack.tables.values():
            yield from map(preset.question, splits[preset.evaluated].to_pylist())
        return
    # The harness takes seconds to import.
    from profuser.evaluation.benchmarks.tasks import load_benchmark

    for task in load_benchmark(config, pack).tasks.values():
        if preset:
            yield from map(preset.question, task.dataset[preset.evaluated])
        else:
            for doc in task.eval_docs:
                text = task.doc_to_text(doc)
                # A task that completes choices gives the number of one, and each choice begins with the question.
                yield (text,) if isinstance(text, str) else tuple(map(str, task.doc_to_choice(doc)))
