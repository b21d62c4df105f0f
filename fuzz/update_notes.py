"""What lies beside a pyz on trial, and what a version prints that is tried: understood or refused, never worse."""

from __future__ import annotations

from typing import Final

from tapotun_trio.update.launcher import VERSION_CHARS, Trial, printable
from tapotun_trio.update.selfcheck import failures

SEEDS: Final = [
    b'\x00{"version": "3", "sha256": "ab", "previous_version": "0.2.0", "previous_sha256": "cd", "starts": {"a": 2}}',
    b'\x00{"version": null, "sha256": 1, "previous_version": [], "previous_sha256": {}, "starts": "9"}',
    b"\x00" + b"[" * 2000,
    b'\x01{"version": 1, "findings": [{"severity": "failure", "check": "tun", "text": "no", "remedy": ""}]}',
    b'\x01{"findings": [{"severity": "failure", "check": 1, "text": "\\ud800\\u001b[0m"}]}',
    b'\x01{"findings": 1}',
]


def check(data: bytes) -> None:
    if not data:
        return
    text = data[1:].decode("utf-8", "replace")
    if data[0] & 1:
        found = failures(text)
        assert found is None or all(line.isprintable() for line in found)
        return
    try:
        trial = Trial.decode(text)
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    assert vars(Trial.decode(trial.encode())) == vars(trial)
    assert printable(trial.version).isascii()
    assert len(printable(trial.version)) <= VERSION_CHARS
