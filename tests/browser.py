"""A headless Chromium over its DevTools pipe: no driver to install, no port, no network."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = [
    "--headless=new",
    "--no-sandbox",  # containers and root have none
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
]
KEYS = {"Tab": 9, "Enter": 13, " ": 32, "End": 35, "Home": 36, "ArrowLeft": 37, "ArrowRight": 39}
TIMEOUT = 30.0


class Tab:
    """One page. What it asked of the network, what it wrote to the console and what it threw is kept in lists."""

    def __init__(self, commands: Any, answers: Any) -> None:
        self._commands, self._answers = commands, answers
        self._numbers, self._session = itertools.count(1), None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command's result; events that come before it are looked at."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params} | (
            {"sessionId": self._session} if self._session else {}
        )
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]
            self._look_at(answer.get("method"), answer.get("params", {}))

    def _read(self) -> dict[str, Any]:
        letters = bytearray()
        while (letter := self._answers.read(1)) != b"\0":
            assert letter, "the browser has gone"
            letters += letter
        return json.loads(letters)

    def _look_at(self, event: str | None, params: dict[str, Any]) -> None:
        match event:
            case "Network.requestWillBeSent":
                url = params["request"]["url"]
                self.requests += [] if url.startswith("data:") else [url]
            case "Runtime.consoleAPICalled":
                self.complaints.append(str(params["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"]))
            case "Log.entryAdded":
                self.complaints.append(params["entry"]["text"])

    # -- what a person does

    def open(self, file: Path, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        theme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[theme])
        self.resize(width, height)
        self.send("Page.navigate", url=file.resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def resize(self, width: int, height: int = 900) -> None:
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )

    def run(self, script: str) -> Any:
        """The value of a JavaScript expression; promises are waited for."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def all(self, selector: str, then: str = "textContent") -> list[Any]:
        """A property of every element that matches, of its text if not said otherwise."""
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.{then})")

    def wait(self, condition: str) -> None:
        end = time.monotonic() + TIMEOUT
        while not self.run(condition):
            assert time.monotonic() < end, f"never: {condition}"
            time.sleep(0.02)

    def at(self, selector: str, x: float = 0.5, y: float = 0.5) -> tuple[float, float]:
        """A place in an element that is brought into view: (0, 0) is its upper left corner, (1, 1) its lower right."""
        found = f"document.querySelector({json.dumps(selector)})"
        box = self.run(
            f"(e => {{ e.scrollIntoView({{block: 'center'}}); return e.getBoundingClientRect().toJSON() }})({found})"
        )
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def point(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        left, top = self.at(selector, x, y)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=left, y=top)

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        left, top = self.at(selector, x, y)
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=left, y=top, button="left", clickCount=1)

    def focus(self, selector: str) -> None:
        self.run(f"document.querySelector({json.dumps(selector)}).focus({{focusVisible: true}})")

    def choose(self, selector: str, value: str) -> None:
        """An option of a select."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.run(f"(e => {{ e.value = {json.dumps(value)}; e.dispatchEvent(new Event('change')) }})({found})")

    def press(self, *keys: str) -> None:
        for key in keys:
            common = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": KEYS[key]}
            text = {"Enter": {"text": "\r"}, " ": {"text": " "}}.get(key, {})
            self.send("Input.dispatchKeyEvent", type="keyDown", **common, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", **common)

    def type(self, text: str) -> None:
        self.send("Input.insertText", text=text)

    def shot(self, file: Path, whole: bool = False) -> None:
        """A screenshot, of the whole page if wanted."""
        picture = self.send("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        file.write_bytes(base64.b64decode(picture))


@contextmanager
def chromium(profile: Path) -> Iterator[Tab]:
    """A browser of its own, with an empty profile; ended at the end."""
    assert CHROMIUM
    (down, commands), (answers, up) = os.pipe(), os.pipe()

    def wire() -> None:  # the browser reads its descriptor 3 and writes 4
        high = [os.dup(down), os.dup(up)]
        while max(high) < 5:
            high = [os.dup(end) for end in high]
        os.dup2(high[0], 3)
        os.dup2(high[1], 4)

    quiet = subprocess.DEVNULL
    process = subprocess.Popen(
        [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"],
        stdin=quiet,
        stdout=quiet,
        stderr=quiet,
        close_fds=False,
        preexec_fn=wire,
    )
    os.close(down)
    os.close(up)
    with os.fdopen(commands, "wb") as writer, os.fdopen(answers, "rb") as reader:
        try:
            tab = Tab(writer, reader)
            yield tab
            tab.send("Browser.close")
            process.wait(TIMEOUT)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
