"""The Protocol through which status, readiness and the control commands use a running server or client."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

from ..cooperative import Steps
from ..peer.boottime import BootTime
from ..peer.status import Peer
from ..status.model import InterfaceState, InterfaceStatus

if TYPE_CHECKING:
    from ..server.session import Session


class Tunnel(Protocol):
    """`server.server.TunnelServer` or `client.client.TunnelClient`."""

    @property
    def interface_state(self) -> InterfaceState:
        """``up`` or ``connecting``."""

    @property
    def problem(self) -> str | None:
        """Why the interface is not up, in one phrase; None if the tunnel does not know."""

    @property
    def sessions(self) -> Sequence[Session] | None:
        """A server's sessions, one for each client in its config. None: this is a client.

        A reload makes a new list and leaves this one as it is.
        """

    def peers(self) -> Iterator[tuple[str, Peer]]:
        """Yield each peer with its name in the status. A reload during the iteration does not disturb it."""

    def last_seen(self) -> dict[str, BootTime]:
        """Return when each peer was last heard, by its name in the status. Peers that were never heard are left out."""

    def status(self, common: InterfaceStatus) -> Steps[InterfaceStatus]:
        """``common``, completed with what the tunnel knows, in steps of about a millisecond."""
