"""Chromium without a window, told what to do over two pipes (the DevTools protocol)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

LOCAL = ("file:", "data:")
CHROMIUM = shutil.which("chromium")


class Browser:
    """One browser with one page; `errors` are what it complained about since the page was opened."""

    def __init__(self, profile: Path) -> None:
        (theirs_in, self.out), (self.into, theirs_out) = os.pipe(), os.pipe()
        # The browser reads file 3 and writes file 4.
        redirect = 'exec "$@" 3<&"$IN" 4>&"$OUT"'
        flags = ["--headless=new", "--no-sandbox", "--remote-debugging-pipe", "--disable-gpu"]
        command = [str(CHROMIUM), *flags, f"--user-data-dir={profile}", "about:blank"]
        environment = {**os.environ, "IN": str(theirs_in), "OUT": str(theirs_out)}
        self.process = subprocess.Popen(
            ["bash", "-c", redirect, "-", *command],
            pass_fds=(theirs_in, theirs_out),
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.rest, self.number, self.session, self.errors = b"", 0, "", list[str]()
        (target,) = (t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.out, json.dumps(message).encode() + b"\0")
        while (answer := self._receive()).get("id") != self.number:
            pass
        assert "error" not in answer, answer
        return answer["result"]

    def _receive(self) -> Any:
        while b"\0" not in self.rest:
            part = os.read(self.into, 1 << 16)
            assert part, "the browser has ended"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        event = json.loads(message)
        method, given = event.get("method"), event.get("params", {})
        if method == "Log.entryAdded" and given["entry"]["level"] == "error":
            self.errors.append(given["entry"]["text"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(given["exceptionDetails"]))
        elif method == "Network.requestWillBeSent" and not given["request"]["url"].startswith(LOCAL):
            self.errors.append(f"asked for {given['request']['url']}")
        return event

    def open(self, file: Path) -> None:
        self.errors.clear()
        self.call("Page.navigate", url=file.resolve().as_uri())
        self.run("new Promise((done) => (document.readyState === 'complete' ? done() : (onload = done)))")

    def run(self, script: str) -> Any:
        """The value of an expression in the page, or of the promise that it is."""
        done = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def close(self) -> None:
        self.call("Browser.close")
        self.process.wait(timeout=30)
        os.close(self.out)
        os.close(self.into)
