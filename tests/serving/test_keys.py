"""API keys: their sources, invalid keys, and changes without a restart."""

import hmac
import os
import re

import pytest

from profuser.errors import UserError
from profuser.serving.keys import ENVIRONMENT, KeyRing
from profuser.serving.options import Limits

ONE, TWO = "sk-the-first-of-two-keys", "sk-the-other-of-two-keys"
A_KEY = re.compile(r"sk-\w|1234567890")
LIMITS = Limits(concurrency=7, max_tokens=100)


@pytest.fixture(autouse=True)
def no_keys_around(monkeypatch):
    monkeypatch.delenv(ENVIRONMENT, raising=False)


@pytest.fixture
def ring(tmp_path):
    """Builds a key ring from a file with this text."""

    def make(text: str) -> KeyRing:
        (tmp_path / "keys.yaml").write_text(text)
        return KeyRing(tmp_path / "keys.yaml", LIMITS)

    return make


def bearer(ring: KeyRing, key: str) -> str | None:
    """Returns the name of a key's owner."""
    client = ring.find(f"Bearer {key}")
    return client and client.name


def test_keys_of_the_environment(monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, f" {ONE}, ,{TWO}")
    ring = KeyRing(None, LIMITS)
    found = [ring.find(f"Bearer {key}") for key in (ONE, TWO)]
    names = [client.name for client in found if client]
    assert len(set(names)) == 2
    assert all(name.startswith("key-") and len(name) == 10 for name in names)
    assert all(client.limits == LIMITS for client in found if client)


def test_a_file_sets_names_and_limits_and_adds_to_the_environment(ring, monkeypatch):
    monkeypatch.setenv(ENVIRONMENT, TWO)
    keys = ring(f"- {{name: alice, key: {ONE}, concurrency: 1, max_tokens: null}}\n- sk-without-a-name\n")
    alice = keys.find(f"Bearer {ONE}")
    assert alice is not None
    assert (alice.name, alice.limits) == ("alice", LIMITS.model_copy(update={"concurrency": 1, "max_tokens": None}))
    assert bearer(keys, TWO)
    assert bearer(keys, "sk-without-a-name")
    assert ONE not in repr(keys) + repr(alice)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        ONE,
        f"Basic {ONE}",
        f"Bearer {ONE[:-1]}",
        f"Bearer {ONE}x",
        f"Bearer {ONE.upper()}",
        f"Bearer Bearer {ONE}",
        f"Bearer {ONE},{TWO}",
        "Bearer \udcff\x00é",
    ],
)
def test_an_invalid_header_identifies_nobody(ring, header):
    assert ring(f"- {ONE}").find(header) is None


@pytest.mark.parametrize("header", [f"Bearer {ONE}", f"bearer {ONE}", f"BEARER  {ONE} "])
def test_the_scheme_is_case_insensitive(ring, header):
    assert ring(f"- {ONE}").find(header)


@pytest.mark.parametrize("given", [ONE, TWO, "sk-a-third-one-of-nobody", ""])
def test_every_key_is_compared_whichever_matches(ring, monkeypatch, given):
    compared = []
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((len(a), len(b))) or a == b)
    assert bool(bearer(ring(f"- {ONE}\n- {TWO}\n"), given)) == (given in (ONE, TWO))
    assert compared == [(32, 32)] * 2


BAD = {
    "short": (f"- {ONE}\n- sk-fifteen-long", "key 2: key:"),
    "blank inside": ("- sk-key with blanks in it", "key 1: key:"),
    "not ASCII": ("- sk-schlüssel-mit-umlaut", "key 1: key:"),
    "a line's end": ('- "sk-with-a-line-end\\n"', "key 1: key:"),
    "no text": ("- [sk-key-in-a-list-of-its-own]", "key 1: it:"),
    "a number": ("- 12345678901234567890", "key 1: it:"),
    "no key": ("- {name: alice}", "key 1: key:"),
    "a key as a field": (f"- {{key: {ONE}, sk-secret-in-the-wrong-place: 1}}", "unknown field"),
    "a number as a field": (f"- {{key: {ONE}, 12345678901234567890: 1}}", "unknown field"),
    "an invalid limit": (f"- {{key: {ONE}, concurrency: 0}}", "key 1: concurrency:"),
    "a name with blanks": (f"- {{key: {ONE}, name: a b}}", "key 1: name:"),
    "not YAML": (f"- [{ONE}", "cannot be read as YAML"),
    "an invalid date": ("- 2001-99-99", "cannot be read as YAML"),
    "a mapping": (f"alice: {ONE}", "a list of keys"),
    "empty": ("", "a list of keys"),
    "nobody": ("[]", "no API key"),
}


@pytest.mark.parametrize(("text", "expected"), BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_in_one_line_that_shows_no_key(ring, text, expected):
    with pytest.raises(UserError) as caught:
        ring(text)
    message = str(caught.value)
    assert expected in message
    assert message.startswith("serve: ")
    assert "\n" not in message
    assert not A_KEY.search(message)


@pytest.mark.parametrize("key", ["short", "sk-schlüssel-mit-umlaut", "sk-key with blanks in it"])
def test_a_bad_key_of_the_environment_is_refused_without_showing_it(monkeypatch, key):
    monkeypatch.setenv(ENVIRONMENT, f"{ONE},{key}")
    with pytest.raises(UserError, match=rf"^serve: {ENVIRONMENT}: key 2: key: [^\n]*$") as caught:
        KeyRing(None, LIMITS)
    assert key not in str(caught.value)


@pytest.mark.parametrize("file", ["missing.yaml", "."])
def test_a_missing_file_and_no_key_are_refused(tmp_path, file):
    with pytest.raises(UserError, match=r"^serve: .*$"):
        KeyRing(tmp_path / file, LIMITS)
    with pytest.raises(UserError, match="no API key: set PROFUSER_API_KEYS"):
        KeyRing(None, LIMITS)


def test_keys_are_reloaded_from_the_file(ring):
    keys = ring(f"- {{name: alice, key: {ONE}}}")
    assert (bearer(keys, ONE), bearer(keys, TWO)) == ("alice", None)
    keys.file.write_text(f"- {{name: alice, key: {ONE}}}\n- {{name: bob, key: {TWO}, concurrency: 1}}")
    assert (bearer(keys, ONE), bearer(keys, TWO)) == ("alice", "bob")
    keys.file.write_text(f"- {{name: bob, key: {TWO}, concurrency: 2}}\n# alice has left")
    bob = keys.find(f"Bearer {TWO}")
    assert bob is not None
    assert bob.limits.concurrency == 2
    assert bearer(keys, ONE) is None


def test_a_replaced_file_of_the_same_age_and_size_is_reloaded(ring, tmp_path):
    keys = ring(f"- {ONE}")
    before = keys.file.stat()
    (tmp_path / "new.yaml").write_text(f"- {TWO}")
    os.utime(tmp_path / "new.yaml", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(tmp_path / "new.yaml", keys.file)
    assert (bearer(keys, ONE), bool(bearer(keys, TWO))) == (None, True)


@pytest.mark.parametrize("text", ["", "- sk-short", f"- [{TWO}", "- 2001-99-99", None])
def test_an_invalid_file_leaves_the_keys_and_is_reported_once(ring, capsys, text):
    keys = ring(f"- {{name: alice, key: {ONE}}}")
    if text is None:
        keys.file.unlink()
    else:
        keys.file.write_text(text)
    assert [bearer(keys, ONE) for _ in range(3)] == ["alice"] * 3
    output = capsys.readouterr().out
    assert output.count("\n") == output.count("the keys are unchanged") == 1
    assert not A_KEY.search(output)
    keys.file.write_text(f"- {{name: bob, key: {TWO}}}  # fixed")
    assert (bearer(keys, ONE), bearer(keys, TWO)) == (None, "bob")
