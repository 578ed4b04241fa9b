"""Builds twins of the specialists: their skills in the target's architecture and tokenizer, for homogeneous fusion."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from transformers import AutoTokenizer

from profuser.errors import UserError
from profuser.lab.build import SOURCE_STEPS
from profuser.lab.skills import SPECIALTIES, draw_rows
from profuser.lab.specialists import exact_match, new_model, save, skill_examples, train
from profuser.models.lab_paths import LAB_FILE, assets_path

KIND = "llama"


def build_twins(
    output: Path,
    seed: int = 0,
    num_steps: Mapping[str, int] = SOURCE_STEPS,
    num_tested: int = 300,
    progress: Callable[[str], None] = print,
) -> None:
    """Copies the shipped laboratory and adds the sources `llama-mpt` and `llama-neox`.

    Args:
        output: folder to create; the measurements go into its `lab.json`, written last.
        seed: of all random draws.
        num_steps: updates, by the specialist whose twin it is.
        num_tested: held-out rows on which exact match is measured.
        progress: receives progress messages.

    Raises:
        UserError: the folder already contains a finished laboratory.
    """
    if (output / LAB_FILE).exists():
        raise UserError(f"{output}: already contains a laboratory; choose another folder")
    shutil.copytree(assets_path(), output, dirs_exist_ok=True, ignore=shutil.ignore_patterns(LAB_FILE))
    items, matches = draw_rows("heldout", num_tested, seed), {}
    for name in SPECIALTIES:
        if name == KIND:
            continue
        # The shipped tokenizer, so that all three have the same ids.
        tokenizer = AutoTokenizer.from_pretrained(assets_path() / "sources" / KIND)
        torch.manual_seed(seed)
        model = new_model(KIND, tokenizer)
        twin = f"{KIND}-{name}"
        train(model, skill_examples(name, tokenizer, seed), num_steps[name], 64, progress, f"source {twin}")
        matches[twin] = exact_match(model, tokenizer, items)
        progress(f"source {twin}: exact match " + ", ".join(f"{k} {v:.0%}" for k, v in matches[twin].items()))
        save(model, tokenizer, output / "sources" / twin)
    shipped = json.loads((assets_path() / LAB_FILE).read_text())
    shipped["exact_match"] |= matches
    (output / LAB_FILE).write_text(json.dumps(shipped, indent=2) + "\n")
