"""Recognises files that are not a corpus by their first bytes, and describes how to convert them."""

BOM = b"\xef\xbb\xbf"
WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
BEGINNINGS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the data; run git lfs pull"),
    (b"<", "is HTML or XML, perhaps the error page of a download; fetch the file again"),
    (b"PK\x03\x04", "is a zip archive or an Excel file; extract it, or export it as JSONL"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive; extract it"),
    (b"\x28\xb5\x2f\xfd", "is compressed twice; decompress it once"),
    (b"\xfd7zXZ\x00", "is compressed with xz; decompress it, or use gzip"),
    (b"BZh", "is compressed twice; decompress it once"),
    (b"\x1f\x8b", "is a gzip inside a gzip; decompress it once"),
    (b"PAR1", "is a Parquet file inside a gzip; decompress it"),
    (b"ARROW1", "is an Arrow file; write it as Parquet"),
    (b"SQLite format 3", "is an SQLite database; export it as JSONL"),
    (b"%PDF", "is a PDF; export its text as JSONL"),
    (b"\x00", "begins with NUL bytes, like an interrupted copy; fetch the file again"),
)


def known_kind(head: bytes) -> str | None:
    """Returns the kind of a file that is not text in UTF-8, as a phrase to follow the file's name; None if it may be.

    Args:
        head: the first bytes, decompressed if the file is compressed.
    """
    is_wide = b"\x00" in head[:2] and head[:8].replace(b"\x00", b"").lstrip()[:1] in (b"{", b"[")
    if is_wide or head.startswith(WIDE_BOMS):
        return "looks like UTF-16 or UTF-32; save it as UTF-8"
    text = head.removeprefix(BOM).lstrip()
    if head[257:262] == b"ustar":
        return "is a tar archive; extract it"
    for beginning, kind in BEGINNINGS:
        if text.startswith(beginning):
            return kind
    return None


def describe_foreign(head: bytes) -> str | None:
    """Returns the kind of a file that is not JSON, see `known_kind`; None if it may be."""
    if kind := known_kind(head):
        return kind
    text = head.removeprefix(BOM).lstrip()
    if text[:1] in (b"", b"{", b"["):
        return None
    found = f"begins with {text[:1]!r}, so it is not a JSON list, JSONL or Parquet file"
    return f"{found}; convert it (YAML, other text) to JSONL, or name it .csv if it is one"
