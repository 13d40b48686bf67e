"""A headless Chromium, driven through chromedriver's HTTP interface."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import pytest

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""The key of an element's identifier in the WebDriver protocol."""
LEFT, TAB = "\ue012", "\ue004"


class Browser:
    """One window of a session."""

    def __init__(self, session: str) -> None:
        self.session = session

    def call(self, path: str, body: dict[str, Any] | None = None, *, method: str = "POST") -> Any:
        content = json.dumps(body or {}).encode() if method == "POST" else None
        request = Request(self.session + path, content, {"Content-Type": "application/json"}, method=method)
        # Ignore the proxy of the environment: it cannot reach this machine.
        with build_opener(ProxyHandler({})).open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, path: Path, *, dark: bool = False, width: int = 1280, height: int = 900) -> None:
        """Opens a file in a window of this size."""
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.command("Emulation.setEmulatedMedia", features=scheme)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.command("Emulation.setDeviceMetricsOverride", **size)
        # Leave the page first: with the same address, a busy browser would still answer for the old page.
        self.call("/url", {"url": "about:blank"})
        self.call("/url", {"url": path.as_uri()})
        for _ in range(100):
            if self.run("return document.readyState === 'complete' && location.protocol === 'file:'"):
                return
            time.sleep(0.1)
        pytest.fail(f"{path} was not loaded within ten seconds.")

    def command(self, name: str, **parameters: Any) -> Any:
        return self.call("/goog/cdp/execute", {"cmd": name, "params": parameters})

    def run(self, script: str) -> Any:
        """Runs a script in the page and returns its value."""
        return self.call("/execute/sync", {"script": script, "args": []})

    def press(self, selector: str, keys: str) -> None:
        """Types into an element that has the focus."""
        element = self.call("/element", {"using": "css selector", "value": selector})[ELEMENT]
        self.call(f"/element/{element}/value", {"text": keys})

    def console(self) -> list[str]:
        """The messages and errors of the page since the last call."""
        return [entry["message"] for entry in self.call("/se/log", {"type": "browser"})]


@contextmanager
def headless_chromium(profile: Path) -> Iterator[Browser]:
    """A browser with an empty profile; the test is skipped if no browser is installed."""
    driver, chromium = shutil.which("chromedriver"), shutil.which("chromium")
    if not driver or not chromium:
        pytest.skip("no chromium and chromedriver on the path: install both to test the page in a browser")
    flags = "headless=new no-sandbox disable-gpu disable-quic no-first-run disable-background-networking"
    flags += f" disable-component-update disable-sync user-data-dir={profile}"
    options = {"binary": chromium, "args": [f"--{flag}" for flag in flags.split(" ")]}
    capabilities = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    with subprocess.Popen(
        [driver, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        try:
            assert process.stdout is not None
            lines = (re.search(r"successfully on port (\d+)", line) for line in process.stdout)
            port = next(found[1] for found in lines if found)
            address = f"http://127.0.0.1:{port}/session"
            opened = Browser(address).call("", {"capabilities": {"alwaysMatch": capabilities}})
            browser = Browser(f"{address}/{opened['sessionId']}")
            try:
                yield browser
            finally:
                browser.call("", method="DELETE")
        finally:
            process.terminate()
