"""Makes dist/tapotun_VERSION-1_ARCHITECTURE.deb, with dpkg-deb alone.

debhelper would bring a hundred packages to the machine that builds, to find out what is known here: where a dozen
files go. What is in the package is laid out below, and lintian judges it in the tests. The same sources and wheels make
the same bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path
from typing import Final

import cross
import manpages
import native
import sbom
from tapotun_trio.cli import build_parser
from tapotun_trio.config.schema import schema
from tapotun_trio.shell import bash, fish, zsh
from tapotun_trio.shell.usage import own_options, verbs
from vendor import BUILD, PYTHONS, ROOT, Target, files, make_tree, source_date, version

DEB: Final = ROOT / "packaging" / "deb"
CONF: Final = ROOT / "conf"
ARCHITECTURES: Final = {"amd64": "x86_64", "arm64": "aarch64"}
REVISION: Final = 1
_LICENCE: Final = re.compile(r"(?i)(licen[cs]e|copying|notice)")
MAINTAINER_SCRIPTS: Final = ("postinst", "prerm", "postrm")


MAINTAINER: Final = re.findall(r"(?m)^Maintainer: (.+)$", (DEB / "control.in").read_text(encoding="utf-8"))[0]


def main() -> None:
    """Build it."""
    parser = argparse.ArgumentParser(description="Makes the Debian package in dist/.")
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="amd64", help="default: amd64")
    architecture = parser.parse_args().architecture
    root = BUILD / f"deb-{architecture}"
    shutil.rmtree(root, ignore_errors=True)
    targets = [Target(python, ARCHITECTURES[architecture], "gnu") for python in PYTHONS]
    make_tree(root / "usr/lib/tapotun", targets)
    _write(root / "usr/share/doc/tapotun" / sbom.NAME, sbom.document(root / "usr/lib/tapotun", targets))
    module = cross.module(cross.Platform(ARCHITECTURES[architecture], "gnu"))
    shutil.copyfile(module, root / "usr/lib/tapotun" / native.MODULE)
    _program(root)
    _documentation(root)
    _completions(root)
    number = f"{version()}-{REVISION}"
    _control(root, number, architecture)
    _date(root)
    made = ROOT / "dist" / f"tapotun_{number}_{architecture}.deb"
    made.parent.mkdir(exist_ok=True)
    environment = {**os.environ, "SOURCE_DATE_EPOCH": str(source_date())}
    # One thread: with more, xz cuts the data into blocks, and other bytes come out.
    build: list[str | Path] = ["dpkg-deb", "--root-owner-group", "--threads-max=1", "-Zxz", "--build", root, made]
    if subprocess.run(build, check=False, stdout=subprocess.DEVNULL, env=environment).returncode:
        raise SystemExit("dpkg-deb failed, see above")
    print(f"{made.relative_to(ROOT)}: {made.stat().st_size / 1e6:.1f} MB")


def _program(root: Path) -> None:
    _copy(DEB / "tapotun", root / "usr/bin/tapotun")
    _copy(DEB / "tapotun.rtupdate", root / "usr/share/python3/runtime.d/tapotun.rtupdate")
    _copy(CONF / "systemd" / "tapotun@.service", root / "usr/lib/systemd/system/tapotun@.service")
    for drop_in in ("unix-socket.conf", "notify-reload.conf"):
        _copy(CONF / "systemd" / drop_in, root / "usr/share/tapotun/systemd" / drop_in)
    (root / "etc/tapotun").mkdir(parents=True)
    _write(root / "usr/share/tapotun/tapotun.schema.json", json.dumps(schema(), indent=2) + "\n")


def _documentation(root: Path) -> None:
    place = root / "usr/share/doc/tapotun"
    for file in (ROOT / "README.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))):
        _write_gz(place / f"{file.name}.gz", file.read_text(encoding="utf-8"))
    for file in sorted((ROOT / "docs" / "howto").glob("*.md")):
        _write_gz(place / "howto" / f"{file.name}.gz", file.read_text(encoding="utf-8"))
    _write(place / "copyright", _copyright(root / "usr/lib/tapotun"))
    _write_gz(place / "changelog.gz", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"))
    _write_gz(place / "changelog.Debian.gz", _debian_changelog())
    for part in sorted(CONF.iterdir()):
        if part.is_dir() and part.name not in ("demo", "systemd"):
            for file in files(part):
                name = "configs" if part.name == "examples" else part.name
                _copy(part / file, place / "examples" / name / file)
    manpages.main()
    for page in sorted((BUILD / "man").iterdir()):
        _write_gz(root / f"usr/share/man/man{page.suffix[1:]}/{page.name}.gz", page.read_text(encoding="utf-8"))
    _copy(DEB / "lintian-overrides", root / "usr/share/lintian/overrides/tapotun")


def _completions(root: Path) -> None:
    parser = build_parser()
    for file, script in {
        "usr/share/bash-completion/completions/tapotun": bash.script,
        "usr/share/zsh/vendor-completions/_tapotun": zsh.script,
        "usr/share/fish/vendor_completions.d/tapotun.fish": fish.script,
    }.items():
        _write(root / file, script(verbs(parser), own_options(parser)))


def _control(root: Path, number: str, architecture: str) -> None:
    place = root / "DEBIAN"
    place.mkdir()
    packed = [file for file in files(root) if file.parts[0] != "DEBIAN"]
    size_kib = sum(-(-(root / file).stat().st_size // 1024) for file in packed)
    control = (DEB / "control.in").read_text(encoding="utf-8")
    for key, value in {"@VERSION@": number, "@ARCHITECTURE@": architecture, "@SIZE@": str(size_kib)}.items():
        control = control.replace(key, value)
    _write(place / "control", control)
    digests = {file: hashlib.md5((root / file).read_bytes(), usedforsecurity=False) for file in packed}
    _write(place / "md5sums", "".join(f"{digest.hexdigest()}  {file}\n" for file, digest in digests.items()))
    for script in MAINTAINER_SCRIPTS:
        _copy(DEB / script, place / script)


def _copyright(tree: Path) -> str:
    """Our licence, and where that of each package is that lies beside ours."""
    parts = [(ROOT / "LICENSE").read_text(encoding="utf-8").strip()]
    parts.append("In /usr/lib/tapotun are, beside it, each under its own licence:")
    for metadata in sorted(tree.glob("*.dist-info/METADATA")):
        text = metadata.read_text(encoding="utf-8")
        name, licence = (_header(text, key) for key in ("Name", "License-Expression|License|Classifier: License"))
        if name == "tapotun-trio":
            continue
        found = [it for it in sorted(metadata.parent.rglob("*")) if it.is_file() and _LICENCE.match(it.name)]
        if not found:
            raise SystemExit(f"{name} says nowhere what its licence is")
        where = "".join(f"\n    /usr/lib/tapotun/{it.relative_to(tree)}" for it in found)
        parts.append(f"{name} {_header(text, 'Version')}: {licence or 'see there'}{where}")
    common = "/usr/share/common-licenses"
    parts.append(f"Those of Apache and the GPL are {common}/Apache-2.0 and {common}/GPL-2 as well.")
    return "\n\n".join(parts) + "\n"


def _header(metadata: str, keys: str) -> str:
    found = re.search(rf"(?m)^(?:{keys}):+ *(.+)$", metadata)
    return found[1].strip() if found else ""


def _debian_changelog() -> str:
    date = format_datetime(datetime.fromtimestamp(source_date(), UTC))
    return (
        f"tapotun ({version()}-{REVISION}) unstable; urgency=medium\n\n"
        f"  * Package of tapotun {version()}; its changes are in changelog.gz.\n\n"
        f" -- {MAINTAINER}  {date}\n"
    )


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if os.access(source, os.X_OK) else 0o644)


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text, encoding="utf-8")


def _write_gz(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(gzip.compress(text.encode(), mtime=0))


def _date(root: Path) -> None:
    """Modes and dates that do not depend on who builds, and when."""
    for path in (root, *root.rglob("*")):
        if path.is_dir():
            path.chmod(0o755)
        else:
            path.chmod(0o755 if os.access(path, os.X_OK) and path.suffix != ".so" else 0o644)
        os.utime(path, (source_date(), source_date()), follow_symlinks=False)
    (root / "etc/tapotun").chmod(0o750)  # configs with tokens


if __name__ == "__main__":
    main()
