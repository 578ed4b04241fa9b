"""Settings written into a template's source change nothing else of what it renders, whatever its layout."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers.utils.chat_template_utils import render_jinja_template

from profuser.corpus.template_text import with_arguments, with_date, with_ending

PIECES = ("\n", "  ", "\t", "a", "{{ x }}", "{{- x -}}", "{# c #}", "{#- c -#}", "{% raw %}\n {{ q }}\n {% endraw %}")
PIECES += ("{% if x %}", "{%- if x %}", "{% if x -%}", "{%+ if x +%}", "{% set z='%} #}' %}", "{{ '{% x %}' }}", "\r\n")
TEXTS = st.lists(st.sampled_from(PIECES), max_size=12).map(
    lambda pieces: "".join([*pieces, "\n{% endif %}\n" * sum("if x" in piece for piece in pieces)])
)


def render(text, **arguments):
    (rendered,), _ = render_jinja_template(conversations=[[]], chat_template=text, **arguments)
    return rendered


@given(TEXTS)
def test_arguments_and_a_date_change_nothing_else(text):
    plain = render(text, x="X")
    assert render(with_arguments(text, {"x": "X"})) == plain
    assert render(with_arguments(text, {"x": "other", "unused": True}), x="X") == plain
    assert render(with_date(with_arguments(text, {"x": "X"}), "2026-03-05")) == plain


@given(TEXTS)
def test_an_ending_follows_the_generation_prompt_alone(text):
    plain = render(text, x="X")
    ended = with_ending(text, "</think>\n\n")
    assert render(ended, x="X") == plain
    assert render(ended, x="X", add_generation_prompt=True) == f"{plain}</think>\n\n"


@given(st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])))
def test_an_argument_has_its_value(value):
    assert render(with_arguments("{{ x }}", {"x": value})) == str(value)


@pytest.mark.parametrize(
    ("format", "shown"),
    [
        ("%d %b %Y", "05 Mar 2026"),
        ("%Y-%m-%d", "2026-03-05"),
        ("%A, %B %-d %%d", "Thursday, March 5 %d"),
        ("%H:%M", "00:00"),
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        "{{{{ strftime_now('{}') }}}}",
        "{{% set f = '{}' %}}{{{{ strftime_now(f) if strftime_now is defined else 'undefined' }}}}",
        "{{% macro today() %}}{{{{ strftime_now('{}') }}}}{{% endmacro %}}{{{{ today() }}}}",
    ],
)
def test_a_date_is_written_in_any_format_and_place(text, format, shown):
    assert render(with_date(text.format(format), "2026-03-05")) == shown
