"""Chromium over its DevTools protocol, for tests and pictures of pages."""

import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from websockets.sync.client import ClientConnection, connect

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEYS = {
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "Tab": ("Tab", 9, ""),
    " ": ("Space", 32, " "),
    "/": ("Slash", 191, "/"),
    "n": ("KeyN", 78, ""),
}
"""Code, key code and text of keys."""
ANSWERS = "Object.fromEntries([...document.querySelectorAll('.turn:last-child .answer')].map(card => {}))"
TEXTS = ANSWERS.format("[card.querySelector('h3').textContent, card.querySelector('.text').textContent]")
IDLE = "document.querySelector('.turn') && !document.querySelector('[aria-busy]')"
"""Of the playground: answers of the last turn by model, and whether all have ended."""


class Chromium:
    """A browser, controlled by its DevTools protocol."""

    def __init__(self, connection: ClientConnection):
        self.connection, self.number = connection, 0
        self.events: list[dict] = []

    def call(self, method: str, session: str | None = None, **params) -> dict:
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        self.connection.send(json.dumps(message))
        while True:
            answer = json.loads(self.connection.recv(timeout=60))
            if answer.get("id") != self.number:
                self.events.append(answer)
            elif "error" in answer:
                raise RuntimeError(f"{method}: {answer['error']}")
            else:
                return answer["result"]


class Tab:
    """A tab with separate storage, and the actions of a user."""

    timeout_seconds = 30.0

    def __init__(self, chromium: Chromium):
        self.chromium = chromium
        self.context = chromium.call("Target.createBrowserContext")["browserContextId"]
        where = {"url": "about:blank", "browserContextId": self.context, "width": 1280, "height": 800}
        self.target = chromium.call("Target.createTarget", **where)["targetId"]
        attached = chromium.call("Target.attachToTarget", targetId=self.target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)

    def call(self, method: str, **params) -> dict:
        return self.chromium.call(method, self.session, **params)

    def open(self, address: str, ready: str = "document.querySelector('#prompt:focus')") -> "Tab":
        self.call("Page.navigate", url=address)
        self.until(ready)
        return self

    def js(self, expression: str):
        done = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, expression: str) -> None:
        end = time.monotonic() + self.timeout_seconds
        while not self.js(f"Boolean({expression})"):
            assert time.monotonic() < end, f"never: {expression}; the page: {self.js('document.body.innerText')}"
            time.sleep(0.02)

    def press(self, key: str, modifiers: int = 0) -> None:
        code, number, text = KEYS[key]
        what = {"key": key, "code": code, "windowsVirtualKeyCode": number, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **what)
        self.call("Input.dispatchKeyEvent", type="keyUp", **what)

    def prefer(self, what: str, value: str) -> None:
        self.call("Emulation.setEmulatedMedia", features=[{"name": f"prefers-{what}", "value": value}])

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def fill(self, field: str, text: str) -> None:
        self.js(f"document.querySelector('#{field}').focus(); document.querySelector('#{field}').value = ''")
        self.type(text)

    def ask(self, prompt: str) -> dict[str, str]:
        """Sends a prompt and returns the answers when all have ended."""
        self.type(prompt)
        self.press("Enter")
        self.until(IDLE)
        return self.js(TEXTS)

    def happened(self, method: str) -> list[dict]:
        self.js("0")  # its response arrives after all earlier events
        mine = [event for event in self.chromium.events if event.get("sessionId") == self.session]
        return [event["params"] for event in mine if event["method"] == method]

    def complaints(self) -> list[str]:
        """Returns the console's errors, except responses with an error status, which are intended."""
        logged = [each["entry"] for each in self.happened("Log.entryAdded")]
        bad = [entry["text"] for entry in logged if entry["level"] == "error" and entry["source"] != "network"]
        printed = [str(each["args"]) for each in self.happened("Runtime.consoleAPICalled")]
        return bad + printed + [str(each) for each in self.happened("Runtime.exceptionThrown")]

    def close(self) -> None:
        self.chromium.call("Target.disposeBrowserContext", browserContextId=self.context)


@contextmanager
def started(profile: Path) -> Iterator[Chromium]:
    """Runs a browser with this folder as its profile."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
    command = [str(CHROMIUM), *options, "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            with connect(_debugger(profile / "DevToolsActivePort"), max_size=None) as connection:
                yield Chromium(connection)
        finally:
            process.kill()


def _debugger(file: Path) -> str:
    end = time.monotonic() + 30
    while not (file.exists() and len(lines := file.read_text().split()) == 2):
        assert time.monotonic() < end, "Chromium does not start"
        time.sleep(0.05)
    return f"ws://127.0.0.1:{lines[0]}{lines[1]}"
