"""What a check for updates can find."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from ..errors import HostError


class UpdateError(HostError):
    """No check was made, or nothing that it brought can be trusted. The text is one line for people."""


@dataclass(frozen=True, slots=True)
class UpToDate:
    """The repository has nothing newer.

    Attributes:
        version: the newest version of the channel, which may be older than the installed one.
        warnings: what does not prevent a check, a line each.
    """

    version: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """A newer version, which the repository's keys vouch for.

    Attributes:
        version: newer than the installed one by `version.is_newer`.
        sha256: lowercase hex.
        length: in bytes.
        memfd: the file itself, sealed against every change (memfd_create(2), F_ADD_SEALS), its hash and length
            compared with these. The caller owns and closes it. None: the file was not asked for.
        warnings: as in `UpToDate`.
    """

    version: str
    sha256: str
    length: int
    memfd: int | None = None
    warnings: tuple[str, ...] = ()


Outcome: TypeAlias = UpToDate | Found
