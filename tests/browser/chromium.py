"""Chromium without a window, by its DevTools protocol over two pipes: no package and no port."""

import fcntl
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
# Chromium reads commands from its file 3 and writes answers to its file 4.
LAUNCH = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
OPTIONS = (
    "--headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars "
    "--disable-background-networking --no-first-run --remote-debugging-pipe"
)


def binary() -> str | None:
    """The path of a Chromium or Chrome, if one is at hand."""
    wanted = os.environ.get("CHROMIUM")
    return wanted or next((found for name in NAMES if (found := shutil.which(name))), None)


class Gone(RuntimeError):
    """Chromium ended, hangs, or lost its page to a crash: often no fault of the page."""


class Chromium:
    """One browser with one page. `events` are those since the page was opened."""

    def __init__(self, program: str, patience: float = 90) -> None:
        self.program, self.patience, self.events = program, patience, []
        self._start()

    def _start(self) -> None:
        self._rest, self._count, self.session = b"", 0, {}
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._log = Path(self._profile.name, "log")
        read, self._out = os.pipe()
        self._in, write = os.pipe()
        high = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (read, write)]
        folder = f"--user-data-dir={self._profile.name}"
        words = [self.program, *OPTIONS.split(), folder, "about:blank"]
        launch = [sys.executable, "-c", LAUNCH, *map(str, high), *words]
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(launch, pass_fds=high, stdout=log, stderr=log)
        for fd in (read, write, *high):
            os.close(fd)
        target = self("Target.createTarget", url="about:blank")["targetId"]
        attached = self("Target.attachToTarget", targetId=target, flatten=True)
        self.session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network", "Inspector"):
            self(f"{domain}.enable")
        self("Network.setCacheDisabled", cacheDisabled=False)

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        """The answer to a command of the protocol."""
        self._count += 1
        command = {"id": self._count, "method": method, "params": params, **self.session}
        try:
            os.write(self._out, json.dumps(command).encode() + b"\0")
        except BrokenPipeError:
            raise self._gone("Chromium ended by itself") from None
        for message in self._messages():
            if message.get("id") == self._count:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.events.append(message)
        raise self._gone(f"{method}: no answer of Chromium in {self.patience} s")

    def open(self, url: str, width: int, dark: bool = False) -> None:
        """Load a page, and wait for its formulas and fonts."""
        self.events.clear()
        size = {"width": width, "height": 820, "deviceScaleFactor": 1, "mobile": width < 600}
        self("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self("Page.navigate", url=url)
        self._wait("Page.loadEventFired")
        self.value(
            "window.MathJax?.startup?.promise.then(() => document.fonts.ready).then(() => 0)"
        )
        self.value("new Promise(resolve => setTimeout(resolve, 250))")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression, or its promise, gives."""
        wanted = {"awaitPromise": True, "returnByValue": True}
        given = self("Runtime.evaluate", expression=expression, **wanted)
        if "exceptionDetails" in given:
            raise RuntimeError(given["exceptionDetails"]["exception"]["description"])
        return given["result"].get("value")

    def restart(self) -> None:
        """A fresh browser in the place of this one, which may be dead or deaf."""
        self.close()
        self._start()

    def close(self) -> None:
        self.process.kill()
        self.process.wait(20)
        os.close(self._in)
        os.close(self._out)
        self._profile.cleanup()

    def _wait(self, event: str) -> None:
        if any(message.get("method") == event for message in self.events):
            return
        for message in self._messages():
            self.events.append(message)
            if message.get("method") == event:
                return
        raise self._gone(f"{event} did not come in {self.patience} s")

    def _gone(self, what: str) -> Gone:
        said = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return Gone("\n".join([what, *(f"  it said: {line}" for line in said[-3:])]))

    def _messages(self) -> Iterator[dict[str, Any]]:
        """Messages as they come, until patience ends."""
        end = time.monotonic() + self.patience
        while (left := end - time.monotonic()) > 0:
            while b"\0" in self._rest:
                text, _, self._rest = self._rest.partition(b"\0")
                message = json.loads(text)
                if message.get("method") == "Inspector.targetCrashed":
                    raise self._gone("the page crashed")
                yield message
            if select.select([self._in], [], [], left)[0]:
                self._rest += (read := os.read(self._in, 1 << 20))
                if not read:
                    raise self._gone("Chromium ended by itself")
