"""An apt repository of our Debian packages, kept by Debian's reprepro.

::

    conf/distributions          what reprepro is told; written anew by every run
    db/                         what it remembers; not to be published
    public/                     to be served as it is
        dists/ pool/            the repository: InRelease is signed, and has the hash of everything else
        tapotun.asc             the public key, for /etc/apt/keyrings
        tapotun.sources         for /etc/apt/sources.list.d: trusts that key for this repository, and for nothing else
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .keys import ReleaseError

CODENAME: Final = "stable"
COMPONENT: Final = "main"
KEYRING: Final = "/etc/apt/keyrings/tapotun.asc"


def publish(place: Path, key: str, url: str, valid_days: int | None, debs: Sequence[Path]) -> list[str]:
    """Put these packages into the repository, in place of older versions. Returns lines for people.

    Args:
        place: its directory; made if it is not there.
        key: the fingerprint of an OpenPGP key whose secret half gpg has ($GNUPGHOME).
        url: where public/ will be served.
        valid_days: until when apt accepts what is signed now, and so a server cannot withhold newer versions for
            longer. Then this has to run again before, with the same packages. None: for ever.
        debs: the packages.

    Raises:
        ReleaseError: ``valid_days`` is below 1, gpg has no such key, reprepro refused, or the repository has a newer
            version already.
    """
    if not re.fullmatch(r"[0-9A-F]{40}", key):
        raise ReleaseError(
            f"{key}: not a fingerprint of 40 upper-case hexadecimal digits; gpg --list-secret-keys has it"
        )
    if not re.fullmatch(r"(https?|file)://?\S+", url):
        raise ReleaseError(f"{url}: not a URL such as https://example.org/apt")
    if valid_days is not None and valid_days < 1:
        raise ReleaseError(
            f"{valid_days}: not a number of days for which apt accepts the repository; leave it out for ever"
        )
    _run(["gpg", "--batch", "--list-secret-keys", key], "gpg has no secret key of that fingerprint: set GNUPGHOME")
    versions = {deb: _field(deb, "Version") for deb in debs}
    architectures = {deb: _field(deb, "Architecture") for deb in debs}
    (place / "conf").mkdir(parents=True, exist_ok=True)
    lines = [
        "Origin: tapotun",
        "Label: tapotun",
        f"Suite: {CODENAME}",
        f"Codename: {CODENAME}",
        f"Components: {COMPONENT}",
        "Architectures: amd64 arm64",
        "Description: tapotun carries IP packets and Ethernet frames between machines over HTTP",
        f"SignWith: {key}",
        *([f"ValidFor: {valid_days}d"] if valid_days else []),
    ]
    (place / "conf" / "distributions").write_text("\n".join([*lines, ""]), encoding="utf-8")
    reprepro = ["reprepro", "--silent", "--basedir", str(place), "--outdir", str(place / "public")]
    for deb in debs:
        _run([*reprepro, "--component", COMPONENT, "includedeb", CODENAME, str(deb)], f"reprepro refused {deb}")
    _run([*reprepro, "export", CODENAME], "reprepro signed nothing")  # also if no package was new
    said = []
    for deb in debs:
        listing = [*reprepro, "--architecture", architectures[deb], "--list-format", "${version}\n", "list", CODENAME]
        found = _run([*listing, _field(deb, "Package")], "reprepro tells nothing").strip()
        if found != versions[deb]:
            raise ReleaseError(f"{deb}: version {versions[deb]}, and the repository has {found} already")
        said.append(f"{CODENAME}/{COMPONENT} {architectures[deb]}: {deb.name}")
    public = place / "public"
    (public / "tapotun.asc").write_text(_run(["gpg", "--batch", "--armor", "--export", key], "no public key"), "utf-8")
    (public / "tapotun.sources").write_text(_sources(url), encoding="utf-8")
    return said


def _sources(url: str) -> str:
    """In deb822 format, sources.list(5)."""
    return f"Types: deb\nURIs: {url}\nSuites: {CODENAME}\nComponents: {COMPONENT}\nSigned-By: {KEYRING}\n"


def _field(deb: Path, name: str) -> str:
    return _run(["dpkg-deb", "--field", str(deb), name], f"{deb} is no Debian package").strip()


def _run(command: Sequence[str], complaint: str) -> str:
    """What it writes to its standard output. Raises ReleaseError, which has the last line of what it says."""
    try:
        done = subprocess.run(command, check=False, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    except FileNotFoundError as exc:
        raise ReleaseError(f"no {command[0]} here: apt-get install reprepro gpg gpg-agent") from exc
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise ReleaseError(f"{complaint}; {command[0]}: {last}")
    return done.stdout
