"""Chooses the held-out rows, so that rows of one prompt are on one side of the split."""

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Collection, Sequence

from profuser.corpus.turns import PromptedResponse
from profuser.errors import UserError


def prompt_key(example: PromptedResponse, by_first_question: bool) -> int:
    """Returns 64 bits that are equal for equal prompts, or for all conversations that begin with the same question."""
    roles = [message.role for message in example.messages]
    messages = example.messages[: roles.index("user") + 1] if by_first_question else example.messages
    return int.from_bytes(hashlib.sha256(json.dumps(messages).encode()).digest()[:8])


def check_some_left(num_rows: int, heldout_rows: int) -> None:
    """Raises UserError if all rows would be held out."""
    if heldout_rows >= num_rows:
        raise UserError(
            f"corpus: {num_rows} usable rows, and corpus.heldout_rows={heldout_rows} holds out all of them: none is left "
            "to train on; lower corpus.heldout_rows"
        )


def choose_heldout(
    row_ids: Collection[str], heldout_rows: int, seed: int, prompts: Sequence[int] | None = None
) -> set[str]:
    """Chooses the held-out rows: those with the smallest hash of seed and id, whatever their order in the file.

    Rows of one prompt are held out together: where prompts repeat, a row is passed over if the rows of its prompt are more than
    are left to hold out.

    Args:
        row_ids: ids of all rows.
        heldout_rows: number of rows to hold out.
        seed: another seed gives other rows.
        prompts: keys of the rows' prompts, in the same order; by default no prompt repeats.

    Raises:
        UserError: no row would be left to train on, or the rows of every prompt are too many to hold out.
    """
    check_some_left(len(row_ids), heldout_rows)

    def order(row_id: str) -> bytes:
        return hashlib.sha256(f"{seed}:{row_id}".encode()).digest()

    sizes = Counter(prompts)
    if len(sizes) in (0, len(row_ids)):
        return set(heapq.nsmallest(heldout_rows, row_ids, order))
    chosen: set[int] = set()
    left = heldout_rows
    for _, prompt in sorted((order(row_id), prompt) for row_id, prompt in zip(row_ids, prompts or (), strict=True)):
        if prompt not in chosen and sizes[prompt] <= left:
            chosen.add(prompt)
            left -= sizes[prompt]
    if heldout_rows and not chosen:
        raise UserError(
            f"corpus: every prompt has at least {min(sizes.values())} rows, which are held out together, more than "
            f"corpus.heldout_rows={heldout_rows}; raise corpus.heldout_rows"
        )
    return {row_id for row_id, prompt in zip(row_ids, prompts or (), strict=True) if prompt in chosen}
