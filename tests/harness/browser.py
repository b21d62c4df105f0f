"""A real browser inside a host: headless Chromium, driven by chromedriver over the WebDriver protocol (W3C).

The client is our own and not Selenium, for it needs only a few commands, each one HTTP request with JSON in it, and
these must be made from inside the host, where nothing of this machine listens: a socket of the host's does that.
"""

from __future__ import annotations

import base64
import http.client
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .errors import HarnessError, wait_until
from .host import Host
from .process import Process

PORT: Final = 9515
ANSWER_S: Final = 120.0  # of the driver; the first one is the browser's start
WAIT_S: Final = 60.0  # for what a page is to show: no promise of a speed, the machine may be busy
STOP_S: Final = 20.0
PAGE_CHARS: Final = 4000  # so much of a page is in an error

# As root in a namespace there is no sandbox to be had; the rest keeps it from talking to anybody but the page's server.
_ARGUMENTS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)
_ELEMENT: Final = "element-6066-11e4-a52e-4f735466cecf"  # WebDriver 12.1: what marks an element in JSON
# Told to the page before its own scripts; the driver's scripts are not subject to its policy.
_WITNESS: Final = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective}: ${event.blockedURI} ${event.sourceFile}:${event.lineNumber}`));
"""


class BrowserError(HarnessError):
    """The driver has refused a command, or a server has answered with an error.

    `kind` is WebDriver's name for why, or ``status`` and the number.
    """

    def __init__(self, command: str, kind: str, text: str) -> None:
        """As the driver answered."""
        super().__init__(f"{command}: {kind}: {text}")
        self.kind = kind


@dataclass(frozen=True)
class Message:
    """A line of the browser's console: `source` is its part of the browser (console-api, javascript, security,
    network, ...)."""

    level: str
    source: str
    text: str


class Browser:
    """One window. What a command refers to it finds by a CSS selector, anew each time."""

    def __init__(self, host: Host, driver: Process) -> None:
        """`driver`: a chromedriver that listens on `PORT` of the host."""
        self._host = host
        self._driver = driver
        self._session = ""
        self._messages: list[Message] = []
        self._requests: list[str] = []

    def start(self, profile: Path) -> None:
        """Start Chromium with a new profile in that directory."""
        options = {"args": [*_ARGUMENTS, f"--user-data-dir={profile}"], "binary": shutil.which("chromium")}
        wanted = {
            "browserName": "chrome",
            "goog:chromeOptions": options,
            "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
        }
        answer = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{answer['sessionId']}"
        self.devtools("Page.addScriptToEvaluateOnNewDocument", source=_WITNESS)
        self.open("about:blank")
        self._command("se/log", {"type": "performance"})  # what the browser's own first page asked for

    def quit(self) -> None:
        """End Chromium."""
        self._ask("DELETE", self._session)

    # What an operator does

    def open(self, url: str) -> None:
        """Go there, until the page is loaded. Raises BrowserError if the server has answered with an error."""
        self._command("url", {"url": url})
        status = self.script("return performance.getEntriesByType('navigation')[0]?.responseStatus ?? 0")
        if status >= http.client.BAD_REQUEST:  # 0: not by HTTP
            raise BrowserError(f"open {url}", f"status {status}", self.script("return document.body.innerText"))

    def click(self, css: str) -> None:
        """Click on what is there, in sight and not covered, as soon as it is so. Raises WaitError."""

        # The driver would scroll only until it is barely in sight, which may be below something that stays on top.
        def act(element: str) -> None:
            self.script("arguments[0].scrollIntoView({block: 'center'})", {_ELEMENT: element})
            self._command(f"element/{element}/click", {})

        self._patiently(css, act)

    def write(self, css: str, text: str) -> None:
        """Have an input field hold that text."""
        self._patiently(css, lambda element: self._command(f"element/{element}/clear", {}))
        self._patiently(css, lambda element: self._command(f"element/{element}/value", {"text": text}))

    def choose(self, css: str, text: str) -> None:
        """Choose the option of a select with that text, as a click does."""
        find = "return [...document.querySelector(arguments[0]).options].find((it) => it.text === arguments[1])"
        option = wait_until(lambda: self.script(find, css, text), WAIT_S, f"{text!r} in {css}", self.page)
        self._command(f"element/{option[_ELEMENT]}/click", {})

    def press(self, css: str, keys: str) -> None:
        """Press keys in an element (WebDriver 17.4.2: ``\\ue007`` is Enter)."""
        self._patiently(css, lambda element: self._command(f"element/{element}/value", {"text": keys}))

    def keys(self, keys: str) -> None:
        """Press and release keys, one after the other, wherever the focus is."""
        strokes = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._command("actions", {"actions": [{"type": "key", "id": "keyboard", "actions": strokes}]})

    # What an operator sees

    def text(self, css: str) -> str:
        """What is to be read there; nothing, if it is hidden or not there."""
        found = self.script(
            "const it = document.querySelector(arguments[0]); return it && it.checkVisibility() ? it.innerText : ''",
            css,
        )
        assert isinstance(found, str)
        return found

    def script(self, body: str, *arguments: Any) -> Any:
        """What a function with that body returns, called in the page."""
        return self._command("execute/sync", {"script": body, "args": list(arguments)})

    def wait(self, condition: str, *arguments: Any, timeout: float = WAIT_S) -> Any:
        """Wait until a JavaScript expression is true; its value. Raises WaitError, with what the page shows."""
        return wait_until(
            lambda: self.script(f"return {condition}", *arguments), timeout, f"{condition} {arguments}", self.page
        )

    def wait_for_text(self, css: str, text: str, timeout: float = WAIT_S) -> None:
        """Wait until that text is to be read there. Raises WaitError, with what the page shows."""
        wait_until(lambda: text in self.text(css), timeout, f"{text!r} in {css}", self.page)

    def page(self) -> str:
        """All that is to be read on the page, and the console's lines."""
        lines = [str(self.script("return document.body.innerText"))[:PAGE_CHARS], *map(str, self.messages())]
        return "\n".join(lines)

    def look(self, size: tuple[int, int], *, dark: bool = False) -> None:
        """Be a screen of that width and height in CSS pixels, and of that colour scheme."""
        width, height = size
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", **screen)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.devtools("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, file: Path) -> None:
        """What the screen shows, as a PNG."""
        file.write_bytes(base64.b64decode(self._command("screenshot")))

    # What the browser noticed

    def messages(self) -> list[Message]:
        """The console's lines since the start."""
        for entry in self._command("se/log", {"type": "browser"}):
            self._messages.append(Message(entry["level"], entry["source"], entry["message"]))
        return list(self._messages)

    def violations(self) -> list[str]:
        """Of the Content-Security-Policy, by the page that is open."""
        return list(self.script("return window.violations"))

    def requests(self) -> list[str]:
        """The URL of every request and every WebSocket since the start."""
        for entry in self._command("se/log", {"type": "performance"}):
            message = json.loads(entry["message"])["message"]
            if message["method"] == "Network.requestWillBeSent":
                self._requests.append(message["params"]["request"]["url"])
            elif message["method"] == "Network.webSocketCreated":
                self._requests.append(message["params"]["url"])
        return list(self._requests)

    def devtools(self, command: str, **parameters: Any) -> Any:
        """A command of the DevTools protocol."""
        return self._command("goog/cdp/execute", {"cmd": command, "params": parameters})

    # The protocol

    def _patiently(self, css: str, act: Callable[[str], object]) -> None:
        """Do it to the element as soon as it can be done. Between the look for it and the act the page may change."""
        why = [""]

        def attempt() -> bool:
            try:
                act(self._command("element", {"using": "css selector", "value": css})[_ELEMENT])
            except BrowserError as exc:
                why[0] = str(exc)
                return False
            return True

        wait_until(attempt, WAIT_S, f"{css} to be usable", lambda: f"{why[0]}\n{self.page()}")

    def _command(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return self._ask("GET" if body is None else "POST", f"{self._session}/{path}", body)

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", PORT)
        with self._host.socket() as sock:
            sock.settimeout(ANSWER_S)
            sock.connect(("127.0.0.1", PORT))
            connection.sock = sock
            connection.request(method, path, None if body is None else json.dumps(body))
            answer = connection.getresponse()
            content = json.loads(answer.read())["value"]
        if answer.status != http.client.OK:
            self._driver.check_running()
            raise BrowserError(f"{method} {path}", content["error"], content["message"])
        return content


@contextmanager
def browser(host: Host) -> Iterator[Browser]:
    """A browser on a host, and nothing of it afterwards."""
    home = host.tmp / "browser"
    home.mkdir()
    places = {"HOME": home, "XDG_CONFIG_HOME": home, "XDG_CACHE_HOME": home, "TMPDIR": home}
    environment = {**{name: str(place) for name, place in places.items()}, "TZ": "UTC"}
    with host.start(["chromedriver", f"--port={PORT}", "--log-level=WARNING"], env=environment, cwd=home) as driver:
        host.wait_for_listener(PORT, by=driver)
        window = Browser(host, driver)
        window.start(home / "profile")
        try:
            yield window
        finally:
            window.quit()
        driver.stop(STOP_S)
