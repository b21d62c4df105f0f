"""A Containerfile, read and built without a container engine: each stage is a Debian in a directory.

Only what our file uses is known; anything else is an error, and so is a file that does not end as an image should.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .chroot import AUTHORITIES, Chroot


@dataclass
class Image:
    """A stage: its files, and how a container of it is started."""

    files: Chroot
    user: str = "0:0"
    entrypoint: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)
    healthcheck: list[str] = field(default_factory=list)
    healthcheck_options: dict[str, str] = field(default_factory=dict)
    stop_signal: str = ""
    labels: dict[str, str] = field(default_factory=dict)


class Unknown(Exception):
    """The file has something that this does not know."""


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """Name and rest of each, with continued lines joined; comments between them are left out, as engines do."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\s*\\\n\s*", " ", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, rest = line.strip().partition(" ")
            yield name.upper(), rest.strip()


def build(file: Path, context: Path, base: Path, place: Path) -> tuple[Image, str]:
    """The last stage, and the name of the base image, for which the Debian in ``base`` stands. ``place``: where the
    stages go. Raises Unknown, CommandError."""
    arguments: dict[str, str] = {}
    stages: dict[str, Image] = {}
    image: Image | None = None
    for name, rest in instructions(file.read_text(encoding="utf-8")):
        if name == "ARG":
            key, _, value = rest.partition("=")
            arguments[key] = value
        elif name == "FROM":
            source, *named = rest.split()
            if source != "${BASE}":
                raise Unknown(f"FROM {source}")
            image = Image(Chroot.copy_of(base, place / str(len(stages))))
            stages[named[1] if named else str(len(stages))] = image
        elif image is None:
            raise Unknown(f"{name} before FROM")
        else:
            _apply(image, name, rest, context, stages)
    if image is None:
        raise Unknown("a file without FROM")
    return image, arguments["BASE"]


def _apply(image: Image, name: str, rest: str, context: Path, stages: dict[str, Image]) -> None:
    if name == "RUN":
        if image.user != "0:0":
            raise Unknown("RUN as another user than root")
        image.files.run(["/bin/sh", "-c", rest], environment=_network(), timeout=600)
    elif name == "COPY":
        _copy(image, shlex.split(rest), context, stages)
    elif name == "USER":
        image.user = rest
    elif name == "ENTRYPOINT":
        image.entrypoint = json.loads(rest)
    elif name == "CMD":
        image.command = json.loads(rest)
    elif name == "STOPSIGNAL":
        image.stop_signal = rest
    elif name == "LABEL":
        image.labels |= dict(pair.split("=", 1) for pair in shlex.split(rest))
    elif name == "HEALTHCHECK":
        options, command = rest.split(" CMD ")
        image.healthcheck_options = dict(option.removeprefix("--").split("=") for option in options.split())
        image.healthcheck = json.loads(command)
    else:
        raise Unknown(f"{name} {rest}")


def _network() -> dict[str, str]:
    """How this machine reaches package registries: what would be given to an engine with --build-arg."""
    ours = {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    ours |= {name: os.environ[name] for name in ("PIP_INDEX_URL", "PIP_TRUSTED_HOST") if name in os.environ}
    return {**ours, "PIP_CERT": AUTHORITIES}


def _copy(image: Image, words: list[str], context: Path, stages: dict[str, Image]) -> None:
    options = dict(word.removeprefix("--").split("=", 1) for word in words if word.startswith("--"))
    *sources, target = (word for word in words if not word.startswith("--"))
    root = stages[options.pop("from")].files.root if "from" in options else context
    mode = options.pop("chmod", None)
    if options:
        raise Unknown(f"COPY with {options}")
    for source in sources:
        found = root / source.lstrip("/")
        into = image.files.root / target.lstrip("/")
        if found.is_dir():
            shutil.copytree(found, into, symlinks=True, dirs_exist_ok=True)
        else:
            into = into / found.name if target.endswith("/") else into
            into.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(found, into)
        # COPY gives everything to root.
        subprocess.run(["chown", "-R", "--no-dereference", "0:0", into], check=True)
        if mode:
            into.chmod(int(mode, 8))
