"""A server whose panel is open in a browser on the server's own machine, and a client of it."""

from __future__ import annotations

import hashlib
import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from tests.harness import Host, Lab, Process, command, tapotun, wait_until
from tests.harness.browser import Browser, browser

from .topologies import UPLOADING, Config, allowed, cable, client_config, running, server_config, token

ADMIN: Final = "127.0.0.1:9100"
ORIGIN: Final = f"http://{ADMIN}"
PATIENCE_S: Final = 60.0
DATAGRAM_BYTES: Final = 1300
STEP_S: Final = 0.02
DESKTOP: Final = (1280, 900)
PHONE: Final = (360, 740)

# What the browser itself says of an answer that is no success, or of none. A panel cannot keep it from that.
_OF_THE_NETWORK: Final = "network"


@dataclass
class Station:
    """`file` is the server's config, which may be written anew; `daemon` the server's process, and the latest one where
    it was started again."""

    server: Host
    client: Host
    file: Path
    daemon: Process
    window: Browser

    def write(self, *entries: Config, **root_fields: Any) -> None:
        """Have the server's config hold these interfaces, the admin listener, and these fields of the root."""
        write_config(self.file, *entries, **root_fields)

    def start(self) -> None:
        """Start the server again."""
        self.daemon = tapotun(self.server, self.file, "--name", "hub")
        self.daemon.wait_for_log("started: ")

    def log_in(self, name: str = "admin") -> None:
        """On the page that is open, until it is live. ``name``: ``reader`` takes the read-only token."""
        self.window.write("#token", token(name))
        self.window.click("#login-button")
        self.wait_until_live()

    def wait_until_live(self) -> None:
        self.window.wait("document.documentElement.dataset.link === 'live'")
        self.window.wait("!document.getElementById('main').hidden")

    def status(self) -> Config:
        """What `tapotun status --json` says of the server's process."""
        answer = self.server.run([*command(), "status", "--json"], timeout=PATIENCE_S)
        [found] = json.loads(answer.stdout)["processes"]
        assert isinstance(found, dict)
        return found

    def wait_for_status(self, holds: Callable[[Config], bool]) -> Config:
        """The status as soon as that holds."""

        def look() -> Config | None:
            found = self.status()
            return found if holds(found) else None

        return wait_until(look, PATIENCE_S, "that status", lambda: json.dumps(self.status(), indent=1))

    def assert_clean(self, place: str = ADMIN, *, network: tuple[str, ...] = ()) -> None:
        """Nothing went wrong in the browser, and it has talked to nobody but the panel.

        `place`: an address that the panel came from, besides the one where the station opened it first.
        `network`: words. One of them is in each line that the browser itself writes about an answer.
        """
        of_the_page = [
            message for message in self.window.messages() if not message.text.startswith(("chrome://", "about:"))
        ]
        unexpected = [
            message
            for message in of_the_page
            if message.source != _OF_THE_NETWORK or not any(word in message.text for word in network)
        ]
        assert unexpected == []
        assert self.window.violations() == []
        requests = self.window.requests()
        assert f"ws://{place}/api/live" in requests
        assert {urlsplit(url).netloc for url in requests} == {ADMIN, place}


def peer_of(status: Config, number: int = 0) -> Config:
    """A peer of its first interface."""
    found = status["interfaces"][0]["peers"][number]
    assert isinstance(found, dict)
    return found


def write_config(file: Path, *entries: Config, **root_fields: Any) -> None:
    """Those interfaces and the admin listener, in a file that only we can read."""
    admin = {"listen": ADMIN, "token": _hash("admin"), "read_token": _hash("reader")}
    root = {"interfaces": entries, "admin": admin, **root_fields}
    file.touch(mode=0o600)
    file.write_text(json.dumps(root, indent=2), encoding="utf-8")


def _hash(name: str) -> str:
    return f"sha256:{hashlib.sha256(token(name).encode()).hexdigest()}"


@contextmanager
def station(lab: Lab, *clients: Config, **fields: Any) -> Iterator[Station]:
    """The client laptop is connected, and the panel shows its login."""
    server, client = cable(lab)
    file = server.tmp / "hub.json"
    write_config(file, server_config(*(clients or (allowed("laptop"),)), keepalive=1, **fields))
    daemon = tapotun(server, file, "--name", "hub")
    daemon.wait_for_log("started: ")
    with running(client, client_config(), until=UPLOADING), browser(server) as window:
        window.look(DESKTOP)
        window.open(f"{ORIGIN}/")
        window.wait("!document.getElementById('login').hidden")
        made = Station(server, client, file, daemon, window)
        yield made
        if made.daemon.running:
            assert made.daemon.stop() == 0, made.daemon.tail()


@contextmanager
def tide(host: Host, address: str, *, mbit_s: float, period_s: float) -> Iterator[None]:
    """UDP datagrams to an address while the body runs, at a rate that comes and goes around a mean."""
    ended = threading.Event()

    def send() -> None:
        owed = 0.0
        with host.socket(kind=socket.SOCK_DGRAM) as sock:
            while not ended.wait(STEP_S):
                swell = 1 + 0.6 * math.sin(2 * math.pi * time.monotonic() / period_s)
                owed += mbit_s * 1e6 / 8 * swell * STEP_S
                while owed > 0:
                    owed -= DATAGRAM_BYTES
                    with suppress(OSError):  # the tunnel may be away for a moment
                        sock.sendto(bytes(DATAGRAM_BYTES), (address, 9))

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
