"""Which version of the program the repository's keys vouch for: the client's part of The Update Framework.

Follows the detailed client workflow of the TUF specification 1.0 (section 5). python-tuf's `TrustedMetadataSet` does
all checks: signatures, expiry, versions, hashes. This module decides in which order files are asked for, and what is
kept of them between two runs. Delegations are not followed: the top-level targets role alone vouches for versions.

Sans-IO: `Refresh.run` asks for files by yielding. Untrusted input; raises `UntrustedError` only. Only a worker imports
this module, because it imports tuf.

Signatures are verified in pure Python, on every machine alike: `worker` hides the package cryptography before this is
imported. So only keys of Ed25519 count. A signature by any other kind of key counts as missing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NamedTuple

import tuf.api.serialization.json  # noqa: F401 - now, because tuf would import it at first use
from tuf.api.exceptions import (
    BadVersionNumberError,
    EqualVersionNumberError,
    ExpiredMetadataError,
    LengthOrHashMismatchError,
    RepositoryError,
    UnsignedMetadataError,
)
from tuf.api.serialization import DeserializationError
from tuf.ngclient import TargetFile
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet
from tuf.ngclient.config import EnvelopeType

from ..text import one_line, shorten
from .version import VERSION_CHARS, version_key

datetime.strptime("1", "%S")  # it imports a module at first use, when no file can be opened any more

ROOT_BYTES: Final = 512_000
TIMESTAMP_BYTES: Final = 16_384
METADATA_BYTES: Final = 2_000_000  # of a snapshot, and of targets
TARGET_BYTES: Final = 64 * 1024 * 1024
MAX_ROTATIONS: Final = 32  # new roots in one run; the next run continues
FILE_NAME: Final = "tapotun.pyz"
_REASON_CHARS: Final = 300
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_PYTHON: Final = re.compile(r"3\.[0-9]{1,2}")

_ROOT_NAME: Final = "{}.root.json"
_TIMESTAMP: Final = "timestamp.json"
_SNAPSHOT: Final = "snapshot.json"
_TARGETS: Final = "targets.json"

_GIVEN: Final = "the trusted root"
_MARK_BYTES: Final = 100
_WEB_PAGE: Final = (
    "something on the way answers for the repository, such as a network that wants a login first, or update.url is not "
    "the repository's directory"
)
_OLD_COPY: Final = "the publisher has to renew it, unless something on the way serves an old copy"


class UntrustedError(Exception):
    """What the repository offers cannot be trusted, or is not there. The text is one line for people."""

    def __init__(self, text: str) -> None:
        super().__init__(shorten(one_line(shorten(text, _REASON_CHARS)), _REASON_CHARS))


class Wanted(NamedTuple):
    """A file of the repository's ``metadata``.

    ``may_lack``: there need not be such a file.
    """

    name: str
    limit_bytes: int
    may_lack: bool = False


@dataclass(frozen=True, slots=True)
class Target:
    """The version that a channel offers.

    Attributes:
        path: of the file below the repository's ``targets``.
        sha256: lowercase hex.
        length: in bytes, at most TARGET_BYTES.
        python: the oldest Python that can run it, as (3, 11); None: not said.
    """

    path: str
    version: str
    sha256: str
    length: int
    python: tuple[int, int] | None


class Refresh:
    """One run of the client's workflow.

    Attributes:
        kept: the metadata to keep for the next run, by file name: the roots after the first, and the newest of the
            other files. It is also right after a failure, because a file is added to it once it is verified.
        discarded: whether earlier metadata was not usable, and rollbacks before this run cannot be noticed.
    """

    def __init__(self, root: bytes, kept: dict[str, bytes]) -> None:
        """``root``: the trusted root metadata. ``kept``: of the last run; empty: there was none. Raises
        UntrustedError."""
        self.discarded = False
        self._root = root
        self._old = kept
        self.kept: dict[str, bytes] = {name: kept[name] for name in (_TIMESTAMP, _SNAPSHOT, _TARGETS) if name in kept}
        self._set = self._trusted()

    def run(self) -> Generator[Wanted, bytes | None, None]:
        """Yields the files that are needed; the caller sends each, or None if it may lack and does.

        Raises UntrustedError. Afterwards `target` says what is offered.
        """
        for number in range(self._set.root.version + 1, self._set.root.version + 1 + MAX_ROTATIONS):
            name = _ROOT_NAME.format(number)
            data = yield Wanted(name, ROOT_BYTES, may_lack=True)
            if data is None:
                break
            self._load(name, data, self._set.update_root)
            self.kept[name] = data
        root = self._set.root
        if root.is_expired(self._set.reference_time):
            raise _explained(_ROOT_NAME.format(root.version), ExpiredMetadataError())
        yield from self._timestamp()
        yield from self._snapshot()
        yield from self._targets()

    def target(self, channel: str) -> Target:
        """The version of a channel. Raises UntrustedError: there is none, or what the publisher says of it is
        unusable."""
        path = f"{channel}/{FILE_NAME}"
        found = self._set.targets.targets.get(path)
        if found is None:
            raise UntrustedError(f'the repository has no channel "{channel}": its signed list lacks {path}')
        return _target(path, found)

    def _trusted(self) -> TrustedMetadataSet:
        """The root that is trusted now: the first one, and those that followed it in earlier runs."""
        try:
            trusted = self._first()
            while (data := self._old.get(name := _ROOT_NAME.format(trusted.root.version + 1))) is not None:
                trusted.update_root(data)
                self.kept[name] = data
        except _FAULTS:
            # Of other keys, or damaged. That the repository offers old metadata again can then not be noticed.
            self.kept, self._old, self.discarded = {}, {}, True
            return self._first()
        return trusted

    def _first(self) -> TrustedMetadataSet:
        found: list[TrustedMetadataSet] = []
        self._load(_GIVEN, self._root, lambda data: found.append(_set_of(data)))
        return found[0]

    def _timestamp(self) -> Generator[Wanted, bytes | None, None]:
        self._load_old(_TIMESTAMP, self._set.update_timestamp)
        data = yield from _required(Wanted(_TIMESTAMP, TIMESTAMP_BYTES))
        try:
            self._set.update_timestamp(data)
        except EqualVersionNumberError:
            return  # section 5.4.3: the one that is known is kept
        except _FAULTS as exc:
            raise _explained(_TIMESTAMP, exc, data) from exc
        self.kept[_TIMESTAMP] = data

    def _snapshot(self) -> Generator[Wanted, bytes | None, None]:
        if self._load_old(_SNAPSHOT, lambda data: self._set.update_snapshot(data, trusted=True)):
            return
        meta = self._set.timestamp.snapshot_meta
        data = yield from _required(self._versioned(_SNAPSHOT, meta.version, meta.length))
        self._load(_SNAPSHOT, data, self._set.update_snapshot)
        self.kept[_SNAPSHOT] = data

    def _targets(self) -> Generator[Wanted, bytes | None, None]:
        if self._load_old(_TARGETS, self._set.update_targets):
            return
        meta = self._set.snapshot.meta.get(_TARGETS)
        if meta is None:
            raise UntrustedError(f"the repository's {_SNAPSHOT} does not list {_TARGETS}")
        data = yield from _required(self._versioned(_TARGETS, meta.version, meta.length))
        self._load(_TARGETS, data, self._set.update_targets)
        self.kept[_TARGETS] = data

    def _versioned(self, name: str, version: int, length: int | None) -> Wanted:
        if self._set.root.consistent_snapshot:
            name = f"{version}.{name}"
        return Wanted(name, min(length or METADATA_BYTES, METADATA_BYTES))

    def _load_old(self, name: str, update: Callable[[bytes], object]) -> bool:
        """Load a file of the last run, if there is one. Returns whether it is still the newest.

        One that is older or expired still shows a rollback: python-tuf keeps it, and raises. One of keys that were
        replaced since counts no more (section 5.3.11).
        """
        if (data := self._old.get(name)) is None:
            return False
        try:
            update(data)
        except _FAULTS:
            return False
        return True

    def _load(self, name: str, data: bytes, update: Callable[[bytes], object]) -> None:
        try:
            update(data)
        except _FAULTS as exc:
            raise _explained(name, exc, data) from exc


# What python-tuf raises for metadata, and what its parsers let through: it promises only RepositoryError, and builds
# objects from JSON of any shape.
_FAULTS: Final = (
    RepositoryError,
    DeserializationError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    RecursionError,
)


def _set_of(data: bytes) -> TrustedMetadataSet:
    return TrustedMetadataSet(data, EnvelopeType.METADATA)


def _required(wanted: Wanted) -> Generator[Wanted, bytes | None, bytes]:
    data = yield wanted
    if data is None:
        raise UntrustedError(f"the repository lacks {wanted.name}")
    return data


def _explained(name: str, exc: Exception, data: bytes = b"") -> UntrustedError:
    if isinstance(exc, ExpiredMetadataError):
        return UntrustedError(f"{name} has expired; {_OLD_COPY}, or this machine's clock is wrong")
    if isinstance(exc, BadVersionNumberError):
        return UntrustedError(f"{name} is older than what this machine has seen before, or out of order ({exc})")
    if isinstance(exc, UnsignedMetadataError):
        return UntrustedError(f"{name} is not signed by the keys that are trusted here ({exc})")
    if isinstance(exc, LengthOrHashMismatchError):
        return UntrustedError(f"{name} is not the file that the repository's signed list names ({exc})")
    if data[:_MARK_BYTES].lstrip().startswith(b"<"):
        return UntrustedError(f"{name} is a web page, and no metadata; {_WEB_PAGE}")
    text = f"{name} is not usable metadata of a TUF repository ({type(exc).__name__}: {exc})"
    return UntrustedError(f"{text}; give the repository's root.json" if name == _GIVEN else text)


def _target(path: str, found: TargetFile) -> Target:
    custom = found.custom if isinstance(found.custom, dict) else {}
    version, python = custom.get("version"), custom.get("python")
    sha256 = found.hashes.get("sha256", "")
    try:
        if not isinstance(version, str) or len(version) > VERSION_CHARS:
            raise ValueError("no version number")
        version_key(version)
    except ValueError as exc:
        raise UntrustedError(f"the repository's signed list gives {path} {exc}") from exc
    if not _SHA256.fullmatch(sha256):
        raise UntrustedError(f"the repository's signed list gives {path} no SHA-256")
    if not 0 < found.length <= TARGET_BYTES:
        raise UntrustedError(f"{path} has {found.length} bytes, and at most {TARGET_BYTES} are taken")
    if python is not None and not (isinstance(python, str) and _PYTHON.fullmatch(python)):
        raise UntrustedError(f"the repository's signed list gives {path} no usable version of Python")
    return Target(path, version, sha256, found.length, (3, int(python[2:])) if python is not None else None)
