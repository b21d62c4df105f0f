"""TLS for the client side: connections, and the sessions that they resume."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Sequence
from typing import Final

import trio

from ...config.model import TlsConfig
from ...errors import EndReason, PeerError, shortage_of
from ..process.descriptors import no_descriptor_left
from .sockets import GONE, TURNS, Connection
from .tls_errors import broke, certificate_info, failed, is_unknown_authority, not_accepted
from .tls_files import client_context

RECORD_BYTES: Final = 16 * 1024  # RFC 8446 section 5.1: of plaintext
BATCH_BYTES: Final = 128 * 1024  # received at a time, about; as much as the far end sends at a time


class TlsConnection(Connection):
    """A connection whose handshake is done, over a non-blocking `ssl.SSLSocket`."""

    __slots__ = ("client",)

    _sock: ssl.SSLSocket

    def __init__(self, sock: ssl.SSLSocket, name: str) -> None:
        super().__init__(sock, name)
        self.client: TlsClient | None = None  # to which its session is of use

    @property
    def session_reused(self) -> bool:
        """The handshake took an earlier connection's session up."""
        return bool(self._sock.session_reused)

    @property
    def version(self) -> str | None:
        """What was agreed on, as OpenSSL calls it: ``TLSv1.3``."""
        return self._sock.version()

    def certificate(self) -> dict[str, object]:
        """The far end's certificate, checked or not, as `ssl.SSLSocket.getpeercert` tells; empty if it is not known."""
        return dict(self._sock.getpeercert() or {}) or certificate_info(self._sock)

    def close(self) -> None:
        if self._fd >= 0 and self.client is not None:
            self.client.remember(self)
            self.client = None
        super().close()

    def session(self) -> ssl.SSLSession | None:
        """What a next handshake may resume; None: nothing yet. A server's tickets come after its handshake (RFC 8446
        section 4.6.1), with the first bytes that are received."""
        session = self._sock.session
        return session if session is not None and (session.has_ticket or self._sock.version() == "TLSv1.2") else None

    # OpenSSL takes and gives one record a call, so both go on: a pass through the receiver's loop, or a wait for
    # writability, for each of them costs more than the record itself (measured: 4.2 -> 2.5 CPU seconds per GB down).

    def try_receive(self, into: memoryview) -> int | None:
        receive, size = self._sock.recv_into, len(into)
        at = 0
        try:
            while received := receive(into[at:]):
                at += received
                if size - at < RECORD_BYTES or at >= BATCH_BYTES:
                    break
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return at or None
        except OSError as exc:
            if not at:  # else the next receive meets it again
                raise self._failed(exc) from exc
        return at

    def try_send(self, parts: Sequence[bytes | memoryview]) -> int:
        # OpenSSL wants one buffer, and after "want write" the very same bytes again: our callers keep
        # exactly the bytes that were not taken and offer nothing else before them.
        data = memoryview(b"".join(parts) if len(parts) > 1 else parts[0])
        size, sent = len(data), 0
        try:
            while sent < size:
                sent += self._sock.send(data[sent:])
        except ssl.SSLWantWriteError:
            pass
        except ssl.SSLWantReadError as exc:
            # Only within a handshake. To answer 0 would keep our callers waiting for a socket that is writable.
            raise PeerError(f"{self.name} wants another TLS handshake", reason=EndReason.TLS) from exc
        except OSError as exc:
            if not sent:  # else the next send meets it again
                raise self._failed(self._told(exc)) from exc
        return sent

    async def receive(self, into: memoryview) -> int:
        await trio.lowlevel.checkpoint_if_cancelled()
        # What OpenSSL has already decrypted makes no socket readable, so ask it first. Of that there can be more
        # and more: now and then the others get their turn.
        received = self.try_receive(into)
        self._turns += 1
        if received is not None and self._turns >= TURNS:
            self._turns = 0
            await trio.lowlevel.cancel_shielded_checkpoint()
        while received is None:
            self._turns = 0
            await self.wait_readable()
            received = self.try_receive(into)
        return received

    def _told(self, exc: OSError) -> OSError:
        """Why a send failed. Under TLS 1.3 the server judges our certificate when we may send already: then its alert
        waits to be received. Else ``exc`` says all there is."""
        try:
            self._sock.recv(1)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return exc
        except ssl.SSLError as alert:
            return alert
        except OSError:
            return exc
        return exc

    def _failed(self, exc: OSError) -> Exception:
        if self._fd >= 0 and isinstance(exc, ssl.SSLError) and shortage_of(exc, "") is None:
            return broke(exc, self.name, TlsConfig() if self.client is None else self.client.config)
        return super()._failed(exc)


class TlsClient:
    """TLS to one server. Keeps the session of the last connection there, so that the next one costs less: no chain of
    certificates, no signatures."""

    __slots__ = ("_context", "_newest", "_session", "config")

    def __init__(self, config: TlsConfig) -> None:
        """Raises UselessFile as `client_context` does."""
        self.config = config
        self._context = client_context(config)
        self._session: ssl.SSLSession | None = None
        self._newest: TlsConnection | None = None  # still open

    def remember(self, connection: TlsConnection) -> None:
        """Take the session of a connection that is still open, if it has one."""
        self._session = connection.session() or self._session
        if self._newest is connection:
            self._newest = None

    async def handshake(self, connection: Connection, host: str) -> TlsConnection:
        """Take ``connection`` over into TLS with ``host``, unless ``server_name`` says another name. The caller bounds
        the time. Cancelled or failed, it is closed.

        Raises PeerError with what a person can act on: expired, wrong name, unknown authority, not TLS at all.
        """
        if self._newest is not None:
            self.remember(self._newest)
        name = self.config.server_name or host
        # Used up now: if it is what makes this handshake fail, the next one goes without.
        session, self._session = self._session, None
        sock = connection.detach()
        try:
            wrapped = self._context.wrap_socket(
                sock, server_hostname=name, do_handshake_on_connect=False, session=session
            )
            tls = TlsConnection(wrapped, connection.name)
        except OSError as exc:
            sock.close()
            doing = f"connection to {connection.name} broke"
            raise shortage_of(exc, doing) or PeerError(
                f"{doing}: {exc.strerror}", reason=EndReason.BROKEN, key=GONE
            ) from exc
        except BaseException:
            sock.close()
            raise
        first = b""
        try:
            while True:
                try:
                    wrapped.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await tls.wait_readable()
                    first = first or _peek(wrapped)
                except ssl.SSLWantWriteError:
                    await tls.wait_writable()
        except ssl.SSLCertVerificationError as exc:
            # Authorities are looked for in the system's directory of certificates only now.
            lacks = no_descriptor_left(f"TLS handshake with {name} failed") if is_unknown_authority(exc) else None
            failure = lacks or not_accepted(exc, wrapped, name, self.config)
            tls.close()
            raise failure from exc
        except OSError as exc:
            tls.close()
            shortage = shortage_of(exc, f"TLS handshake with {name} failed")
            raise shortage or failed(exc, first, name, connection.name, self.config) from exc
        except BaseException:
            tls.close()
            raise
        # Only now: what a failed handshake leaves behind was never checked, and is nothing to resume.
        tls.client, self._session, self._newest = self, session, tls
        return tls


def _peek(sock: ssl.SSLSocket) -> bytes:
    """What the answer begins with, left where it is; of plain HTTP OpenSSL says only that it is not TLS."""
    try:
        return socket.socket.recv(sock, 5, socket.MSG_PEEK)
    except OSError:  # the handshake will say it
        return b""
