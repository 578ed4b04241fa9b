"""The rows that were accepted so far, as compactly as duplicates can be found and named."""

from collections.abc import Iterator

LINE_BITS = 40


class SeenRows:
    """Row ids in the order in which they were accepted, each with where it stood: some 120 bytes a row.

    An id is 16 hex digits, which are one 64-bit integer; a place is the number of its file and the line in it, in another.
    """

    def __init__(self):
        self._files: list[str] = []
        self._places: dict[int, int] = {}

    def add(self, row_id: str, file: str, line: int) -> str | None:
        """Keeps a row that is new; of one that is not, gives `FILE:LINE` of the first."""
        if not self._files or self._files[-1] != file:
            self._files.append(file)
        key = int(row_id, 16)
        if key in self._places:
            first = self._places[key]
            return f"{self._files[first >> LINE_BITS]}:{first & ((1 << LINE_BITS) - 1)}"
        self._places[key] = (len(self._files) - 1) << LINE_BITS | line
        return None

    def __contains__(self, row_id: object) -> bool:
        return isinstance(row_id, str) and int(row_id, 16) in self._places

    def __len__(self) -> int:
        return len(self._places)

    def __iter__(self) -> Iterator[str]:
        return (f"{row_id:016x}" for row_id in self._places)
