"""Finds fenced blocks (Markdown) in answers."""

import re
from collections.abc import Collection

FENCE = re.compile(
    r"^[ \t]*(```+|~~~+)[ \t]*([\w+.#-]*)[^\n`]*\n(.*?)(?:^[ \t]*\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL
)


def last_block(text: str, languages: Collection[str]) -> str | None:
    """Returns the last fenced block in one of the languages, in lower case, else the last one without a language; None without
    either. A block that is still open at the end of the text counts: the answer was cut off there, or forgot to close it.
    """
    blocks = [(language.lower(), body) for _, language, body in FENCE.findall(text)]
    for wanted in (languages, ("",)):
        bodies = [body for language, body in blocks if language in wanted]
        if bodies:
            return bodies[-1]
    return None
