"""A headless Chromium driven over its DevTools protocol: pages are opened, touched and looked at as people do."""

from __future__ import annotations

import base64
import io
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from websockets.sync.client import connect

START, PATIENCE = 60.0, 60.0  # seconds for the program to come up, for a page to do something


class Browser:
    """One window. `errors` and `requests` gather what its pages complain about and ask for."""

    def __init__(self, folder: Path, size: tuple[int, int] = (1280, 900)) -> None:
        program = next((found for name in ("chromium", "google-chrome") if (found := shutil.which(name))), None)
        if program is None:
            pytest.skip("no Chromium here. Install it: apt-get install chromium")
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.numbers = itertools.count(1)
        options = ["--headless=new", "--no-sandbox", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
        options += ["--use-angle=swiftshader", "--enable-unsafe-swiftshader", f"--window-size={size[0]},{size[1]}"]
        self.process = subprocess.Popen([program, *options, "about:blank"], stderr=subprocess.DEVNULL)
        try:
            self.socket = connect(self._address(folder / "DevToolsActivePort"), max_size=2**27)
        except BaseException:
            self.close()
            raise
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def _address(self, file: Path) -> str:
        end = time.monotonic() + START
        while time.monotonic() < end:
            if file.exists() and (lines := file.read_text().splitlines()):
                with urllib.request.urlopen(f"http://127.0.0.1:{lines[0]}/json/list", timeout=10) as answer:
                    pages = [target for target in json.load(answer) if target["type"] == "page"]
                if pages:
                    return str(pages[0]["webSocketDebuggerUrl"])
            time.sleep(0.05)
        raise AssertionError(f"Chromium did not come up in {START:g} s")

    def close(self) -> None:
        """End the program."""
        self.process.terminate()
        self.process.wait(timeout=30)

    def send(self, method: str, **values: Any) -> dict[str, Any]:
        """One command and its answer; events on the way are noted."""
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": values}))
        while True:
            message = json.loads(self.socket.recv(timeout=PATIENCE))
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])
            self._note(message)

    def _note(self, message: dict[str, Any]) -> None:
        values = message.get("params", {})
        if message["method"] == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(values["exceptionDetails"])[:500])
        elif message["method"] == "Runtime.consoleAPICalled" and values["type"] in ("error", "warning", "assert"):
            self.errors.append(" ".join(str(one.get("value", one)) for one in values["args"]))
        elif message["method"] == "Log.entryAdded" and values["entry"]["level"] in ("error", "warning"):
            self.errors.append(values["entry"]["text"])
        elif message["method"] == "Network.requestWillBeSent":
            self.requests.append(values["request"]["url"])

    def open(self, page: Path, ready: str) -> None:
        """Open a local page and wait until the expression `ready` is true in it."""
        self.errors.clear()
        self.requests.clear()
        self.send("Page.navigate", url=page.resolve().as_uri())
        self.wait(ready)

    def wait(self, expression: str) -> None:
        end = time.monotonic() + PATIENCE
        while not self.evaluate(f"Boolean({expression})"):
            assert time.monotonic() < end, f"{expression} is not true after {PATIENCE:g} s; errors: {self.errors}"
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression, promises awaited."""
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str, times: int = 1) -> None:
        """A key of the keyboard on whatever has the focus."""
        for _ in range(times):
            for kind in ("keyDown", "keyUp"):
                self.send("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=CODES[key])

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """The mouse, pressed, from one place of the window to another."""
        button = {"button": "left", "clickCount": 1}
        self.send("Input.dispatchMouseEvent", type="mousePressed", x=start[0], y=start[1], buttons=1, **button)
        for share in (0.5, 1.0):
            x, y = (a + share * (b - a) for a, b in zip(start, end, strict=True))
            self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y, buttons=1, button="left")
        self.send("Input.dispatchMouseEvent", type="mouseReleased", x=end[0], y=end[1], buttons=0, **button)

    def picture(self, selector: str) -> NDArray[np.uint8]:
        """What is seen of an element, (H,W,3), once two frames have been drawn."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(1))))")
        box = self.evaluate(
            f"(() => {{ const box = document.querySelector({selector!r}).getBoundingClientRect();"
            " return {x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height, scale: 1}; })()"
        )
        data = self.send("Page.captureScreenshot", clip=box, captureBeyondViewport=True)["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))


CODES = {"ArrowRight": 39, "ArrowLeft": 37, "End": 35, "Home": 36, " ": 32}
