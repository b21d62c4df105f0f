"""The proxies of conf/proxies, started with the very files that the project ships.

    with recipe("nginx", server) as proxy:         # conf/proxies/nginx/nginx.conf
        client.run(["curl", "--cacert", proxy.ca_file, ...])
        proxy.reload()

A host has its own mounts, so /run and the logs of Debian's packages are the host's own and the files need no change
for them; ports are free anyway. What is replaced are words that the files document as what an operator replaces: the
directory of the certificate, and the words that the test gives; each of them must be in the file.
"""

from __future__ import annotations

import signal
import ssl
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import ClassVar, Final, Self

import trustme

from .daemon import ROOT
from .errors import HarnessError, WaitError, wait_until
from .host import START_S, Host
from .process import Process

PROXIES: Final = ROOT / "conf" / "proxies"
NAME: Final = "vpn.example.com"
CERTIFICATES: Final = f"/etc/ssl/{NAME}"


class Proxy(ABC):
    """One of them in a host. A context manager: started, and stopped at the end, or by hand meanwhile."""

    name: ClassVar[str]
    file: ClassVar[str]  # the recipe's default
    log_directory: ClassVar[str | None] = None  # of Debian's package; None: it logs to its standard output
    state_directory: ClassVar[str | None] = None
    run_directory: ClassVar[str | None] = None  # which Debian's unit makes
    stop_timeout_s: ClassVar[float] = 20.0  # Apache gives its own workers ten

    def __init__(self, host: Host, file: str | None = None, replace: Mapping[str, str] | None = None) -> None:
        """``file`` is its name next to the default one; ``replace`` maps words of it to others.

        Raises HarnessError if a word is not there: the recipe no longer says what the test changes.
        """
        self.host = host
        self.directory = host.tmp / self.name
        self.directory.mkdir()
        self.logs = self.directory / "log"
        self.ca_file = self.directory / "ca.pem"
        self._issue_certificate()
        text = (PROXIES / self.name / (file or self.file)).read_text(encoding="utf-8")
        for old, new in {CERTIFICATES: str(self.directory), **(replace or {})}.items():
            if old not in text:
                raise HarnessError(f"{self.name}: no {old!r} in {file or self.file}")
            text = text.replace(old, new)
        self.config = self.directory / self.file
        self.config.write_text(text, encoding="utf-8")
        self.process: Process

    def _issue_certificate(self) -> None:
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca_file)
        leaf = authority.issue_cert(NAME)
        leaf.private_key_pem.write_to_path(self.directory / "privkey.pem")
        for chain in leaf.cert_chain_pems:
            chain.write_to_path(self.directory / "fullchain.pem", append=True)
        leaf.private_key_and_cert_chain_pem.write_to_path(self.directory / "haproxy.pem")

    # What differs

    @abstractmethod
    def argv(self) -> Sequence[str | Path]:
        """The command that runs it in the foreground, as Debian's unit runs it."""

    @abstractmethod
    def _reload(self) -> None:
        """Have it read its file again, as Debian's unit does."""

    # What does not

    def start(self) -> None:
        """Start it, and wait until it listens. Raises ProcessError or WaitError, with its log."""
        self.process = self.host.start(self.argv(), name=self.name, env={"HOME": str(self.directory)})
        self.host.wait_for_listener(443, START_S, by=self.process)
        self.wait_until_answering()

    def reload(self) -> None:
        """Have it read its file again, and wait until it has."""
        self._reload()
        self.wait_until_answering()

    def stop(self) -> None:
        """As `systemctl stop`: SIGTERM, and SIGKILL after the time that Debian's unit gives it."""
        with suppress(WaitError):  # it was killed then
            self.process.stop(self.stop_timeout_s)
        self.process.close()

    def restart(self) -> None:
        """As `systemctl restart`."""
        self.stop()
        self.start()

    def wait_until_answering(self) -> None:
        """Until somebody at the port answers a TLS handshake. Raises WaitError."""
        context = ssl.create_default_context(cafile=str(self.ca_file))

        def probe() -> bool:
            self.process.check_running()
            with self.host.socket() as sock:
                sock.settimeout(2)
                try:
                    sock.connect(("127.0.0.1", 443))
                    with context.wrap_socket(sock, server_hostname=NAME):
                        return True
                except OSError:
                    return False

        wait_until(probe, START_S, f"{self.name} to answer", self.process.tail)

    def access_log(self) -> str:
        """Everything that it logged, errors included, of all its runs."""
        words = [process.log for process in self.host.processes if process.name == f"{self.host.name}/{self.name}"]
        if self.log_directory is not None:
            words += [file.read_text(encoding="utf-8") for file in sorted(self.logs.iterdir())]
        return "\n".join(words)

    def __enter__(self) -> Self:
        self._mount()
        self.start()
        return self

    def _mount(self) -> None:
        """Directories of Debian's packages that it writes to become the host's own."""
        self.host.run(["mount", "-t", "tmpfs", "tmpfs", "/run"])
        if self.run_directory is not None:
            self.host.run(["mkdir", self.run_directory])
        for path, real in ((self.log_directory, self.logs), (self.state_directory, self.directory / "state")):
            if path is not None:
                real.mkdir()
                self.host.run(["mount", "--bind", real, path])

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.running:
            self.stop()
        self.process.__exit__(kind, error, traceback)  # raises if it had ended by itself


class Nginx(Proxy):
    """nginx, its master and its workers."""

    name = "nginx"
    file = "nginx.conf"
    log_directory = "/var/log/nginx"
    state_directory = "/var/lib/nginx"

    def argv(self) -> Sequence[str | Path]:
        return ["nginx", "-c", self.config, "-g", "daemon off;"]

    def _reload(self) -> None:
        self.process.signal(signal.SIGHUP)


class Caddy(Proxy):
    """Caddy, one process; it reloads on a request to its admin socket on loopback."""

    name = "caddy"
    file = "Caddyfile"
    stop_timeout_s = 5.0  # it waits for its streams' ends, and Debian's unit does not wait longer for it

    def argv(self) -> Sequence[str | Path]:
        return ["caddy", "run", "--config", self.config, "--adapter", "caddyfile"]

    def _reload(self) -> None:
        self.host.run(["caddy", "reload", "--config", self.config, "--adapter", "caddyfile", "--force"], timeout=30)


class HAProxy(Proxy):
    """HAProxy, master and worker."""

    name = "haproxy"
    file = "haproxy.cfg"

    def argv(self) -> Sequence[str | Path]:
        return ["haproxy", "-W", "-db", "-f", self.config]

    def _reload(self) -> None:
        self.process.signal(signal.SIGUSR2)


class Apache(Proxy):
    """Apache httpd with its event MPM."""

    name = "apache"
    file = "apache2.conf"
    log_directory = "/var/log/apache2"
    run_directory = "/run/apache2"

    def argv(self) -> Sequence[str | Path]:
        return ["apache2", "-f", self.config, "-DFOREGROUND"]

    def _reload(self) -> None:
        self.process.signal(signal.SIGUSR1)


RECIPES: Final[dict[str, type[Proxy]]] = {kind.name: kind for kind in (Nginx, Caddy, HAProxy, Apache)}
