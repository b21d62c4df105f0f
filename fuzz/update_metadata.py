"""What a repository of updates publishes, as the process without a network verifies it.

The input is a `bundle` of files, which are new ones and, a second time, those of an earlier check. Nothing but the one
version that the keys have signed may ever be offered.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from tapotun_trio.update import bundle
from tapotun_trio.update.trust import Refresh, Target, UntrustedError
from tests.harness.updates import Repository

from .feeding import assert_printable

with TemporaryDirectory() as _place:
    _repository = Repository(Path(_place, "repository"))
    _root: Final = _repository.root_file.read_bytes()
    _target: Final = _repository.add("0.2.0", b"the program")
    _repository.rotate("timestamp")
    _files: Final = _repository.metadata()

SEEDS: Final = [bundle.encode(_files), *(bundle.encode({name: data}) for name, data in _files.items()), b"{}"]


def check(data: bytes) -> None:
    try:
        files = bundle.decode(data)
    except ValueError:
        # The fuzzer has to change what the bundle holds, too: one file for another.
        files = {**_files, "timestamp.json": data}
    for kept in ({}, files):
        try:
            target = _verify(Refresh(_root, kept), {**_files, **files})
        except UntrustedError as exc:
            assert_printable(exc)
        else:
            assert (target.version, target.sha256) == ("0.2.0", _target.hashes["sha256"])


def _verify(refresh: Refresh, files: dict[str, bytes]) -> Target:
    steps, data = refresh.run(), None
    while True:
        try:
            data = files.get(steps.send(data).name)
        except StopIteration:
            return refresh.target("stable")
