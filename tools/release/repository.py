"""The repository that `tapotun update` reads, as The Update Framework 1.0 lays it out (consistent snapshots).

::

    metadata/1.root.json, 2.root.json ...   which keys speak for what: each signed by the keys of the one before, too
    metadata/timestamp.json                 the newest snapshot; expires in days, so that nobody can withhold news
    metadata/N.snapshot.json                the newest targets.json
    metadata/N.targets.json                 the files, with hash, length and version
    targets/CHANNEL/SHA256.tapotun.pyz

Whatever is kept of it on the server is public. Clients take a change when timestamp.json names it. So that file is
replaced last, and all others have new names: whoever reads meanwhile, or after a run that was killed, finds the state
before. Nothing is read from here unverified, since we sign what we read: the chain of trust begins at root.json beside
the keys.
"""

from __future__ import annotations

import copy
import fcntl
import os
import re
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from email import message_from_bytes
from io import BytesIO
from pathlib import Path
from typing import Any, Final

from securesystemslib.signer import SSlibKey
from tuf.api.exceptions import LengthOrHashMismatchError, UnsignedMetadataError
from tuf.api.metadata import Metadata, MetaFile, Root, Snapshot, TargetFile, Targets, Timestamp
from tuf.api.serialization import DeserializationError

from tapotun_trio.errors import reason_of
from tapotun_trio.update.launcher import open_lock
from tapotun_trio.update.version import is_newer

from .keys import Keys, ReleaseError

ROOT: Final = Root.type
TIMESTAMP: Final = Timestamp.type
SNAPSHOT: Final = Snapshot.type
TARGETS: Final = Targets.type

LIFETIME: Final = {
    ROOT: timedelta(days=365),  # its keys are offline: somebody has to fetch them once a year
    TARGETS: timedelta(days=365),
    SNAPSHOT: timedelta(days=30),
    TIMESTAMP: timedelta(days=7),  # refreshed daily: a week in which a machine that does so can fail and be mended
}
"""How long after it was signed a client accepts it. The shortest is how long a stolen server can withhold a version."""

LOCK: Final = "release.lock"
"""Beside ``metadata`` and ``targets``: locked by a run of these tools. Not to be published."""
TARGET_BYTES: Final = 64 << 20  # what a client downloads at most
_CHANNEL: Final = re.compile(r"[a-z][a-z0-9-]{0,31}")
# What zipfile raises for other files, for damaged ones, and for what it cannot read.
_NO_PYZ: Final = (zipfile.BadZipFile, zlib.error, EOFError, KeyError, ValueError, RuntimeError)
_VERSION_LINE: Final = re.compile(rb'(?m)^__version__ = "([^"]+)"$')


@dataclass(frozen=True, slots=True)
class Pyz:
    """A tapotun.pyz, read and not run."""

    data: bytes
    version: str
    python: str
    """The oldest Python that it runs with, such as 3.11."""

    @classmethod
    def read(cls, file: Path) -> Pyz:
        """Raises ReleaseError if it is none."""
        try:
            data = file.read_bytes()
            with zipfile.ZipFile(BytesIO(data)) as archive:
                if (damaged := archive.testzip()) is not None:
                    raise ReleaseError(f"{file}: {damaged} in it is damaged")
                version = _VERSION_LINE.search(archive.read("tapotun_trio/__init__.py"))
                (metadata,) = (
                    it for it in archive.namelist() if re.fullmatch(r"tapotun_trio-.*\.dist-info/METADATA", it)
                )
                python = str(message_from_bytes(archive.read(metadata))["Requires-Python"])
        except OSError as exc:
            raise ReleaseError(f"{file}: {exc.strerror}; make pyz builds one") from exc
        except _NO_PYZ as exc:
            raise ReleaseError(f"{file}: not a tapotun.pyz, or damaged; make pyz builds one") from exc
        if version is None or not (oldest := re.fullmatch(r">=(\d+\.\d+)", python)):
            raise ReleaseError(f"{file}: has no version, or needs a Python that is not such as >=3.11: {python}")
        if not data.startswith(b"#!"):
            raise ReleaseError(f"{file}: has no #! line, so no system can start it; make pyz builds one")
        if len(data) > TARGET_BYTES:
            raise ReleaseError(f"{file}: {len(data)} bytes, and clients take {TARGET_BYTES} at most")
        return cls(data, version[1].decode(), oldest[1])


@dataclass(slots=True)
class _State:
    """What is published: four roles, verified."""

    root: Metadata[Root]
    timestamp: Metadata[Timestamp]
    snapshot: Metadata[Snapshot]
    targets: Metadata[Targets]

    def roles(self) -> Iterator[tuple[str, Root | Timestamp | Snapshot | Targets]]:
        for metadata in (self.root, self.targets, self.snapshot, self.timestamp):
            yield metadata.signed.type, metadata.signed


class Repository:
    """One repository, in a directory of this machine.

    Every method that changes something takes a lock for that time. It verifies what is there first, and writes nothing
    if a key is missing. All raise ReleaseError.
    """

    def __init__(self, place: Path, keys: Keys, anchor: Path, now: datetime) -> None:
        """
        Args:
            place: its directory.
            keys: those at hand.
            anchor: a root.json that is trusted, kept beside the keys; the newest is written there.
            now: the time, with its zone: what is signed is dated with it.
        """
        self._metadata: Final = place / "metadata"
        self._targets: Final = place / "targets"
        self._keys: Final = keys
        self._anchor: Final = anchor
        self._now: Final = now.replace(microsecond=0)

    # ------------------------------------------------------------------ what can be done

    def init(self, keys: Mapping[str, Sequence[SSlibKey]], root_threshold: int) -> None:
        """Make a new one, without a target. ``keys``: those of each role; any one of them will do, but for root."""
        for directory in (self._metadata, self._targets):
            _make_directory(directory)
        with self._locked():
            if self._anchor.exists() or any(self._metadata.iterdir()):
                raise ReleaseError(
                    f"{self._metadata} or {self._anchor}: there is a repository already; nothing was changed"
                )
            root = Metadata(Root(expires=self._now + LIFETIME[ROOT], consistent_snapshot=True))
            _assign(root.signed, keys, root_threshold)
            state = _State(root, Metadata(Timestamp()), Metadata(Snapshot()), Metadata(Targets()))
            # As if they were the versions before: the first ones that are published are 1.
            for role in (state.timestamp, state.snapshot, state.targets):
                role.signed.version = 0
            self._sign(ROOT, root, root.signed)
            self._publish(state, {TARGETS}, [root.signed])
            self._write_root(root)

    def publish(self, channel: str, file: Path) -> str:
        """Make this tapotun.pyz the newest of a channel. Returns its version.

        The file that it replaces stays on the disk, for clients that are about to fetch it.
        """
        if not _CHANNEL.fullmatch(channel):
            raise ReleaseError(f"{channel}: not the name of a channel, such as stable")
        pyz = Pyz.read(file)
        with self._locked():
            state = self._load()
            path = f"{channel}/tapotun.pyz"
            try:
                before = state.targets.signed.targets.get(path)
                if before is not None and not is_newer(pyz.version, str(before.custom["version"])):
                    raise ReleaseError(
                        f"{file}: version {pyz.version}, and {channel} has {before.custom['version']} already:"
                        " clients take only what is newer"
                    )
                is_newer(pyz.version, "0")
            except ValueError as exc:
                raise ReleaseError(f"{file}: version {pyz.version}: {exc}") from exc
            target = TargetFile.from_data(path, pyz.data, ["sha256"])
            target.unrecognized_fields["custom"] = {"version": pyz.version, "python": pyz.python}
            state.targets.signed.targets[path] = target
            (prefixed,) = target.get_prefixed_paths()
            _make_directory(self._targets / channel)
            self._publish(state, {TARGETS}, [state.root.signed], [(self._targets / prefixed, pyz.data)])
        return pyz.version

    def require_keys(self) -> None:
        """Raises ReleaseError if a private key is missing, or cannot be read, without which `publish` would fail.
        Changes nothing, and asks for no passphrase."""
        with self._locked():
            root = self._load().root.signed
            for role in (TARGETS, SNAPSHOT, TIMESTAMP):
                self._require(root, role)
                for keyid in filter(self._keys.can_sign, root.roles[role].keyids):
                    self._keys.private_bytes(keyid)

    def refresh(self) -> list[str]:
        """Sign timestamp.json anew, and what has passed half of its lifetime, as far as keys are here.

        Returns lines for people: what nobody has renewed, and should.
        """
        warnings = []
        with self._locked():
            state = self._load()
            renew = set()
            for role, signed in ((SNAPSHOT, state.snapshot.signed), (TARGETS, state.targets.signed)):
                if self._is_due(role, signed.expires):
                    if self._missing(state.root.signed, role) > 0:
                        warnings.append(f"{role} expires on {signed.expires:%Y-%m-%d}: refresh with its key, before")
                    else:
                        renew.add(role)
            if self._is_due(ROOT, state.root.signed.expires):
                warnings.append(f"root expires on {state.root.signed.expires:%Y-%m-%d}: rotate with its keys, before")
            self._publish(state, renew, [state.root.signed])
        return warnings

    def rotate(self, keys: Mapping[str, Sequence[SSlibKey]], root_threshold: int | None) -> int:
        """Sign a new root.json, perhaps with other keys. Returns its version.

        Args:
            keys: for some roles, all their keys from now on. A role that is not here keeps its own.
            root_threshold: how many of root's keys must sign; None: as before.

        The old root's keys must sign it, too, as many as it says. A role whose keys change is signed anew, by old keys
        and new ones where both are here, so clients that have the old root can read it until they have the new one.
        """
        with self._locked():
            state = self._load()
            old = state.root.signed
            root = Metadata(copy.deepcopy(old))
            root.signed.version += 1
            root.signed.expires = self._now + LIFETIME[ROOT]
            _assign(root.signed, keys, old.roles[ROOT].threshold if root_threshold is None else root_threshold)
            self._sign(ROOT, root, root.signed, old)
            changed = {it for it in (TIMESTAMP, SNAPSHOT, TARGETS) if set(old.roles[it].keyids) != set(_ids(root, it))}
            state.root = root
            if changed:
                self._publish(state, changed, [root.signed, old])
            self._write_root(root)
        return root.signed.version

    def describe(self) -> list[str]:
        """Verify everything, the targets' bytes as well. Returns lines for people."""
        with self._locked():
            state = self._load()
            lines = []
            for role, signed in state.roles():
                names = ", ".join(map(self._keys.name, state.root.signed.roles[role].keyids))
                threshold = state.root.signed.roles[role].threshold
                expired = ", EXPIRED" if signed.is_expired(self._now) else ""
                lines.append(
                    f"{role}: version {signed.version}, until {signed.expires:%Y-%m-%d %H:%M} UTC{expired};"
                    f" {threshold} of {names}"
                )
            for path, target in sorted(state.targets.signed.targets.items()):
                (prefixed,) = target.get_prefixed_paths()
                try:
                    target.verify_length_and_hashes((self._targets / prefixed).read_bytes())
                except (OSError, LengthOrHashMismatchError) as exc:
                    raise ReleaseError(
                        f"{self._targets / prefixed}: not there, or not the file that was signed"
                    ) from exc
                lines.append(f"{path}: {target.custom['version']}, {target.length} bytes")
        return lines

    # ------------------------------------------------------------------ reading

    def _load(self) -> _State:
        """What is published, verified from the trusted root on. Expired or not: it is about to be renewed."""
        root: Metadata[Root] = _parse(self._anchor)
        if not root.signed.get_root_verification_result(None, root.signed_bytes, root.signatures):
            raise ReleaseError(f"{self._anchor}: not as it was signed; take another copy of it")
        while (file := self._metadata / f"{root.signed.version + 1}.root.json").exists():
            newer: Metadata[Root] = _parse(file)
            result = newer.signed.get_root_verification_result(root.signed, newer.signed_bytes, newer.signatures)
            if not result:
                raise ReleaseError(f"{file}: not signed by the keys of the root before it; compare it with a copy")
            root = newer
        timestamp: Metadata[Timestamp] = self._verified(root.signed, TIMESTAMP, "timestamp.json", None)
        meta = timestamp.signed.snapshot_meta
        snapshot: Metadata[Snapshot] = self._verified(root.signed, SNAPSHOT, f"{meta.version}.snapshot.json", meta)
        meta = snapshot.signed.meta["targets.json"]
        targets: Metadata[Targets] = self._verified(root.signed, TARGETS, f"{meta.version}.targets.json", meta)
        return _State(root, timestamp, snapshot, targets)

    def _verified(self, root: Root, role: str, name: str, meta: MetaFile | None) -> Metadata[Any]:
        file = self._metadata / name
        found: Metadata[Any] = _parse(file)
        try:
            if meta is not None:
                meta.verify_length_and_hashes(file.read_bytes())
            root.verify_delegate(role, found.signed_bytes, found.signatures)
        except (UnsignedMetadataError, LengthOrHashMismatchError) as exc:
            raise ReleaseError(f"{file}: not as it was signed; compare it with a copy of the repository") from exc
        if found.signed.type != role or (meta is not None and found.signed.version != meta.version):
            raise ReleaseError(f"{file}: not {role} of the version that its name says")
        return found

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Nobody else changes it meanwhile."""
        try:
            os.listdir(self._metadata)
        except OSError as exc:
            remedy = "; init makes a repository" if isinstance(exc, FileNotFoundError) else ""
            raise ReleaseError(f"{self._metadata}: {exc.strerror}{remedy}") from exc
        # Not the directory: the web server's user may read that, and so could lock it until everything has expired.
        lock = self._metadata.parent / LOCK
        try:
            fd = open_lock(str(lock))
        except OSError as exc:
            raise ReleaseError(f"{lock}: cannot be locked: {reason_of(exc, lock)}") from exc
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                raise ReleaseError(f"{self._metadata}: in use by another run of this tool") from exc
            yield
        finally:
            os.close(fd)

    # ------------------------------------------------------------------ signing

    def _is_due(self, role: str, expires: datetime) -> bool:
        return expires - self._now < LIFETIME[role] / 2

    def _missing(self, root: Root, role: str) -> int:
        """How many keys too few are here to sign for that role."""
        return root.roles[role].threshold - sum(map(self._keys.can_sign, root.roles[role].keyids))

    def _require(self, root: Root, role: str) -> None:
        if self._missing(root, role) > 0:
            names = ", ".join(map(self._keys.name, root.roles[role].keyids))
            raise ReleaseError(f"{role}: {root.roles[role].threshold} of {names} must sign, and too few are here")

    def _sign(self, role: str, metadata: Metadata[Any], *roots: Root) -> None:
        """With every key that is here of that role in any of these roots.

        The first root must be content. For root.json all of them must: it takes the keys of the root before, too.
        """
        binding = roots if role == ROOT else roots[:1]
        for root in binding:
            self._require(root, role)
        metadata.signatures.clear()
        for keyid in dict.fromkeys(keyid for root in roots for keyid in root.roles[role].keyids):
            if self._keys.can_sign(keyid):
                metadata.sign(self._keys.signer(keyid), append=True)
        for root in binding:
            root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)

    def _publish(
        self, state: _State, changed: set[str], roots: Sequence[Root], files: Sequence[tuple[Path, bytes]] = ()
    ) -> None:
        """Sign those roles and all that names them. Then write these files and the metadata, timestamp.json last."""
        metadatas: dict[str, Metadata[Any]] = {
            TARGETS: state.targets,
            SNAPSHOT: state.snapshot,
            TIMESTAMP: state.timestamp,
        }
        roles = [TIMESTAMP]
        if changed & {SNAPSHOT, TARGETS}:
            roles.insert(0, SNAPSHOT)
        if TARGETS in changed:
            roles.insert(0, TARGETS)
        written = list(files)
        for role in roles:
            metadata = metadatas[role]
            metadata.signed.version += 1
            metadata.signed.expires = self._now + LIFETIME[role]
            self._sign(role, metadata, *roots)
            data = metadata.to_bytes()
            meta = MetaFile.from_data(metadata.signed.version, data, ["sha256"])
            if role == TARGETS:
                state.snapshot.signed.meta["targets.json"] = meta
            elif role == SNAPSHOT:
                state.timestamp.signed.snapshot_meta = meta
            name = "timestamp.json" if role == TIMESTAMP else f"{metadata.signed.version}.{role}.json"
            written.append((self._metadata / name, data))
        for file, data in written:
            _write(file, data)

    def _write_root(self, root: Metadata[Root]) -> None:
        data = root.to_bytes()
        _write(self._metadata / f"{root.signed.version}.root.json", data)
        _write(self._anchor, data)


def _assign(root: Root, keys: Mapping[str, Sequence[SSlibKey]], root_threshold: int) -> None:
    """Give these roles these keys and no others. Raises ReleaseError."""
    for role, wanted in keys.items():
        for keyid in list(root.roles[role].keyids):
            root.revoke_key(keyid, role)
        for key in wanted:
            root.add_key(key, role)
    root.roles[ROOT].threshold = root_threshold
    for role, found in root.roles.items():
        if found.threshold < 1:
            raise ReleaseError(f"{role}: {found.threshold} keys must sign, which nobody could trust: give 1 or more")
        if len(found.keyids) < found.threshold:
            raise ReleaseError(f"{role}: {found.threshold} keys must sign, and it has only {len(found.keyids)}")
    for role in (TARGETS, SNAPSHOT, TIMESTAMP):
        if shared := set(root.roles[ROOT].keyids) & set(root.roles[role].keyids):
            raise ReleaseError(f"{role}: key {shared.pop()[:12]}... is one of root's, which stay offline: make another")


def _ids(root: Metadata[Root], role: str) -> list[str]:
    return root.signed.roles[role].keyids


def _parse(file: Path) -> Metadata[Any]:
    try:
        return Metadata.from_bytes(file.read_bytes())
    except OSError as exc:
        raise ReleaseError(f"{file}: {exc.strerror}") from exc
    except DeserializationError as exc:
        raise ReleaseError(f"{file}: not metadata of The Update Framework") from exc


def _make_directory(place: Path) -> None:
    try:
        place.mkdir(mode=0o755, parents=True, exist_ok=True)
    except OSError as exc:
        raise ReleaseError(f"{place}: {exc.strerror}") from exc


def _write(file: Path, data: bytes) -> None:
    """Whole or not at all, on the disk before anything that names it, and readable for all. Raises ReleaseError."""
    try:
        with tempfile.NamedTemporaryFile(dir=file.parent, prefix=f".{file.name}.", delete=False) as part:
            try:
                part.write(data)
                part.flush()
                os.fchmod(part.fileno(), 0o644)
                os.fsync(part.fileno())
                os.replace(part.name, file)
            except BaseException:
                os.unlink(part.name)
                raise
        directory = os.open(file.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as exc:
        raise ReleaseError(f"{file}: {exc.strerror}; run it again once that is mended") from exc
