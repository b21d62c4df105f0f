"""A Debian in a directory, and commands that run in it.

Each command has a mount namespace of its own, with /proc and a small /dev; nothing of that is left when it ends. It
runs on a host of the lab, or on this machine, whose network apt needs.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, Self

from tests.harness import CommandError, Host, Process

AUTHORITIES: Final = "/dev/authorities.pem"
"""In every Debian: whom this machine trusts, which may be more than Debian does."""
PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Everything is exec'ed, so that signals reach the command itself.
_ENTER: Final = r"""
set -e
root=$1
shift
mount --make-rprivate /
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/dev"
for node in 'null 1 3' 'zero 1 5' 'full 1 7' 'random 1 8' 'urandom 1 9' 'tty 5 0' 'net/tun 10 200'; do
    name=${node%% *} numbers=${node#* }
    mkdir -p "$(dirname "$root/dev/$name")"
    mknod -m 666 "$root/dev/$name" c $numbers
done
ln -s /proc/self/fd "$root/dev/fd"
cp /etc/ssl/certs/ca-certificates.crt "$root/dev/authorities.pem"
exec chroot "$root" "$@"
"""
_ENVIRONMENT: Final = {"LC_ALL": "C.UTF-8", "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}


class Chroot:
    """One Debian."""

    def __init__(self, root: Path) -> None:
        """`root`: its directory."""
        self.root = root

    @classmethod
    def copy_of(cls, base: Path, root: Path) -> Self:
        """A new one."""
        subprocess.run(["cp", "-a", "--reflink=auto", base, root], check=True)
        return cls(root)

    def argv(self, command: Sequence[str | Path], environment: Mapping[str, str] | None = None) -> list[str]:
        """What to run, anywhere, for this command to run in here, with nothing of our environment."""
        env = [
            "env",
            "-i",
            *(f"{key}={value}" for key, value in {**_ENVIRONMENT, "PATH": PATH, **(environment or {})}.items()),
        ]
        return ["unshare", "--mount", "sh", "-c", _ENTER, "enter", str(self.root), *env, *map(str, command)]

    def run(
        self,
        command: Sequence[str | Path],
        *,
        environment: Mapping[str, str] | None = None,
        check: bool = True,
        timeout: float = 300.0,
    ) -> str:
        """Run it to its end, in the network of this machine. Returns what it wrote; raises CommandError if it fails."""
        done = subprocess.run(
            self.argv(command, environment),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise CommandError(f"{' '.join(map(str, command))}: exit code {done.returncode}\n{done.stdout}")
        return done.stdout

    def start(self, host: Host, command: Sequence[str | Path], name: str = "tapotun") -> Process:
        """Start a daemon in here, on a host of the lab."""
        return host.start(self.argv(command), name=name)

    def on(self, host: Host, command: Sequence[str | Path], *, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run it to its end on a host of the lab."""
        return host.run(self.argv(command), check=check, timeout=60)

    def write(self, path: str, text: str, mode: int = 0o600, owner: int = 0) -> Path:
        """A file in here, of that user and group."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        file.chmod(mode)
        subprocess.run(["chown", f"{owner}:{owner}", file], check=True)
        return file

    def install(self, *packages: str) -> None:
        """With apt-get, from Debian."""
        self.run(["apt-get", "update", "-qq"])
        self.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages])

    def content(self) -> set[str]:
        """Every path in here, but for what any use leaves: caches, logs, dpkg's own database."""
        found = subprocess.run(
            ["find", ".", "-xdev", *_PASSED_OVER], check=True, cwd=self.root, capture_output=True, text=True
        )
        return set(found.stdout.splitlines())


_PASSED_OVER: Final = [
    *("-path", "./proc", "-prune", "-o", "-path", "./dev", "-prune", "-o", "-path", "./tmp", "-prune", "-o"),
    *(
        "-path",
        "./var/lib/dpkg",
        "-prune",
        "-o",
        "-path",
        "./var/log",
        "-prune",
        "-o",
        "-path",
        "./var/cache",
        "-prune",
    ),
    *("-o", "-print"),
]


def mirror() -> list[str]:
    """Where this machine's own apt gets Debian from; nothing where it gets another system: debootstrap knows."""
    argv = ["apt-get", "indextargets", "--format", "$(REPO_URI)", "Identifier: Packages", "Origin: Debian"]
    found = subprocess.run(argv, check=False, capture_output=True, text=True).stdout.split()
    return [uri for uri in found if "security" not in uri][:1]


def debootstrap(root: Path, suite: str) -> None:
    """Make a minimal Debian there, which starts no service when something is installed. Raises CommandError."""
    argv = ["debootstrap", "--variant=minbase", suite, str(root), *mirror()]
    done = subprocess.run(
        argv, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900, cwd="/"
    )
    if done.returncode:
        raise CommandError(f"{' '.join(argv)}: exit code {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}")
    policy = root / "usr/sbin/policy-rc.d"
    policy.write_text("#!/bin/sh\nexit 101\n", encoding="ascii")
    policy.chmod(0o755)
