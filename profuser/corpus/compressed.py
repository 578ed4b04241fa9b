"""Opens compressed files by their first bytes, whatever their name: gzip, bzip2, Zstandard."""

import bz2
import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from profuser.errors import UserError

GZIP, BZIP2, ZSTANDARD = b"\x1f\x8b", b"BZh", b"\x28\xb5\x2f\xfd"
SUFFIXES = ("", ".gz", ".bz2", ".zst")
"""Endings of compressed files, and of those that are not."""


def unpacked(raw: io.BufferedReader) -> io.BufferedIOBase:
    """Returns a file's content, decompressed if its first bytes say so."""
    head = raw.peek(1)
    if head.startswith(GZIP):
        return gzip.GzipFile(fileobj=raw)
    if head.startswith(BZIP2):
        return io.BufferedReader(bz2.BZ2File(raw))  # type: ignore[arg-type]
    if head.startswith(ZSTANDARD):
        return io.BufferedReader(_Zstandard(raw))
    return raw


class _Zstandard(io.RawIOBase):
    """Decompresses Zstandard; like the other formats, a truncated file raises EOFError after its last whole block."""

    def __init__(self, raw: io.BufferedReader):
        import pyarrow as pa

        self._stream = pa.CompressedInputStream(pa.PythonFile(raw, mode="r"), "zstd")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        try:
            data = self._stream.read(len(buffer))
        except OSError as error:
            if "Truncated" in str(error):
                raise EOFError(str(error)) from None
            raise
        buffer[: len(data)] = data
        return len(data)


def first_bytes(stream: io.BufferedIOBase) -> bytes:
    """Returns the first bytes without reading on; none if even they cannot be decompressed."""
    try:
        return stream.peek(1)  # type: ignore[attr-defined]
    except EOFError:
        return b""  # Nothing before the cut: the line reader reports it.


@contextmanager
def naming_damage(label: str) -> Iterator[None]:
    """Turns the errors of a damaged file into a UserError that names it."""
    try:
        yield
    except EOFError:
        raise UserError(f"{label}: truncated; fetch the file again") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{label}: cannot be read: {error}; the gzip is damaged, fetch it again") from None
    except OSError as error:
        raise UserError(f"{label}: cannot be read: {error.strerror or error}") from None
