"""TLS for clients: connections, and the sessions that they resume."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import trio

from ...config.model import TlsConfig
from ...errors import EndReason, HostError, PeerError, passing_shortages, shortage_of
from ..process.descriptors import no_descriptor_left
from .sockets import GONE, TURNS, Connection
from .tls_errors import broke, certificate_info, failed, is_unknown_authority, not_accepted
from .tls_files import client_context

RECORD_BYTES: Final = 16 * 1024  # RFC 8446 section 5.1: the maximum of plaintext in a record
FILES_S: Final = 10.0  # for all files of a client; a disk that only has to spin up takes less
# Threads that read files. A thread that waits for a dead disk cannot be cancelled, so it is left behind; there are no
# more of them than this, because each keeps its memory.
_READERS: Final = trio.CapacityLimiter(2)
BATCH_BYTES: Final = 128 * 1024  # about as much as one receive takes, because the peer sends as much at a time


class TlsConnection(Connection):
    """A connection whose handshake is done, over a non-blocking `ssl.SSLSocket`.

    `tls_records.RecordConnection` is one over a plain socket.
    """

    __slots__ = ("_last_alert", "_tls", "client")

    def __init__(self, sock: socket.socket, name: str, tls: ssl.SSLSocket | ssl.SSLObject | None = None) -> None:
        """``tls``: knows the session; None: ``sock`` does."""
        super().__init__(sock, name)
        if tls is None:
            assert isinstance(sock, ssl.SSLSocket)
            tls = sock
        self._tls = tls
        self._last_alert = False  # our last alert was sent, or there is none to send
        self.client: TlsClient | None = None  # gets the session when this closes

    @property
    def can_lend_sending(self) -> bool:
        return False

    @property
    def can_lend_receiving(self) -> bool:
        return False

    @property
    def holds_received(self) -> bool:
        return True

    @property
    def session_reused(self) -> bool:
        """Whether the handshake resumed the session of an earlier connection."""
        return bool(self._tls.session_reused)

    @property
    def version(self) -> str | None:
        """The negotiated version, as OpenSSL names it: ``TLSv1.3``."""
        return None if self._fd < 0 else self._tls.version()

    @property
    def tls(self) -> str | None:
        version = self.version
        return None if version is None else version.replace("TLSv", "TLS ")

    def certificate(self) -> dict[str, object]:
        """The peer's certificate, verified or not, in the format of `ssl.SSLSocket.getpeercert`; empty if not known."""
        return dict(self._tls.getpeercert() or {}) or self.unverified_certificate()

    def unverified_certificate(self) -> dict[str, object]:
        """The same, also within the handshake, or after it has failed."""
        return certificate_info(self._tls)

    def do_handshake(self) -> None:
        """One step of the handshake, as `ssl.SSLSocket.do_handshake`."""
        self._tls.do_handshake()

    def shutdown_sending(self) -> None:
        self._say_last()
        super().shutdown_sending()

    def abort(self) -> None:
        self._last_alert = True  # a reset is no orderly end
        super().abort()

    def close(self) -> None:
        if self._fd >= 0 and self.client is not None:
            self.client.remember(self)
            self.client = None
        self._say_last()
        super().close()

    def _say_last(self) -> None:
        """Send close_notify (RFC 8446 section 6.1), unless an alert was our last one; nothing may be sent after it. If
        the socket does not take it, nobody waits for that."""
        if self._fd >= 0 and not self._last_alert:
            self._last_alert = True
            self._send_close_notify()

    def _send_close_notify(self) -> None:
        assert isinstance(self._sock, ssl.SSLSocket)
        with suppress(OSError, ValueError):  # ValueError: the handshake had not begun
            self._sock.unwrap()  # raises SSLWantReadError, since it does not wait for the other end's

    def session(self) -> ssl.SSLSession | None:
        """The session that a later handshake may resume; None if there is none yet. A server sends tickets after its
        handshake (RFC 8446 section 4.6.1), so they arrive with the first bytes that are received."""
        session = self._tls.session
        return session if session is not None and (session.has_ticket or self._tls.version() == "TLSv1.2") else None

    # OpenSSL handles one record per call, so both methods loop. Otherwise each record would take a pass through the
    # receiver's loop, or a wait for writability, which costs more than the record itself (measured: 4.2 -> 2.5 CPU
    # seconds per GB down).

    def try_receive(self, into: memoryview) -> int | None:
        receive, size = self._sock.recv_into, len(into)
        offset = 0
        try:
            while received := receive(into[offset:]):
                offset += received
                if size - offset < RECORD_BYTES or offset >= BATCH_BYTES:
                    break
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return offset or None
        except OSError as exc:
            if not offset:  # otherwise the next receive gets the same error
                raise self.failure(exc) from exc
        return offset

    def try_send(self, parts: Sequence[bytes | memoryview]) -> int:
        # OpenSSL wants one buffer, and after "want write" exactly the same bytes again. Our callers keep the bytes that
        # were not taken, and offer them first.
        data = memoryview(b"".join(parts) if len(parts) > 1 else parts[0])
        size, sent = len(data), 0
        try:
            while sent < size:
                sent += self._sock.send(data[sent:])
        except ssl.SSLWantWriteError:
            pass
        except ssl.SSLWantReadError as exc:
            # This happens only in a handshake. If this returned 0, our callers would wait for a socket that is already
            # writable.
            raise PeerError(f"{self.name} wants another TLS handshake", reason=EndReason.TLS) from exc
        except OSError as exc:
            if not sent:  # otherwise the next send gets the same error
                raise self.failure(self._reason(exc)) from exc
        return sent

    async def receive(self, into: memoryview) -> int:
        await trio.lowlevel.checkpoint_if_cancelled()
        # Data that OpenSSL has already decrypted does not make the socket readable, so ask OpenSSL first. It may always
        # have more: a checkpoint every TURNS calls lets other tasks run.
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

    def _reason(self, exc: OSError) -> OSError:
        """The error that explains why a send failed.

        With TLS 1.3 we may send before the server has verified our certificate. If it refuses the certificate, its
        alert waits to be received. Returns that alert if there is one, otherwise ``exc``.
        """
        try:
            self._receive_alert()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError, ssl.SSLZeroReturnError, ssl.SSLEOFError):
            return exc
        except ssl.SSLError as alert:
            return alert
        except OSError:
            return exc
        return exc

    def peek(self) -> bytes:
        """The first bytes that came, which stay in the socket. They show plain HTTP, for which OpenSSL only says that
        it is not TLS."""
        try:
            return socket.socket.recv(self._sock, 5, socket.MSG_PEEK)
        except OSError:  # the handshake reports it
            return b""

    def _receive_alert(self) -> None:
        """Receive what may be an alert, and is of no use otherwise. Raises OSError."""
        self._sock.recv(1)

    def failure(self, exc: OSError) -> Exception:
        if self._fd >= 0 and isinstance(exc, ssl.SSLError) and shortage_of(exc, "") is None:
            return broke(exc, self.name, TlsConfig() if self.client is None else self.client.config)
        return super().failure(exc)


class TlsClient:
    """TLS to one server. Keeps the session of the last connection, so that the next handshake is cheaper: it needs no
    certificates and no signatures."""

    __slots__ = ("_context", "_newest", "_session", "config")

    def __init__(self, config: TlsConfig, context: ssl.SSLContext | None = None) -> None:
        """``context``: from `client_context`. None: it is made here, which may wait for a disk, and raises UselessFile.
        A process that carries packets uses `open_tls` instead."""
        self.config = config
        self._context = client_context(config) if context is None else context
        self._session: ssl.SSLSession | None = None
        self._newest: TlsConnection | None = None  # the newest connection, while it is open

    def remember(self, connection: TlsConnection) -> None:
        """Keep the session of a connection that is still open, if it has one."""
        self._session = connection.session() or self._session
        if self._newest is connection:
            self._newest = None

    async def handshake(
        self, connection: Connection, host: str, began: Callable[[Connection], None] = lambda connection: None
    ) -> TlsConnection:
        """Start TLS on ``connection`` and take ownership of it. The server's name is ``server_name``, or else ``host``.

        ``began``: called with the TLS connection before the handshake, so that the caller can observe it.

        The caller bounds the time. If it is cancelled or fails, the connection is closed. Raises PeerError with an
        explanation and a remedy: expired, wrong name, unknown authority, not TLS at all.
        """
        if self._newest is not None:
            self.remember(self._newest)
        name = self.config.server_name or host
        # Use a session once: if it makes this handshake fail, the next one does not use it.
        session, self._session = self._session, None
        sock = connection.detach()
        try:
            tls = self._wrap(sock, connection.name, name, session)
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
        began(tls)
        try:
            while True:
                try:
                    tls.do_handshake()
                    break
                except ssl.SSLWantReadError:
                    await tls.wait_readable()
                    first = first or tls.peek()
                except ssl.SSLWantWriteError:
                    await tls.wait_writable()
        except ssl.SSLCertVerificationError as exc:
            # OpenSSL reads the system's directory of certificates only now, and may lack a descriptor for that.
            shortage = no_descriptor_left(f"TLS handshake with {name} failed") if is_unknown_authority(exc) else None
            failure = shortage or not_accepted(exc, tls.unverified_certificate(), name, self.config)
            tls.close()
            raise failure from exc
        except OSError as exc:
            tls.close()
            shortage = shortage_of(exc, f"TLS handshake with {name} failed")
            raise shortage or failed(exc, first, name, connection.name, self.config) from exc
        except BaseException:
            tls.close()
            raise
        # Set only now: the session of a failed handshake was never verified, and must not be resumed.
        tls.client, self._session, self._newest = self, session, tls
        return tls

    def _wrap(self, sock: socket.socket, peer: str, name: str, session: ssl.SSLSession | None) -> TlsConnection:
        """A connection before its handshake. Raises OSError."""
        from . import tls_records  # it imports this module

        host = name.encode("ascii")  # for text, `ssl` would load a codec that makes ASCII of it: 0.35 MB
        if tls_records.wanted(self._context):
            return tls_records.RecordConnection(sock, peer, self._context, host, session)
        wrapped = self._context.wrap_socket(sock, server_hostname=host, do_handshake_on_connect=False, session=session)
        return TlsConnection(wrapped, peer)


async def open_tls(config: TlsConfig) -> TlsClient:
    """Make a client whose files are read by a thread, because the disk that they are on may not answer.

    Cancel-safe. Raises HostError, with the name of the file: it cannot be used, or could not be read within FILES_S. A
    thread that still waits for its disk then is left behind.
    """
    reading: list[str] = []

    def read() -> ssl.SSLContext:
        reading.append("a file of tls")
        from . import tls_records  # noqa: F401 - for `_wrap`: later, no descriptor may be left to open it with

        return client_context(config, reading.append)

    with trio.move_on_after(FILES_S), passing_shortages("cannot set TLS up"):
        # Interfaces that start together wait here for each other.
        context = await trio.to_thread.run_sync(read, abandon_on_cancel=True, limiter=_READERS)
        return TlsClient(config, context)
    if not reading:
        raise HostError(f"{_READERS.borrowed_tokens} earlier attempts still wait for the disk of the files of tls")
    raise HostError(f"{reading[-1]} could not be read within {FILES_S:g} s; is it on a disk that answers?")
