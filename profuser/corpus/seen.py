"""Compact record of the accepted rows, to find duplicates and name their first occurrence."""

from array import array
from collections.abc import Iterator

LINE_BITS = 40


class SeenRows:
    """Row ids in order of acceptance, each with its location: some 130 bytes per row.

    An id of 16 hex digits is stored as one 64-bit integer; the index of its file and the line in it form another.
    """

    def __init__(self):
        self._files: list[str] = []
        self._places: dict[int, int] = {}
        self.prompts = array("Q")
        """Keys of the rows' prompts, in order of acceptance."""

    def add(self, row_id: str, file: str, line: int, prompt: int = 0) -> str | None:
        """Adds a new row and returns None; for a known row, returns `FILE:LINE` of its first occurrence.

        `prompt` is the key of its prompt.
        """
        if not self._files or self._files[-1] != file:
            self._files.append(file)
        key = int(row_id, 16)
        if key in self._places:
            first = self._places[key]
            return f"{self._files[first >> LINE_BITS]}:{first & ((1 << LINE_BITS) - 1)}"
        self._places[key] = (len(self._files) - 1) << LINE_BITS | line
        self.prompts.append(prompt)
        return None

    def __contains__(self, row_id: object) -> bool:
        return isinstance(row_id, str) and int(row_id, 16) in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return (f"{row_id:016x}" for row_id in self._places)
