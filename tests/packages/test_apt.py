"""`make apt`: a Debian gets the key, adds the source, installs, upgrades; and takes nothing that was tampered with."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tapotun_trio import __version__
from tests.harness import ROOT, CommandError
from tests.makes import run_make

from .chroot import Chroot
from .conftest import make
from .pythons import NATIVE
from .test_deb import newer

pytestmark = pytest.mark.netns

HERE = "/srv/apt"
"""Where the repository is in the Debian, since its network is this machine's, whose ports are not ours."""


class Publisher:
    """A key, and the repository that is signed with it."""

    def __init__(self, place: Path, url: str) -> None:
        """`url`: where apt finds it."""
        self.place = place
        self.url = url
        self.gnupg = place / "gnupg"
        self.gnupg.mkdir(mode=0o700)
        self.key = self.new_key("tapotun archive")

    def gpg(self, *arguments: str) -> str:
        return subprocess.run(
            ["gpg", "--batch", "--homedir", self.gnupg, *arguments], check=True, capture_output=True, text=True
        ).stdout

    def new_key(self, name: str) -> str:
        """As docs/releasing.md has it. Returns the fingerprint."""
        self.gpg("--passphrase", "", "--quick-generate-key", name, "ed25519", "sign", "2y")
        lines = self.gpg("--with-colons", "--list-secret-keys", name).splitlines()
        return next(line.split(":")[9] for line in lines if line.startswith("fpr:"))

    def publish(self, *debs: Path, key: str = "", check: bool = True) -> str:
        """What `make apt` runs. Returns what it says."""
        command = [str(ROOT / ".venv/bin/python"), "-m", "tools.release", "apt", f"--repository={self.place / 'apt'}"]
        command += [f"--key={key or self.key}", f"--url={self.url}", *map(str, debs)]
        environment = {**os.environ, "GNUPGHOME": str(self.gnupg)}
        done = subprocess.run(command, check=False, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert (done.returncode == 0) == check, done.stdout + done.stderr
        return done.stdout + done.stderr

    def serve(self, debian: Chroot) -> Path:
        """Put it as it is now where that Debian finds it. Returns that directory."""
        there = debian.root / HERE.lstrip("/")
        shutil.rmtree(there, ignore_errors=True)
        shutil.copytree(self.place / "apt" / "public", there)
        return there


@contextmanager
def publishing(deb: Path, url: str = f"file:{HERE}") -> Iterator[Publisher]:
    """Somebody who has published this package."""
    # The path of gpg-agent's socket must be short.
    with tempfile.TemporaryDirectory(prefix="apt-") as directory:
        found = Publisher(Path(directory), url)
        try:
            found.publish(deb)
            yield found
        finally:
            subprocess.run(["gpgconf", "--homedir", found.gnupg, "--kill", "all"], check=True)


@pytest.fixture
def publisher(deb: Path) -> Iterator[Publisher]:
    with publishing(deb) as found:
        yield found


def apt(debian: Chroot, *arguments: str) -> str:
    """With nothing but our repository: what is needed of Debian's own is in the base already. Raises CommandError."""
    only = ["-o", "Dir::Etc::sourcelist=/dev/null", "-o", "APT::Update::Error-Mode=any"]
    return debian.run(["apt-get", "-y", "-q", "--no-install-recommends", *only, *arguments])


def add_source(debian: Chroot, published: Path) -> None:
    """What the commands of docs/packages.md download is copied here; test_systemd.py types them."""
    for name, place in {"tapotun.asc": "etc/apt/keyrings", "tapotun.sources": "etc/apt/sources.list.d"}.items():
        (debian.root / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(published / name, debian.root / place / name)


def test_from_the_first_key_to_an_upgrade(
    publisher: Publisher, deb: Path, bookworm_with_systemd: Path, tmp_path: Path
) -> None:
    # That base has what the package depends on, adduser too.
    debian = Chroot.copy_of(bookworm_with_systemd, tmp_path / "root")
    public = publisher.serve(debian)
    assert (public / "tapotun.sources").read_text(encoding="utf-8") == (
        f"Types: deb\nURIs: file:{HERE}\nSuites: stable\nComponents: main\nSigned-By: /etc/apt/keyrings/tapotun.asc\n"
    )
    assert "PRIVATE" not in (public / "tapotun.asc").read_text(encoding="utf-8")
    assert sorted(it.name for it in public.iterdir()) == ["dists", "pool", "tapotun.asc", "tapotun.sources"]

    # Without the key, and with another one, apt refuses the repository.
    add_source(debian, public)
    (debian.root / "etc/apt/keyrings/tapotun.asc").unlink()
    with pytest.raises(CommandError, match=r"is not signed|NO_PUBKEY"):
        apt(debian, "update")
    other = publisher.new_key("somebody else")
    (debian.root / "etc/apt/keyrings/tapotun.asc").write_text(publisher.gpg("--armor", "--export", other), "ascii")
    with pytest.raises(CommandError, match=r"is not signed|NO_PUBKEY"):
        apt(debian, "update")

    add_source(debian, public)
    apt(debian, "update")
    apt(debian, "install", "tapotun")
    assert debian.run(["tapotun", "--version"]) == NATIVE
    assert f"500 file:{HERE} stable/main" in debian.run(["apt-cache", "policy", "tapotun"])

    # A second version.
    upgrade = newer(deb, tmp_path, "99.0-1")
    publisher.publish(upgrade)
    publisher.serve(debian)
    apt(debian, "update")
    assert "1 upgraded" in apt(debian, "upgrade")
    assert "Version: 99.0-1" in debian.run(["dpkg", "-s", "tapotun"])

    # The one before is not published again over it, and the same one is no error: a release that stopped half-way.
    assert "the repository has 99.0-1 already" in publisher.publish(deb, check=False)
    publisher.publish(upgrade)
    debian.run(["apt-get", "-y", "-q", "purge", "tapotun"])

    # A package that was tampered with, of the same length.
    (package,) = publisher.serve(debian).rglob("*.deb")
    content = bytearray(package.read_bytes())
    content[-1] ^= 1
    package.write_bytes(content)
    apt(debian, "update")
    with pytest.raises(CommandError, match="Hash Sum mismatch"):
        apt(debian, "install", "tapotun")

    # Tampered indices: with the right signature of something else, or none.
    for name in ("InRelease", "main/binary-amd64/Packages"):
        file = publisher.serve(debian) / "dists" / "stable" / name
        file.write_text(
            file.read_text(encoding="utf-8").replace("99.0-1", "99.1-1").replace("Origin: t", "Origin: T"), "utf-8"
        )
        for compressed in file.parent.glob("Packages.*"):
            compressed.unlink()
        shutil.rmtree(debian.root / "var/lib/apt/lists", ignore_errors=True)
        with pytest.raises(CommandError, match=r"BADSIG|not signed|Hash Sum mismatch|unexpected size"):
            apt(debian, "update")
    # No InRelease at all, and nobody's signature.
    public = publisher.serve(debian)
    (public / "dists/stable/InRelease").unlink()
    (public / "dists/stable/Release.gpg").unlink()
    with pytest.raises(CommandError, match="not signed"):
        apt(debian, "update")
    with pytest.raises(CommandError):
        debian.run(["dpkg", "-s", "tapotun"])


def test_what_is_typed_wrongly(publisher: Publisher, deb: Path, tmp_path: Path) -> None:
    assert "not a fingerprint of 40" in publisher.publish(deb, key="tapotun", check=False)
    assert "gpg has no secret key of that fingerprint" in publisher.publish(deb, key="0" * 40, check=False)
    (tmp_path / "not.deb").write_bytes(b"!<arch>\n")
    assert "is no Debian package" in publisher.publish(tmp_path / "not.deb", check=False)
    # make says it before it builds anything.
    done = run_make("apt", "APT_KEY=0123", "APT_URL=https://example.org/apt")
    assert "gpg has no secret key with the fingerprint '0123'" in done.stderr.splitlines()[0]
    assert (done.returncode, done.stdout) == (2, "")
    # The same version with other content: what somebody has installed would no longer be what is published.
    again = newer(deb, tmp_path, f"{__version__}-1")
    assert "reprepro refused" in publisher.publish(again, check=False)


def test_make_apt(publisher: Publisher) -> None:
    """The target as docs/releasing.md has it, but for the package, which is there already."""
    place = publisher.place / "made"
    variables = [f"APT_REPOSITORY={place}", f"APT_KEY={publisher.key}", "APT_URL=https://example.org/apt"]
    old = os.environ.get("GNUPGHOME")
    os.environ["GNUPGHOME"] = str(publisher.gnupg)
    try:
        make("--old-file=deb", "apt", "DEB_ARCH=amd64", "APT_VALID_DAYS=30", *variables)
    finally:
        del os.environ["GNUPGHOME"]
        if old is not None:
            os.environ["GNUPGHOME"] = old
    release = (place / "public/dists/stable/InRelease").read_text(encoding="utf-8")
    assert "\nValid-Until: " in release
    assert "\nArchitectures: amd64 arm64\n" in release
    assert "URIs: https://example.org/apt\n" in (place / "public/tapotun.sources").read_text(encoding="utf-8")
