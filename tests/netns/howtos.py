"""The pages of docs/howto, run as they are written.

A page is a list of steps: fenced blocks, each with the paragraph before it. The paragraph names the machines in bold,
``On the **office** and the **branch**``, and what the block is follows from its language:

- ``sh``: commands. A shell runs them on each of these machines, up to the first that fails.
- ``text``: lines of what the commands before it have printed; words within a line may have others between them.
- anything else: the content of the file whose absolute path is in the paragraph. ``Add one line to the `server` block``
  inserts it there; ``Add an entry to `clients` `` appends to that list of a JSON file.

A machine is a host of the test with an /etc and a /var of its own. Two things are not as on a reader's machine. There
is no systemd: what ``systemctl`` is told is done by `Machine`, with the command lines, the user and the capabilities of
the unit that the package installs. And the authority of the proxy's certificate is one that the test makes.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import trustme

from tests.harness import ROOT, Host, Process, wait_until
from tests.harness.host import START_S
from tests.harness.recipes import CERTIFICATES, NAME

from .ordinary import PLAIN, add_user, open_to_everybody
from .topologies import STOP_S

PAGES: Final = ROOT / "docs" / "howto"
UNIT: Final = ROOT / "conf" / "systemd" / "tapotun@.service"
AUTHORITY: Final = "/etc/ssl/howto.pem"  # in place of the system's authorities, of which each Python has its own idea
PAGE: Final = "the site as it was\n"
PATIENCE_S: Final = 60.0

UID: Final = 4810  # of the user tapotun
_CAPABILITIES: Final = "-all,+net_admin,+net_bind_service"
_AS_THE_UNIT: Final = (
    *("setpriv", f"--reuid={UID}", f"--regid={UID}", "--clear-groups", "--no-new-privs"),
    *(f"--inh-caps={_CAPABILITIES}", f"--ambient-caps={_CAPABILITIES}", f"--bounding-set={_CAPABILITIES}"),
)

# What `validate-config` and `doctor` find wrong with a page, but for the clock, which is this machine's.
_COMPLAINT: Final = re.compile(r"(?m)^(?:WARNING|FAILURE) +(?!clock)|: warning: ")
_MACHINE: Final = re.compile(r"\*\*([\w -]+)\*\*")
_PATH: Final = re.compile(r"`(/[^`]+)`")
_UNIT_NAME: Final = re.compile(r"tapotun@([\w-]+)")


@dataclass(frozen=True)
class Step:
    """A fenced block of a page."""

    section: str
    paragraph: str  # right before it, on one line
    language: str
    text: str

    @property
    def machines(self) -> list[str]:
        """Those that the paragraph names in bold."""
        return _MACHINE.findall(self.paragraph)

    @property
    def path(self) -> str:
        """The file that the paragraph names."""
        paths: list[str] = _PATH.findall(self.paragraph)
        assert len(paths) == 1, f"{self.paragraph!r} names {paths}"
        return paths[0]


def read_page(name: str) -> list[Step]:
    """The steps of the page with that name, in order. A block without a language is a picture."""
    found: list[Step] = []
    section, was_blank, language = "", False, None
    paragraph: list[str] = []
    block: list[str] = []
    for line in (PAGES / f"{name}.md").read_text(encoding="utf-8").splitlines():
        if language is not None and line != "```":
            block.append(line)
        elif language is not None:
            if language:
                found.append(Step(section, " ".join(paragraph), language, "\n".join([*block, ""])))
            language, paragraph = None, []
        elif line.startswith("```"):
            language, block = line.removeprefix("```"), []
        elif line.startswith("## "):
            section, paragraph = line.removeprefix("## "), []
        elif line and not was_blank:
            paragraph.append(line)
        elif line:
            paragraph = [line]
        was_blank = not line
    return found


class Machine:
    """A host as a reader's machine: the program is installed, and ``systemctl`` starts and reloads services."""

    def __init__(self, host: Host) -> None:
        """Its /etc and /var become its own."""
        self.host = host
        self.services: dict[str, Process] = {}
        self.output = ""
        self._tools = host.tmp / "bin"
        self._tools.mkdir()
        program = self._tools / "tapotun"
        environment = f"PYTHONPATH={ROOT} PYTHONDONTWRITEBYTECODE=1 SSL_CERT_FILE={AUTHORITY}"
        program.write_text(f'#!/bin/sh\nexec env {environment} {shlex.join(PLAIN)} "$@"\n', encoding="utf-8")
        program.chmod(0o755)
        layers = host.tmp / "layers"
        script = f"set -e; mkdir {layers}; mount -t tmpfs layers {layers}; cp /etc/hosts {layers}\n"
        for directory in ("etc", "var"):
            upper, work = layers / directory, layers / f"{directory}.work"
            options = f"lowerdir=/{directory},upperdir={upper},workdir={work}"
            script += f"mkdir {upper} {work}; mount -t overlay -o {options} overlay /{directory}\n"
        # The host's own names were mounted over the file. Nothing of this machine's set-up is used.
        script += f"cp {layers}/hosts /etc/hosts\n"
        script += "rm -rf /etc/tapotun /etc/nginx/sites-enabled/* /etc/nginx/conf.d/*\n"
        script += f"mkdir -m 2750 /etc/tapotun; chown 0:{UID} /etc/tapotun; chmod g+s /etc/tapotun\n"  # as the package
        self.host.run(["sh", "-c", script])
        open_to_everybody(host)
        add_user(host, "tapotun", UID)

    def write(self, path: str, text: str) -> None:
        """Make a file with that content."""
        self.host.run(["sh", "-c", 'mkdir -p "$(dirname "$1")"; printf %s "$2" >"$1"', "sh", path, text])

    def read(self, path: str) -> str:
        """A file's content."""
        return self.host.run(["cat", path]).stdout

    def insert(self, path: str, begin: str, text: str) -> None:
        """Put lines right behind the first line that begins with those words (the opening of a block)."""
        before, line, after = re.split(rf"(?m)^([ \t]*{re.escape(begin)}.*\n)", self.read(path), maxsplit=1)
        self.write(path, before + line + text + after)

    def append(self, path: str, key: str, entry: Any) -> None:
        """Append to a list of the first interface of a config."""
        config = json.loads(self.read(path))
        config[0][key].append(entry)
        self.write(path, json.dumps(config, indent=2))

    def shell(self, script: str, *, check: bool = True) -> str:
        """Run commands as a reader pastes them. Returns what they print; so does `output` then.

        Raises CommandError, with the output, at the first that fails.
        """
        self.output = ""
        for systemctl, lines in _split(script):
            if systemctl:
                self._systemctl(shlex.split(lines))
                continue
            search = f"PATH={self._tools}:$PATH\n"
            done = self.host.run(["sh", "-ec", f"exec 2>&1\n{search}{lines}"], timeout=PATIENCE_S, check=check)
            self.output += done.stdout
        return self.output

    def _systemctl(self, argv: Sequence[str]) -> None:
        """``systemctl enable --now X``, ``reload X``, ``restart X`` or ``stop X`` (also as ``disable --now X``)."""
        verb, unit = argv[1], argv[-1]
        if verb in ("disable", "stop", "restart"):
            process = self.services.pop(unit)
            assert process.stop(STOP_S) == 0 or not unit.startswith("tapotun@"), process.tail()
        if verb in ("enable", "restart"):
            assert unit not in self.services, f"{unit} runs"
            self.services[unit] = self._start(unit)
        elif verb == "reload":
            before = self._workers(unit)
            self.shell(_command_of(unit, "ExecReload"))
            # nginx goes on when the signal is sent. Without streams, an old worker ends when the new ones listen.
            wait_until(lambda: unit != "nginx" or not before & self._workers(unit), START_S, "nginx to have reloaded")
        else:
            assert verb in ("disable", "stop"), argv

    def _start(self, unit: str) -> Process:
        argv = shlex.split(_command_of(unit, "ExecStart"))
        env = {"HOME": str(self.host.tmp)}
        if named := _UNIT_NAME.fullmatch(unit):
            run_directory = f"/run/tapotun/{named[1]}"
            self.host.run(["install", "-d", "-o", str(UID), "-g", str(UID), run_directory])
            env["RUNTIME_DIRECTORY"] = run_directory
            argv = [*_AS_THE_UNIT, str(self._tools / argv[0]), *argv[1:]]
        process = self.host.start(argv, name=unit.replace("@", "-"), env=env)
        if unit.startswith("tapotun@"):
            process.wait_for_log("started: ", START_S)  # Type=notify, but for a client whose server does not answer
        else:
            self.host.wait_for_listener(443, START_S, by=process)
        return process

    def _workers(self, unit: str) -> set[str]:
        pid = self.services[unit].pid
        return set(Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split())

    def log(self, unit: str) -> str:
        """What a service has logged, in all its runs."""
        name = f"{self.host.name}/{unit.replace('@', '-')}"
        return "".join(process.log for process in self.host.processes if process.name == name)

    def stop(self, pattern: str = "") -> None:
        """Stop every service that still runs and whose name begins so. Raises ProcessError if one has ended by itself,
        and AssertionError if one of ours fails at its end."""
        for unit in [it for it in self.services if it.startswith(pattern)]:
            process = self.services.pop(unit)
            process.check_running()
            code = process.stop(10)
            assert code == 0 or not unit.startswith("tapotun@"), process.tail()


def _split(script: str) -> Iterator[tuple[bool, str]]:
    """The lines of a script, those with systemctl by themselves."""
    for systemctl, lines in re.findall(r"(?m)(^systemctl .*\n)|((?:^(?!systemctl ).*\n)+)", script):
        yield bool(systemctl), systemctl or lines


def _command_of(unit: str, key: str) -> str:
    """A command line of a service: that of the unit which the package installs, and those of Debian's proxies."""
    if named := _UNIT_NAME.fullmatch(unit):
        (line,) = re.findall(rf"(?m)^{key}=/usr/bin/(.*)$", UNIT.read_text(encoding="utf-8"))
        return str(line).replace("%i", named[1]) + "\n"
    return {
        ("nginx", "ExecStart"): "nginx -g 'daemon off; master_process on;'",
        ("nginx", "ExecReload"): "nginx -s reload\n",
        ("caddy", "ExecStart"): "caddy run --environ --config /etc/caddy/Caddyfile",
        ("caddy", "ExecReload"): "caddy reload --config /etc/caddy/Caddyfile --force\n",
    }[unit, key]


class Reader:
    """Somebody who does what a page says."""

    def __init__(self, machines: Mapping[str, Machine]) -> None:
        """``machines`` by the names that the page has in bold."""
        self.machines = machines
        self._last: list[Machine] = []

    def follow(self, steps: Sequence[Step]) -> None:
        """Do these steps. Raises what `Machine.shell` does, and AssertionError if a command prints something else."""
        for step in steps:
            print(f"{step.paragraph}\n{step.text}")
            if step.language == "text":
                self._compare(step.text)
                continue
            assert step.machines, f"no machine in {step.paragraph!r}"
            self._last = [self.machines[name] for name in step.machines]
            for machine in self._last:
                self._do(machine, step)

    def _do(self, machine: Machine, step: Step) -> None:
        if step.language == "sh":
            print(machine.shell(step.text))
            assert not _COMPLAINT.search(machine.output), machine.output
        elif added := re.search(r"\badd an entry to `(\w+)`", step.paragraph, re.IGNORECASE):
            machine.append(step.path, added[1], json.loads(step.text))
        elif block := re.search(r"\badd one line to the `(\w+)` block", step.paragraph, re.IGNORECASE):
            machine.insert(step.path, f"{block[1]} {{", step.text)
        else:
            machine.write(step.path, step.text)

    def _compare(self, text: str) -> None:
        for machine in self._last:
            for line in text.splitlines():
                words = ".*".join(re.escape(word) for word in line.split())
                assert re.search(words, machine.output), f"{line!r} is not in\n{machine.output}"


@contextmanager
def reader(hosts: Mapping[str, Host]) -> Iterator[Reader]:
    """A reader with a machine in place of each of these hosts. Its services are stopped at the end.

    Raises ProcessError or AssertionError if one has ended by itself, or does not stop.
    """
    machines = {name: Machine(host) for name, host in hosts.items()}
    yield Reader(machines)
    for machine in reversed(machines.values()):  # the clients come last
        machine.stop("tapotun@")
    for machine in machines.values():
        machine.stop()  # proxies, now that their streams have ended: Caddy waits for that


# ------------------------------------------------------------------ what the machines have before a page begins

SITE: Final = f"""server {{
    listen 443 ssl;
    listen [::]:443 ssl;
    server_name {NAME};
    ssl_certificate     {CERTIFICATES}/fullchain.pem;
    ssl_certificate_key {CERTIFICATES}/privkey.pem;
    root /var/www/html;
}}
"""


def certify(server: Machine, *clients: Machine) -> None:
    """A certificate for the name, from an authority that all these machines trust."""
    authority = trustme.CA()
    leaf = authority.issue_cert(NAME)
    chain = "".join(pem.bytes().decode() for pem in leaf.cert_chain_pems)
    server.write(f"{CERTIFICATES}/fullchain.pem", chain)
    server.write(f"{CERTIFICATES}/privkey.pem", leaf.private_key_pem.bytes().decode())
    for machine in (server, *clients):
        machine.write(AUTHORITY, authority.cert_pem.bytes().decode())


def serve_site(server: Machine) -> None:
    """A website on nginx, as Debian sets one up."""
    server.write("/var/www/html/index.html", PAGE)
    server.write(f"/etc/nginx/sites-available/{NAME}", SITE)
    server.shell(f"ln -s ../sites-available/{NAME} /etc/nginx/sites-enabled/\nsystemctl enable --now nginx\n")


def serve_tunnel(server: Machine, *clients: Machine) -> None:
    """That website with the lines of the page on nginx: what the other pages begin with."""
    certify(server, *clients)
    serve_site(server)
    Reader({"server": server}).follow([step for step in read_page("behind-nginx") if step.section == "nginx"])
