"""TLS for the client side: contexts, and connections over them."""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from typing import Final

import trio

from ..config.model import TlsConfig
from ..errors import HostError, PeerError
from .sockets import Connection

TURNS: Final = 8  # receives that may follow each other without a checkpoint


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

    __slots__ = ("_turns",)

    _sock: ssl.SSLSocket

    def __init__(self, sock: ssl.SSLSocket, name: str) -> None:
        super().__init__(sock, name)
        self._turns = 0  # receives in a row without a checkpoint

    def try_receive(self, into: memoryview) -> int | None:
        try:
            return self._sock.recv_into(into)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return None
        except OSError as exc:
            raise self._failed(exc) from exc

    def try_send(self, parts: Sequence[bytes | memoryview]) -> int:
        # OpenSSL wants one buffer, and after "want write" the very same bytes again: our callers keep
        # exactly the bytes that were not taken and offer nothing else before them.
        try:
            return self._sock.send(b"".join(parts) if len(parts) > 1 else parts[0])
        except ssl.SSLWantWriteError:
            return 0
        except ssl.SSLWantReadError as exc:
            # Only within a handshake. To answer 0 would keep our callers waiting for a socket that is writable.
            raise PeerError(f"{self.name} wants another TLS handshake", reason="tls") from exc
        except OSError as exc:
            raise self._failed(exc) from exc

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
