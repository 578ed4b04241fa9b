"""Files that are often taken for a corpus and are none: what they are, told by how they begin, and what to do with them."""

BOM = b"\xef\xbb\xbf"
WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")
BEGINNINGS = (
    (b"version https://git-lfs", "is a Git LFS pointer, not the data; run git lfs pull"),
    (b"<", "is HTML or XML, perhaps the error page of a download; fetch the file again"),
    (b"PK\x03\x04", "is a zip archive or an Excel file; unpack it, or export it as JSONL"),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive; unpack it"),
    (b"\x28\xb5\x2f\xfd", "is packed with Zstandard; unpack it, or pack it with gzip"),
    (b"\xfd7zXZ\x00", "is packed with xz; unpack it, or pack it with gzip"),
    (b"BZh", "is packed with bzip2; unpack it, or pack it with gzip"),
    (b"\x1f\x8b", "is a gzip inside a gzip; unpack it once"),
    (b"PAR1", "is a Parquet file inside a gzip; unpack it"),
    (b"ARROW1", "is an Arrow file; write it as Parquet"),
    (b"SQLite format 3", "is an SQLite database; export it as JSONL"),
    (b"%PDF", "is a PDF; export its text as JSONL"),
    (b"\x00", "begins with NUL bytes, as a copy that was broken off; fetch the file again"),
)


def foreign_kind(head: bytes) -> str | None:
    """What a file is by its first bytes, as the rest of a sentence that begins with its name; None if it may be a corpus.

    Args:
        head: the first bytes, unpacked where the file is a gzip.
    """
    is_wide = b"\x00" in head[:2] and head[:8].replace(b"\x00", b"").lstrip()[:1] in (b"{", b"[")
    if is_wide or head.startswith(WIDE_BOMS):
        return "looks like UTF-16 or UTF-32; save it as UTF-8"
    text = head.removeprefix(BOM).lstrip()
    if head[257:262] == b"ustar":
        return "is a tar archive; unpack it"
    for beginning, kind in BEGINNINGS:
        if text.startswith(beginning):
            return kind
    if text[:1] in (b"", b"{", b"["):
        return None
    return f"begins with {text[:1]!r}, so it is no JSON list, JSONL or Parquet file; convert it (CSV, YAML, other text) to JSONL"
