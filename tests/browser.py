"""A real browser without a window: Chromium, spoken to over a pipe in its own protocol, with no driver."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BROWSER = next((p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None)
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """One tab. What its console complains of is kept in `complaints`."""

    def __init__(self, process: subprocess.Popen[bytes], to: int, of: int) -> None:
        self.complaints: list[str] = []
        self._process, self._to, self._of = process, to, of
        self._rest, self._number, self._session = b"", 0, ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and wait for what it gives."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        data = json.dumps(message).encode() + b"\0"
        while data:
            data = data[os.write(self._to, data) :]
        for said in self._heard(60):
            if said.get("id") == self._number:
                assert "error" not in said, said["error"]
                result: dict[str, Any] = said["result"]
                return result
        raise AssertionError(f"{method} gave nothing within a minute")

    def _heard(self, patience_s: float) -> Iterator[dict[str, Any]]:
        deadline = time.monotonic() + patience_s
        while (left := deadline - time.monotonic()) > 0:
            while b"\0" in self._rest:
                one, _, self._rest = self._rest.partition(b"\0")
                said = json.loads(one)
                self._complain(said)
                yield said
            if select.select([self._of], [], [], left)[0]:
                more = os.read(self._of, 1 << 16)
                assert more, "the browser has ended"
                self._rest += more

    def _complain(self, said: dict[str, Any]) -> None:
        if said.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(json.dumps(said["params"]["exceptionDetails"])[:500])
        if said.get("method") == "Log.entryAdded":
            self.complaints.append(
                f"{said['params']['entry']['text']} {said['params']['entry'].get('url', '')}"
            )

    def look(self, width: int, height: int, dark: bool = False) -> None:
        """Take the size of a screen, and the wish for dark or light."""
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=phone,
        )  # fmt: skip
        wish = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[wish])

    def open(self, url: str) -> None:
        """Go to a page, and wait until it is there."""
        self.call("Page.navigate", url=url)
        self.until("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression, or of the promise that it is."""
        found = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in found, json.dumps(found["exceptionDetails"])[:500]
        return found["result"].get("value")

    def until(self, script: str, patience_s: float = 60.0) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + patience_s
        while not self.run(f"!!({script})"):
            assert time.monotonic() < deadline, f"never true: {script}\n{self.run('document.body.innerText')}"
            time.sleep(0.05)

    def click(self, selector: str) -> None:
        """Press the mouse on the middle of something."""
        self.run(f"document.querySelector({selector!r}).scrollIntoView({{block: 'center'}})")
        box = self.run(
            f"(() => {{ const b = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [b.x + b.width / 2, b.y + b.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Write into a field in place of what is there, and leave it."""
        self.run(
            f"document.querySelector({selector!r}).focus(); document.querySelector({selector!r}).select()"
        )
        self.call("Input.insertText", text=text)
        self.run(f"document.querySelector({selector!r}).blur()")

    def text(self, selector: str) -> str:
        """What something says."""
        said: str = self.run(f"document.querySelector({selector!r}).textContent")
        return said

    def picture(self, path: Path) -> None:
        """The whole page as PNG."""
        size = self.call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)[
            "data"
        ]
        path.write_bytes(base64.b64decode(data))


@contextlib.contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser with a profile of its own, ended at the end."""
    assert BROWSER is not None
    (theirs_of, to), (of, theirs_to) = os.pipe(), os.pipe()
    high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 20) for fd in (theirs_of, theirs_to)]
    os.close(theirs_of)
    os.close(theirs_to)

    def hand_over() -> None:
        for fd, place in zip(high, (3, 4), strict=True):
            os.dup2(fd, place)

    with (profile.parent / "browser.log").open("wb") as log:
        process = subprocess.Popen(
            [BROWSER, *_FLAGS, f"--user-data-dir={profile}", "about:blank"],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, pass_fds=(3, 4, *high), preexec_fn=hand_over,
        )  # fmt: skip
    for fd in high:
        os.close(fd)
    try:
        yield Browser(process, to, of)
    finally:
        os.close(to)  # it ends when nobody speaks to it any more
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        os.close(of)
