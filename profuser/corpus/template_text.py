"""Writes a recipe's settings into the Jinja source of a chat template, so that whatever renders it renders the same text.

Transformers, vLLM and lm-evaluation-harness each render templates with arguments of their own. A template that carries its
arguments needs none of them. The source itself is kept: what is added before and after it does not change its whitespace
(Transformers drops the line break after a block, and blanks before one at the start of a line).
"""

import json
import re
from collections.abc import Mapping
from datetime import datetime

CLOCK = "strftime_now"
DIRECTIVES = ("-d", "-m", *"aAbBcdDeFHIjmMpSTUwWxXyYZ")
MARK = "\x01"


def with_arguments(text: str, arguments: Mapping[str, bool | int | float | str]) -> str:
    """Returns a template in which variables have these values, unless the caller sets them."""
    return "".join(f"{{% set {n} = {n} if {n} is defined else {_literal(v)} %}}\n" for n, v in arguments.items()) + text


def with_date(text: str, day: str) -> str:
    """Returns a template whose `strftime_now` gives a fixed day, at midnight."""
    if CLOCK not in text:
        return text
    midnight = datetime.fromisoformat(day)
    pairs = [("%%", MARK), *((f"%{each}", midnight.strftime(f"%{each}")) for each in DIRECTIVES), (MARK, "%")]
    chain = "".join(f" | replace({_literal(old)}, {_literal(new)})" for old, new in pairs)
    return f"{{% macro {CLOCK}(format) %}}{{{{ format{chain} }}}}{{% endmacro %}}\n{text}"


def with_ending(text: str, ending: str) -> str:
    """Returns a template that writes a text after its generation prompt."""
    # Jinja drops the last line break of a template.
    kept = re.sub(r"(\r\n|\r|\n)\Z", "", text)
    return f"{kept}{{%+ if add_generation_prompt %}}{{{{ {_literal(ending)} }}}}{{% endif %}}"


def mentions(text: str, name: str) -> bool:
    """Returns whether a template mentions a variable."""
    return re.search(rf"\b{re.escape(name)}\b", text) is not None


def _literal(value: bool | int | float | str) -> str:
    return json.dumps(value, ensure_ascii=False)
