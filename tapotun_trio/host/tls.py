"""TLS for the client side: contexts, and connections over them."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Final

import trio

from ..config.model import TlsConfig
from ..errors import HostError, PeerError
from .sockets import TURNS, Connection

RECORD_BYTES: Final = 16 * 1024  # RFC 8446 section 5.1: of plaintext
BATCH_BYTES: Final = 128 * 1024  # received at a time, about; as much as the far end sends at a time


def client_context(config: TlsConfig) -> ssl.SSLContext:
    """The system's trust, or ``ca_file`` instead of it, or none at all (``insecure``). TLS 1.2 and up.

    Raises HostError if ``ca_file`` cannot be read or holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=config.ca_file)
    except (OSError, ssl.SSLError) as exc:
        raise HostError(
            f"tls.ca_file {config.ca_file}: {exc.strerror or exc}; give a PEM file with the authority's certificate"
        ) from exc
    context.set_alpn_protocols(["http/1.1"])
    # Under TLS 1.2 a server could ask for a new handshake at any time, and sending would have to wait for receiving.
    context.options |= ssl.OP_NO_RENEGOTIATION
    if config.insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


class TlsConnection(Connection):
    """A connection whose handshake is done, over a non-blocking `ssl.SSLSocket`."""

    __slots__ = ()

    _sock: ssl.SSLSocket

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
            raise PeerError(f"{self.name} wants another TLS handshake", reason="tls") from exc
        except OSError as exc:
            if not sent:  # else the next send meets it again
                raise self._failed(exc) from exc
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

    def _failed(self, exc: OSError) -> Exception:
        if self._fd >= 0 and isinstance(exc, ssl.SSLError):
            return PeerError(f"TLS connection to {self.name} broke: {exc.reason or exc}", reason="broken")
        return super()._failed(exc)


async def handshake(connection: Connection, context: ssl.SSLContext, server_name: str) -> TlsConnection:
    """Take ``connection`` over into TLS. The caller bounds the time. Cancelled or failed, it is closed.

    Raises PeerError with what a person can act on: expired, wrong name, unknown authority, not TLS at all.
    """
    sock = connection.detach()
    try:
        wrapped = context.wrap_socket(sock, server_hostname=server_name, do_handshake_on_connect=False)
        tls = TlsConnection(wrapped, connection.name)
    except OSError as exc:
        sock.close()
        raise PeerError(f"connection to {connection.name} broke: {exc.strerror}", reason="broken") from exc
    try:
        while True:
            try:
                wrapped.do_handshake()
                return tls
            except ssl.SSLWantReadError:
                await tls.wait_readable()
            except ssl.SSLWantWriteError:
                await tls.wait_writable()
    except ssl.SSLCertVerificationError as exc:
        tls.close()
        raise PeerError(
            f"the certificate of {server_name} is not accepted: {exc.verify_message}", reason="tls"
        ) from exc
    except OSError as exc:
        tls.close()
        text = getattr(exc, "reason", None) or exc.strerror or str(exc)
        raise PeerError(f"TLS handshake with {server_name} ({connection.name}) failed: {text}", reason="tls") from exc
    except BaseException:
        tls.close()
        raise
