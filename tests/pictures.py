"""Makes pictures of the documents from real runs: `python -m tests.pictures playground RUN`, `python -m tests.pictures report RUN`.

RUN is the folder of a finished run. The playground is that of `profuser serve RUN --with all`; the report is the run's own page.
"""

import argparse
import base64
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from tests.browser import Tab, started

ALT = 1
"""Bit of the key in a keyboard event."""
PICTURES = Path(__file__).parents[1] / "notebooks" / "pictures"
PROMPTS = ("Put the letters h b a i in alphabetical order.",)


def playground(run: Path, output: Path) -> None:
    """Asks the fused model, the target and the sources of a run side by side."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = [run.name, "--storage", str(run.parent), "--with", "all", "--port", str(port), "--insecure"]
    with subprocess.Popen([str(Path(sys.executable).parent / "profuser"), "serve", *place]) as server:
        try:
            _wait(f"http://127.0.0.1:{port}/v1/models", server)
            _photograph(f"http://127.0.0.1:{port}/", output, PROMPTS, height=420)
        finally:
            server.terminate()


def report(run: Path, output: Path) -> None:
    """Shows the top of a run's report."""
    _photograph((run / "report" / "index.html").as_uri(), output, (), height=860)


def _photograph(address: str, output: Path, prompts: tuple[str, ...], height: int) -> None:
    with tempfile.TemporaryDirectory() as profile, started(Path(profile)) as chromium:
        tab = Tab(chromium)
        tab.timeout_seconds = 240.0
        size = {"width": 1280, "height": height, "deviceScaleFactor": 1, "mobile": False}
        tab.call("Emulation.setDeviceMetricsOverride", **size)
        tab.prefer("color-scheme", "light")
        tab.open(address, "document.querySelector('#prompt:focus')" if prompts else "document.body")
        for prompt in prompts:
            tab.ask(prompt)  # the first request waits for the engines
            tab.press("n", ALT)
            tab.until("!document.querySelector('.turn')")
            print(tab.ask(prompt))
        data = tab.call("Page.captureScreenshot", format="png")["data"]
    output.write_bytes(base64.b64decode(data))
    print(f"written to {output}")


def _wait(url: str, server: subprocess.Popen, seconds: float = 600) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(1.0)
    raise SystemExit("the server did not start")


def main() -> None:
    """Makes the picture that the arguments name."""
    parser = argparse.ArgumentParser("tests.pictures", description=__doc__)
    parser.add_argument("picture", choices=("playground", "report"))
    parser.add_argument("run", type=Path, help="folder of a finished run")
    chosen = parser.parse_args()
    {"playground": playground, "report": report}[chosen.picture](
        chosen.run.absolute(), PICTURES / f"{chosen.picture}.png"
    )


if __name__ == "__main__":
    main()
