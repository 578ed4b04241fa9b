"""The playground in a real browser, with the real gateway."""

import time
from collections.abc import Iterator
from itertools import pairwise
from urllib.parse import urlsplit

import pytest

from profuser.serving.keys import KeyRing
from profuser.serving.options import Limits
from tests.browser import ANSWERS, CHROMIUM, IDLE, TEXTS, Chromium, Tab, started
from tests.report.test_structure import contrast
from tests.serving.playground_server import MODELS, Models, reply, serving, thoughts

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
KEY = "sk-for-the-playground"
ALT, SHIFT = 1, 8
BOXES = "[...document.querySelectorAll('.answer')].map(card => card.getBoundingClientRect().toJSON())"
NUMBERS = "[...document.querySelectorAll('.numbers')].map(each => each.textContent.replaceAll('\\xa0', ' '))"
ERRORS = ANSWERS.format("[card.querySelector('h3').textContent, card.querySelector('.error').textContent]")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory) -> Iterator[Chromium]:
    with started(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.fixture
def blank(chromium) -> Iterator[Tab]:
    tab = Tab(chromium)
    yield tab
    requests = [each["request"]["url"] for each in tab.happened("Network.requestWillBeSent")]
    assert len({urlsplit(url)[:2] for url in requests}) == 1, requests
    assert tab.complaints() == []
    tab.close()


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, Models]]:
    with serving() as running:
        yield running


@pytest.fixture
def models(server) -> Models:
    server[1].forget()
    return server[1]


@pytest.fixture
def tab(blank, server, models) -> Tab:
    return blank.open(server[0])


def test_answers_are_shown_side_by_side(tab, models):
    prompt = "Two words\nand 三 signs"
    assert tab.ask(prompt) == {model: reply(model, prompt) for model in MODELS}
    boxes = tab.js(BOXES)
    assert len({box["top"] for box in boxes}) == 1
    assert all(left["right"] < right["left"] for left, right in pairwise(boxes))
    assert tab.js("document.querySelectorAll('.fused').length") == 1
    for numbers in tab.js(NUMBERS):
        assert numbers.startswith("first token ")
        assert "tokens/s" in numbers
        assert numbers.endswith("tokens, prompt 5")
    usual = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    for fields in models.asked:
        assert fields == usual | {"model": fields["model"], "messages": [{"role": "user", "content": prompt}]}


def test_every_model_has_a_separate_conversation(tab, models):
    tab.ask("first, target fails")
    tab.js("document.querySelector('#settings').open = true")
    tab.fill("system", "Be brief.")
    tab.fill("seed", "7")
    tab.fill("prompt", "")
    tab.ask("second")
    before = [("user", "first, target fails"), ("assistant", reply("source-a", "first, target fails"))]
    for model, turns in (("source-a", before), ("target", [])):
        messages = [("system", "Be brief."), *turns, ("user", "second")]
        assert [tuple(message.values()) for message in models.last(model)["messages"]] == messages
        assert models.last(model)["seed"] == 7


def test_the_keyboard_is_enough(tab, models):
    tab.type("fused endless")
    tab.press("Enter", SHIFT)
    tab.type("target endless")
    tab.press("Enter")
    tab.until("document.querySelector('.answer .text').textContent.includes('more more')")
    tab.press("Enter")
    tab.js("document.activeElement.blur()")
    tab.press("/")
    tab.press("Escape")
    tab.until(IDLE)
    assert tab.js("document.querySelector('#prompt:focus').value") == ""
    assert "Stopped." in tab.js("document.querySelector('.fused .numbers').textContent")
    end = time.monotonic() + 30
    while set(models.left) != {"fused", "target"}:
        assert time.monotonic() < end, f"the server continues after a disconnect: {models.left}"
        time.sleep(0.02)
    assert tab.ask("next")["fused"] == reply("fused", "next")
    stopped = models.last("fused")["messages"]
    assert [message["role"] for message in stopped] == ["user", "assistant", "user"]
    assert stopped[0]["content"] == "fused endless\ntarget endless"
    assert stopped[1]["content"].endswith("more more")
    tab.press("n", ALT)
    tab.until("!document.querySelector('.turn')")
    tab.ask("new chat")
    assert len(models.last("fused")["messages"]) == 1


def test_the_page_asks_for_a_key_and_forgets_it_with_the_tab(blank, tmp_path):
    file = tmp_path / "keys.yaml"
    file.write_text(f"- {KEY}\n")
    with serving(KeyRing(file, Limits())) as (address, models):
        tab = blank.open(address, "document.querySelector('#key:focus')")
        assert tab.js("document.querySelector('#key-message').textContent").startswith("Give a valid API key")
        assert tab.js("document.querySelector('#key').type") == "password"
        tab.js("document.querySelector('#key-message').textContent = ''")
        tab.fill("key", "sk-a-wrong-key-of-some-length")
        tab.press("Enter")
        tab.until("document.querySelector('#key-message').textContent")
        tab.fill("key", f" {KEY} ")
        tab.press("Enter")
        tab.until("document.querySelector('#prompt:focus')")
        assert tab.js("document.querySelector('#access').open") is False
        assert tab.ask("hello")["target"] == reply("target", "hello")
        assert tab.open(address).ask("again")["target"] == reply("target", "again")
        assert tab.js("Object.values(sessionStorage)") == [KEY]
        assert tab.js("localStorage.length + document.cookie.length") == 0
        file.write_text(f"- {KEY}-another\n")
        tab.ask("no longer")
        assert tab.js("document.querySelector('#access').open") is True
        assert len(models.asked) == 2 * len(MODELS)


REASONING = ANSWERS.format("[card.querySelector('h3').textContent, card.querySelector('.reasoning div').textContent]")
FOLDED = ANSWERS.format(
    "[card.querySelector('h3').textContent, [card.querySelector('.reasoning').hidden, card.querySelector('.reasoning').open]]"
)


def test_reasoning_is_folded_away_and_no_part_of_the_answer_or_the_next_prompt(tab, models):
    prompt = "fused thinks, target ponders"
    assert tab.ask(prompt) == {model: reply(model, prompt) for model in MODELS} | {"target": ""}
    folded = tab.js(FOLDED)
    assert folded == {model: [model.startswith("source"), False] for model in MODELS}
    assert tab.js(REASONING)["fused"].rstrip() == thoughts("fused")
    assert tab.js("document.querySelectorAll('.reasoning b').length") == 0
    assert tab.js("document.querySelector('.fused .reasoning div').checkVisibility()") is False
    tab.js("document.querySelector('.fused summary').click()")
    assert tab.js("document.querySelector('.fused .reasoning div').checkVisibility()") is True
    assert "No answer after the reasoning." in tab.js(NUMBERS)[1]
    tab.ask("next")
    assert [each["content"] for each in models.last("fused")["messages"]] == [prompt, reply("fused", prompt), "next"]


def test_markup_in_an_answer_is_text(tab):
    prompt = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script><b>bold</b>"
    assert tab.ask(prompt) == {model: reply(model, prompt) for model in MODELS}
    assert tab.js("document.querySelectorAll('.turn img, .turn script, .turn b').length") == 0
    assert tab.js("document.title") == "ProFuser playground"


def test_an_error_is_shown_in_its_own_column_only(tab):
    prompt = "target fails, source-a cut, source-b busy"
    texts, errors = tab.ask(prompt), tab.js(ERRORS)
    assert texts["fused"] == reply("fused", prompt)
    assert texts["target"]
    assert reply("target", prompt).startswith(texts["target"])
    assert errors == {
        "fused": "",
        "target": "The model's replica was lost; try again.",
        "source-a": "The answer was interrupted.",
        "source-b": "The model 'source-b' has too many requests. Retry after 7 s.",
    }
    tab.js("[...document.querySelectorAll('.again')].at(-1).click()")
    tab.until(IDLE)
    assert tab.js(TEXTS) == texts | {"source-b": reply("source-b", prompt)}
    assert tab.js("document.querySelectorAll('.error:not([hidden])').length") == 2


def test_an_unreachable_server_is_reported(blank):
    with serving() as (address, _):
        tab = blank.open(address)
    tab.ask("hello?")
    assert set(tab.js(ERRORS).values()) == {"The server cannot be reached."}


def test_a_deselected_model_stays_deselected_after_a_reload(tab, server):
    for key in ("Tab", "Tab", "Tab", " "):
        tab.press(key)
    tab.fill("prompt", "")
    assert list(tab.ask("hello")) == ["fused", "target", "source-b"]
    assert list(tab.open(server[0]).ask("hello")) == ["fused", "target", "source-b"]


def test_an_invalid_setting_is_shown(tab, models):
    tab.js("document.querySelector('#temperature').value = 9")
    tab.type("hello")
    tab.press("Enter")
    tab.until("document.querySelector('#settings').open && document.querySelector('#temperature:focus')")
    assert models.asked == []


def test_an_answer_is_copied(tab, chromium):
    chromium.call("Browser.grantPermissions", permissions=["clipboardReadWrite"], browserContextId=tab.context)
    tab.ask("hello")
    tab.js("document.querySelector('.copy').click()")
    tab.until("document.querySelector('.copy').textContent === 'Copied'")
    assert tab.js("navigator.clipboard.readText()") == reply("fused", "hello")


def test_screen_readers_get_whole_answers_once(tab):
    tab.ask("hello")
    spoken = tab.js("[...document.querySelectorAll('#spoken[aria-live=polite] p')].map(each => each.textContent)")
    assert sorted(spoken) == sorted(f"{model} answers: {reply(model, 'hello')}" for model in MODELS)


def test_every_control_has_a_name(tab):
    tab.ask("hello, target fails, fused thinks")
    tab.js("document.querySelectorAll('details').forEach(each => each.open = true)")
    controls = {"button", "textbox", "checkbox", "spinbutton", "DisclosureTriangle"}
    nodes = [node for node in tab.call("Accessibility.getFullAXTree")["nodes"] if not node["ignored"]]
    names = [(node["role"]["value"], node["name"]["value"]) for node in nodes if node["role"]["value"] in controls]
    assert len(names) > 12
    assert all(name.strip() for _, name in names), names


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_have_enough_contrast(tab, scheme):
    tab.prefer("color-scheme", scheme)
    style = "getComputedStyle(document.documentElement).getPropertyValue('--{}')"
    names = ("page", "card", "text", "soft", "mark", "on-mark", "worse", "worse-bg", "edge")
    colour = {name: tab.js(style.format(name)).strip() for name in names}
    for ground in ("page", "card"):
        assert all(contrast(colour[name], colour[ground]) >= 4.5 for name in ("text", "soft", "mark"))
        assert contrast(colour["edge"], colour[ground]) >= 3
    assert contrast(colour["worse"], colour["worse-bg"]) >= 4.5
    assert contrast(colour["mark"], colour["on-mark"]) >= 4.5


def test_reduced_motion_stops_animations(tab):
    tab.prefer("reduced-motion", "reduce")
    tab.type("fused endless")
    tab.press("Enter")
    tab.until("document.querySelector('[aria-busy]')")
    blinks = "getComputedStyle(document.querySelector('[aria-busy] .text'), '::after').animationName"
    assert tab.js(blinks) == "none"
    tab.press("Escape")
    tab.until(IDLE)


def test_a_phone_stacks_the_answers(tab):
    tab.call("Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=1, mobile=True)
    tab.call("Emulation.setTouchEmulationEnabled", enabled=True)
    tab.ask(f"{'w' * 300} source-b fails fused thinks")
    tab.js("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert tab.js("document.documentElement.scrollWidth") == 360
    boxes = tab.js(BOXES)
    assert all(above["bottom"] < below["top"] for above, below in pairwise(boxes))
    assert tab.js("document.querySelector('#send').getBoundingClientRect().right") <= 360
    targets = "[...document.querySelectorAll('summary, button, #models label')].map(each => each.getBoundingClientRect().height)"
    assert all(height >= 24 for height in tab.js(targets) if height), "too small for a finger (WCAG 2.2, 2.5.8)"
