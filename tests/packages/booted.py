"""A Debian that has booted: the real systemd as PID 1 of a container, with a network of its own.

systemd-nspawn makes it. It is told neither to register the container nor to make a unit for it, since this machine may
run without systemd.
"""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.harness import CommandError, wait_until

from .chroot import PATH, Chroot

BOOT_S: Final = 120.0
STOP_S: Final = 30.0
COMMAND_S: Final = 60.0
OTHER_DEVICE: Final = "loop-control"
"""In its /dev, for everybody to open; nothing that our unit has a use for."""


class Booted:
    """A booted Debian. `debian.root` is its root directory."""

    def __init__(self, debian: Chroot, nspawn: int) -> None:
        """`nspawn`: the PID of systemd-nspawn."""
        self.debian = debian
        self._nspawn = nspawn

    @property
    def leader(self) -> int:
        """The PID of its systemd on this machine; 0 before it has one."""
        children = Path(f"/proc/{self._nspawn}/task/{self._nspawn}/children").read_text(encoding="ascii").split()
        return int(children[0]) if children else 0

    def run(
        self, command: Sequence[str | Path], *, check: bool = True, timeout: float = COMMAND_S, stdin: str = ""
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in there as root. Raises CommandError if it fails, unless `check` is false."""
        environment = ["env", "-i", f"PATH={PATH}", "LC_ALL=C.UTF-8", "HOME=/root"]
        done = subprocess.run(
            ["nsenter", f"--target={self.leader}", "--all", *environment, *map(str, command)],
            check=False,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise CommandError(
                f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def out(self, *command: str | Path) -> str:
        """What a command writes to its standard output. Raises CommandError if it fails."""
        return self.run(command).stdout

    def journal(self, unit: str) -> str:
        """What a unit has logged since the boot, with what systemd says about it."""
        return self.out("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")

    def show(self, unit: str, name: str) -> str:
        """A property of a unit, as `systemctl show` has it."""
        return self.out("systemctl", "show", f"--property={name}", "--value", unit).strip()

    def pid(self, unit: str) -> int:
        """The PID of a service's main process, in there."""
        return int(self.show(unit, "MainPID"))

    def is_active(self, unit: str) -> bool:
        return self.run(["systemctl", "is-active", "--quiet", unit], check=False).returncode == 0


@contextmanager
def booted(debian: Chroot) -> Iterator[Booted]:
    """Boot it, until systemd has started everything; shut it down at the end."""
    with tempfile.TemporaryDirectory(prefix="boot-") as directory:
        # By default everybody may open it; on some machines nobody but root.
        devices = {"net/tun": os.makedev(10, 200), OTHER_DEVICE: os.makedev(10, 237)}
        for name, number in devices.items():
            node = Path(directory, name)
            node.parent.mkdir(exist_ok=True)
            os.mknod(node, 0o666 | 0o020000, number)
            node.chmod(0o666)
        console = Path(directory, "console")
        argv: list[str | Path] = ["systemd-nspawn", "--directory", debian.root, "--register=no", "--keep-unit"]
        argv += [f"--machine=tapotun-{os.getpid()}", "--private-network", "--console=pipe", "--boot"]
        argv += [f"--bind={Path(directory, name)}:/dev/{name}" for name in devices]
        # nspawn forbids what a machine allows: systemd enforces DeviceAllow= with bpf, and an `apply` without Landlock
        # only reports new versions.
        argv += ["--system-call-filter=bpf landlock_create_ruleset landlock_add_rule landlock_restrict_self"]
        with console.open("wb") as log:
            nspawn = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
                start_new_session=True,
            )
        machine = Booted(debian, nspawn.pid)

        def has_booted() -> bool:
            if nspawn.poll() is not None:
                raise CommandError(f"systemd-nspawn ended with {nspawn.returncode}\n{text()}")
            if not machine.leader:
                return False
            said = machine.run(["systemctl", "is-system-running"], check=False).stdout.strip()
            return said in ("running", "degraded")

        def text() -> str:
            return console.read_text(encoding="utf-8", errors="replace")

        try:
            wait_until(has_booted, BOOT_S, "systemd", text)
            yield machine
        finally:
            leader = machine.leader if nspawn.poll() is None else 0
            nspawn.send_signal(signal.SIGTERM)  # it tells systemd to halt
            try:
                nspawn.wait(STOP_S)
            except subprocess.TimeoutExpired:
                if leader:
                    os.kill(leader, signal.SIGKILL)  # and with it everything in there
                nspawn.wait(STOP_S)
