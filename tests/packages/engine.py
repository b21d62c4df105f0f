"""Podman with runc, which keeps everything below one directory, and ends with the test run.

Its processes and mounts are in a PID and a mount namespace of their own, whose PID 1 ends with us. So nothing is left,
also if the test run is killed. A container with `--network host` has the network of a host of the lab.
"""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from tests.harness import CommandError, Host, wait_until
from tests.harness.tools import TOOL_PATH
from tests.netns.topologies import SECRETS

PATIENCE_S: Final = 60.0
BUILD_S: Final = 600.0
USER: Final = 810  # in the image
NOBODY_IN_PARTICULAR: Final = 2345  # who runs the engine without root

# Images are kept in memory, up to 1.5 GB: a build writes much, of which nothing has to last.
# The accounts are replaced, not changed, for the engine without root: its user, and the user IDs that it may give away.
# Everybody may open /dev/net/tun, as udev has it; where there is no udev, only root may.
_PID_1: Final = """
set -e
for storage in root/storage rootless/storage; do
    mount -t tmpfs -o "mode=711,uid=$(stat -c %u "$1/$storage"),gid=$(stat -c %g "$1/$storage")" tmpfs "$1/$storage"
done
for file in passwd group subuid subgid; do mount --bind "$1/$file" "/etc/$file"; done
mknod -m 666 "$1/tun" c 10 200
mount --bind "$1/tun" /dev/net/tun
trap '' CHLD
echo ready
exec cat
"""
# The limits are some that every machine allows; by default they are higher than root's own may be.
_CONTAINERS_CONF: Final = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1000:1000"]
log_driver = "k8s-file"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
tmp_dir = "{place}/tmp"
"""
_STORAGE_CONF: Final = """
[storage]
driver = "overlay"
graphroot = "{place}/storage"
runroot = "{place}/run"
"""


class Engine:
    """Podman as one user."""

    def __init__(self, place: Path, pid: int, user: int = 0) -> None:
        """`place`: the user's directory, for what it stores; `pid`: of PID 1 of its namespaces; `user`: who runs it."""
        self._user = user
        self._pid = pid
        for name, text in (("containers.conf", _CONTAINERS_CONF), ("storage.conf", _STORAGE_CONF)):
            (place / name).write_text(text.format(place=place), encoding="utf-8")
        self._environment = {
            "PATH": TOOL_PATH,
            "HOME": str(place),
            "XDG_RUNTIME_DIR": str(place),
            "CONTAINERS_CONF": str(place / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(place / "storage.conf"),
            # Podman has a timer of systemd run the health check; here the tests do.
            "DISABLE_HC_SYSTEMD": "true",
        }

    def argv(self, command: Sequence[str | Path], host: Host | None, more: Mapping[str, str]) -> list[str]:
        """What to run for this command to run here. `host`: whose network it has."""
        network = [f"--net=/proc/{host.pid}/ns/net"] if host else []
        become = ["setpriv", f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups"] if self._user else []
        environment = [f"{name}={value}" for name, value in {**self._environment, **more}.items()]
        enter = ["nsenter", f"--target={self._pid}", "--mount", "--pid", *network]
        return [*enter, *become, "env", "-i", *environment, *map(str, command)]

    def run(
        self,
        *command: str | Path,
        host: Host | None = None,
        check: bool = True,
        timeout: float = PATIENCE_S,
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """Run podman, or podman-compose, to its end. Raises CommandError if it fails, unless `check` is false."""
        argv = self.argv(command, host, environment or {})
        done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=timeout, cwd="/")
        if check and done.returncode:
            raise CommandError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def inspect(self, kind: str, name: str) -> Any:
        """What `podman KIND inspect` says of one thing."""
        (found,) = json.loads(self.run("podman", kind, "inspect", name).stdout)
        return found

    @contextmanager
    def container(self, host: Host, name: str, *words: str) -> Iterator[Container]:
        """`podman run -d` with those options, image and arguments; removed at the end, when its log must be clean."""
        self.run("podman", "run", "-d", "--name", name, *words, host=host)
        container = Container(self, host, name)
        try:
            yield container
            log = container.log()
            assert SECRETS.search(log) is None, log
            assert "Traceback" not in log
        finally:
            container.remove()


class Container:
    """A container of an engine."""

    def __init__(self, engine: Engine, host: Host, name: str) -> None:
        self._engine = engine
        self._host = host
        self.name = name

    def log(self) -> str:
        """Both its outputs."""
        done = self._engine.run("podman", "logs", self.name)
        return done.stdout + done.stderr

    def wait_for_log(self, text: str) -> None:
        wait_until(lambda: text in self.log(), PATIENCE_S, f"{text!r} in the log of {self.name}", self.log)

    def execute(self, *command: str, check: bool = True) -> str:
        """`podman exec`; returns what it wrote to its standard output."""
        return self._engine.run("podman", "exec", self.name, *command, check=check).stdout

    def is_healthy(self) -> bool:
        """What the check of its image says now."""
        return self._engine.run("podman", "healthcheck", "run", self.name, check=False).returncode == 0

    def top(self, *fields: str) -> list[str]:
        """Those fields of its first process (podman-top(1))."""
        return self._engine.run("podman", "top", self.name, *fields).stdout.splitlines()[1].split()

    def stop(self) -> int:
        """As the engine stops it; returns its exit code."""
        self._engine.run("podman", "stop", "-t", "30", self.name, host=self._host)
        return self.wait()

    def wait(self) -> int:
        """Its exit code, once it has ended."""
        return int(self._engine.run("podman", "wait", self.name).stdout)

    def remove(self) -> None:
        """Whatever state it is in."""
        self._engine.run("podman", "rm", "-f", "-t", "0", self.name, host=self._host)


@contextmanager
def engines() -> Iterator[tuple[Engine, Engine]]:
    """Root's, and one that runs without root."""
    with tempfile.TemporaryDirectory(prefix="podman-") as directory:
        place = Path(directory)
        place.chmod(0o755)
        user = NOBODY_IN_PARTICULAR
        accounts = {
            "passwd": f"podman:x:{user}:{user}::{place}/rootless:/bin/sh\n",
            "group": f"podman:x:{user}:\n",
            "subuid": f"podman:{100_000}:{65_536}\n",
            "subgid": f"podman:{100_000}:{65_536}\n",
        }
        for name, line in accounts.items():
            known = Path("/etc", name).read_text(encoding="utf-8") if name in ("passwd", "group") else ""
            (place / name).write_text(known + line, encoding="utf-8")
        for name, owner in (("root", 0), ("rootless", user)):
            for path in (place / name, place / name / "storage"):
                path.mkdir(mode=0o700)
                os.chown(path, owner, owner)
        with subprocess.Popen(
            ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "sh", "-c", _PID_1, "sh", place],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            cwd="/",
        ) as outer:
            assert outer.stdout is not None
            try:
                if outer.stdout.readline() != "ready\n":
                    raise CommandError("the namespaces for podman cannot be made: see above")
                pid = int(Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text(encoding="ascii"))
                yield Engine(place / "root", pid), Engine(place / "rootless", pid, user)
            finally:
                outer.kill()
                outer.wait(PATIENCE_S)
        for parent in [*Path("/sys/fs/cgroup").glob("libpod_parent"), *Path("/sys/fs/cgroup").glob("*/libpod_parent")]:
            for group in [*parent.iterdir(), parent]:
                with suppress(OSError):  # a file; or another's, in use
                    group.rmdir()


def build(engine: Engine, file: Path, context: Path, base: Path) -> str:
    """Build the Containerfile on the Debian in `base`, which stands for its base image. Returns the image's name."""
    name = "localhost/tapotun"
    with tempfile.TemporaryDirectory(prefix="context-") as directory:
        archive, pip = Path(directory, "base.tar"), Path(directory, "pip.conf")
        subprocess.run(["tar", "-C", base, "--one-file-system", "-cf", archive, "."], check=True)
        engine.run("podman", "import", archive, "localhost/base", timeout=BUILD_S)
        archive.unlink()
        # How this machine reaches package registries.
        settings = {"cert": "/authorities.pem"}
        for variable in ("PIP_INDEX_URL", "PIP_TRUSTED_HOST"):
            if variable in os.environ:
                settings[variable.removeprefix("PIP_").lower().replace("_", "-")] = os.environ[variable]
        lines = [f"{key} = {value}" for key, value in settings.items()]
        pip.write_text("\n".join(["[global]", *lines, ""]), encoding="utf-8")
        proxies = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
        argv: list[str | Path] = ["podman", "build", "--format", "docker", "--layers=false", "-t", name, "-f", file]
        argv += ["--network", "host", "--build-arg", "BASE=localhost/base"]
        argv += [
            "--volume",
            "/etc/ssl/certs/ca-certificates.crt:/authorities.pem:ro",
            "--volume",
            f"{pip}:/etc/pip.conf:ro",
        ]
        engine.run(*argv, context, timeout=BUILD_S, environment=proxies)
    return name
