"""A small recipe for tests of the command line."""

import yaml


def write_recipe(tmp_path, model):
    """Writes a recipe of two sources and its corpus of 30 rows; returns the recipe's path."""
    corpus = tmp_path / "data.jsonl"
    corpus.write_text("".join(f'{{"question": "What is {n}?", "answer": "It is {n}."}}\n' for n in range(30)))
    content = {
        "name": "small",
        "storage": str(tmp_path / "runs"),
        "corpus": {"path": str(corpus), "heldout_rows": 10},
        "sources": [{"name": "a", "model": model}, {"name": "b", "model": model}],
        "target": {"model": model},
        "rewards": [{"kind": "answer_match", "name": "match", "pattern": "is (.+)"}],
        "fuse": {"batch_tokens": 64},
    }
    file = tmp_path / "small.yaml"
    file.write_text(yaml.safe_dump(content))
    return str(file)
