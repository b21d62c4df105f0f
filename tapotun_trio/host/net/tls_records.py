"""TLS connections whose records this process opens and seals itself, so that the plane can do it in C.

Python's `ssl` reads and writes one record per call, with two system calls for each. Here one system call moves many
records, and `_tls.c` opens them, with the ciphers of the same libcrypto. The same code serves the plane
(`datapath/plane.py`), which then receives and sends below trio's tasks.

The handshake stays OpenSSL's: certificates, names, versions, sessions and all their errors. It runs over memory
BIOs and gets one record at a time, so it is known that no record behind the server's Finished was given to it. When
it is done, OpenSSL's key log tells the traffic secrets (RFC 8446 section 7.1), by a pipe within this process. From then
on both directions begin at record 0 of their traffic keys, and only the `Tls` object of `_tls.c` counts records.

OpenSSL reads no data any more, but as long as no data came it is still shown each session ticket and each alert: it
makes a session of the one and an error of the other. Later tickets are dropped. A KeyUpdate is handled here.

With TLS 1.2, and if there are no secrets, OpenSSL does everything, over the same BIOs.

Bytes from the peer are untrusted input. Buffers are bounded, and so is what one receive does. A record that is not as
RFC 8446 says ends the connection, and the peer is told why by an alert. Any other end of ours is a close_notify.
"""

from __future__ import annotations

import _ssl
import os
import re
import socket
import ssl
from collections.abc import Sequence
from contextlib import suppress
from mmap import mmap
from typing import Final

from ...native import PUMP, Tls
from .sockets import TLS_RECORDS_WANTED
from .tls import BATCH_BYTES, RECORD_BYTES, TlsConnection

# How much is received at once. More brings nothing (measured: 64 KiB 1.48, 128 KiB 1.43, 256 KiB 1.42 of the target's
# floor), and these pages stay resident.
RAW_BYTES: Final = 128 * 1024
_LOG_BYTES: Final = 8 * 1024  # of one step of a handshake: five lines of up to 185 bytes
_SUITES: Final = {
    "TLS_AES_128_GCM_SHA256": 0x1301,
    "TLS_AES_256_GCM_SHA384": 0x1302,
    "TLS_CHACHA20_POLY1305_SHA256": 0x1303,
}
_SECRET: Final = re.compile(rb"(?m)^(CLIENT|SERVER)_TRAFFIC_SECRET_0 [0-9a-f]+ ([0-9a-f]+)$")

# RFC 8446 appendix B.1 and B.3.
_ALERT, _HANDSHAKE, _DATA = 21, 22, 23
_RECORD_TYPES: Final = frozenset({20, _ALERT, _HANDSHAKE, _DATA})
_NEW_SESSION_TICKET, _KEY_UPDATE = 4, 24
_RECORD_HEAD: Final = 5
_MAX_BODY_BYTES: Final = RECORD_BYTES + 2048  # TLS 1.2 (RFC 5246 section 6.2.3); TLS 1.3 allows less
_MESSAGE_HEAD: Final = 4
# A ticket has at most 64 KiB, and some fields around it (section 4.6.1).
MAX_MESSAGE_BYTES: Final = 66 * 1024
# Records other than data that may come while no data is received or sent. A server sends a few tickets; a KeyUpdate
# comes once in many GB.
MAX_OTHERS: Final = 64
_CLOSE_NOTIFY, _USER_CANCELED, _DECODE_ERROR = 0, 90, 50
_WARNING, _FATAL = 1, 2
# The alerts that answer what a server must not send, by OpenSSL's names for it; DECODE_ERROR answers anything else.
_ANSWERS: Final = {
    "UNEXPECTED_MESSAGE": 10,
    "BAD_RECORD_TYPE": 10,
    "NOT_ON_RECORD_BOUNDARY": 10,
    "TOO_MANY_KEY_UPDATES": 10,
    "DECRYPTION_FAILED_OR_BAD_RECORD_MAC": 20,
    "LENGTH_TOO_SHORT": 20,
    "PACKET_LENGTH_TOO_LONG": 22,
    "DATA_LENGTH_TOO_LONG": 22,
    "BAD_KEY_UPDATE": 47,
    "EXCESSIVE_MESSAGE_SIZE": 47,
    "WRONG_VERSION_NUMBER": 70,
    "INTERNAL_ERROR": 80,
}
# OpenSSL's names for the alerts that a server may send after the handshake (RFC 8446 section 6).
_ALERTS: Final = {
    10: "SSLV3_ALERT_UNEXPECTED_MESSAGE",
    20: "SSLV3_ALERT_BAD_RECORD_MAC",
    22: "TLSV1_ALERT_RECORD_OVERFLOW",
    40: "SSLV3_ALERT_HANDSHAKE_FAILURE",
    42: "SSLV3_ALERT_BAD_CERTIFICATE",
    43: "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    44: "SSLV3_ALERT_CERTIFICATE_REVOKED",
    45: "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    46: "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    47: "SSLV3_ALERT_ILLEGAL_PARAMETER",
    48: "TLSV1_ALERT_UNKNOWN_CA",
    49: "TLSV1_ALERT_ACCESS_DENIED",
    50: "TLSV1_ALERT_DECODE_ERROR",
    51: "TLSV1_ALERT_DECRYPT_ERROR",
    70: "TLSV1_ALERT_PROTOCOL_VERSION",
    71: "TLSV1_ALERT_INSUFFICIENT_SECURITY",
    80: "TLSV1_ALERT_INTERNAL_ERROR",
    109: "TLSV13_ALERT_MISSING_EXTENSION",
    112: "TLSV1_UNRECOGNIZED_NAME",
    115: "TLSV1_ALERT_UNKNOWN_PSK_IDENTITY",
    116: "TLSV13_ALERT_CERTIFICATE_REQUIRED",
    120: "TLSV1_ALERT_NO_APPLICATION_PROTOCOL",
}


def wanted(context: ssl.SSLContext) -> bool:
    """Whether a new connection is to be a `RecordConnection`."""
    # If a person wants a key log (SSLKEYLOGFILE), it stays theirs.
    return TLS_RECORDS_WANTED.get() and can_open_records() and context.keylog_filename is None


def can_open_records() -> bool:
    """Whether there is a native part, and it finds libcrypto."""
    path = getattr(_ssl, "__file__", None)
    return PUMP is not None and path is not None and bool(PUMP.load_crypto(path))


class RecordConnection(TlsConnection):
    """A connection over a non-blocking TCP socket; see this module."""

    __slots__ = (
        "_at_end",
        "_context",
        "_failure",
        "_finished",
        "_incoming",
        "_interrupted",
        "_message",
        "_numbers",
        "_object",
        "_other",
        "_others",
        "_outgoing",
        "_owed",
        "_plain",
        "_raw",
        "_raw_lent",
        "_raw_start",
        "_raw_stop",
        "_records",
        "_shown",
        "_unsent",
    )

    def __init__(
        self, sock: socket.socket, name: str, context: ssl.SSLContext, host: bytes, session: ssl.SSLSession | None
    ) -> None:
        """Raises OSError as `ssl.SSLContext.wrap_bio` does, and if there is no memory."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls_object = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host, session=session)
        super().__init__(sock, name, tls_object)
        self._object = tls_object
        self._context = context
        self._finished = False  # the handshake; its last bytes may still have to be sent
        self._raw = mmap(-1, RAW_BYTES)  # pages that are never touched never become resident
        self._raw_start = self._raw_stop = 0  # what was received and not opened
        self._raw_lent = False
        self._records: Tls | None = None  # once the handshake is done
        self._shown = 0  # records that OpenSSL was shown since
        self._plain = b""  # content of an opened record that the last receive had no room for
        self._message = b""  # the beginning of a handshake message whose rest has not come
        self._other = False  # the plane has stopped at a record that is for us
        self._others = 0  # records without data that came since data was last received or sent
        self._numbers = 0, 0  # of the next records, after the last of these
        self._interrupted = False  # there was one of these in this receive
        self._at_end = False  # the other end has sent close_notify
        self._failure: ssl.SSLError | None = None  # why no more can be received, nor sent
        # Sealed bytes that the socket has not taken, and how many bytes of the next call of `try_send` they stand for.
        self._unsent = memoryview(b"")
        self._owed = 0

    # -- the handshake

    def do_handshake(self) -> None:
        """One step. Raises ssl.SSLWantReadError, ssl.SSLWantWriteError, and OSError as `ssl.SSLSocket` does."""
        while not self._finished:
            self._flush_handshake()
            try:
                with _KeyLog(self._context) as log:
                    self._object.do_handshake()
            except ssl.SSLWantReadError:
                self._flush_handshake()
                self._feed()
            except OSError:
                with suppress(OSError):  # an alert for the server
                    self._sock.send(self._outgoing.read())
                raise
            else:
                self._finish_handshake(log)
        self._flush_handshake()

    def _finish_handshake(self, log: _KeyLog) -> None:
        self._finished = True
        suite = self._object.cipher()
        if self._object.version() == "TLSv1.3" and suite is not None and suite[0] in _SUITES:
            self._records = log.records(_SUITES[suite[0]])
        log.wipe()
        if self._records is None:  # all that came is OpenSSL's
            self._incoming.write(memoryview(self._raw)[self._raw_start : self._raw_stop])
            self._raw_start = self._raw_stop = 0

    def _flush_handshake(self) -> None:
        """Send all that OpenSSL has to send. Raises ssl.SSLWantWriteError, OSError."""
        self._unsent = self._unsent or memoryview(self._outgoing.read())
        try:
            while self._unsent:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            raise ssl.SSLWantWriteError from None

    def _feed(self) -> None:
        """Give OpenSSL the next record. Raises ssl.SSLWantReadError if it has not come, OSError."""
        view = memoryview(self._raw)
        while (stop := self._record_stop()) is None:
            received = self._receive_raw()
            if received is None:
                raise ssl.SSLWantReadError
            if received == 0:
                self._incoming.write(view[self._raw_start : self._raw_stop])
                self._raw_start = self._raw_stop
                self._incoming.write_eof()
                return
        self._incoming.write(view[self._raw_start : stop])
        self._raw_start = stop

    def _record_stop(self) -> int | None:
        """Where the next record ends; None if that has not come. Of what is no record, everything that came."""
        have = self._raw_stop - self._raw_start
        if not have:
            return None
        if self._raw[self._raw_start] not in _RECORD_TYPES:
            return self._raw_stop
        if have < _RECORD_HEAD:
            return None
        head = self._raw[self._raw_start : self._raw_start + _RECORD_HEAD]
        size = head[3] << 8 | head[4]
        if head[1] != 3 or size > _MAX_BODY_BYTES:
            return self._raw_stop
        size += _RECORD_HEAD
        return self._raw_start + size if have >= size else None

    # -- receiving

    def _receive_raw(self) -> int | None:
        """Receive behind what is there. Returns as `Connection.try_receive` does; raises OSError."""
        view = memoryview(self._raw)
        if self._raw_start == self._raw_stop:
            self._raw_start = self._raw_stop = 0
        elif RAW_BYTES - self._raw_stop < RAW_BYTES // 4:
            left = self._raw_stop - self._raw_start
            view[:left] = bytes(view[self._raw_start : self._raw_stop])
            self._raw_start, self._raw_stop = 0, left
        try:
            received = self._sock.recv_into(view[self._raw_stop :])
        except BlockingIOError:
            return None
        self._raw_stop += received
        return received

    def try_receive(self, into: memoryview) -> int | None:
        offset = 0
        size = len(into)
        self._interrupted = self._raw_lent = False  # the plane may have refused what it was to be lent
        try:
            while size - offset >= RECORD_BYTES or not offset:
                received = (
                    self._receive_some(into[offset:]) if self._records else self._receive_by_openssl(into[offset:])
                )
                if not received:
                    return offset or received
                offset += received
                # A peer may send a byte of data, and MAX_OTHERS other records, again and again.
                if offset >= BATCH_BYTES or self._interrupted:
                    break
        except OSError as exc:
            if not offset:  # otherwise the next receive gets the same error
                if isinstance(exc, ssl.SSLError):
                    self._say_last(_FATAL, _ANSWERS.get(exc.reason, _DECODE_ERROR))
                raise self.failure(exc) from exc
        return offset

    def _receive_some(self, into: memoryview) -> int | None:
        """Open what came, and receive if that is not enough. Returns as `Connection.try_receive`; raises OSError."""
        assert PUMP is not None
        assert self._records is not None
        while True:
            if self._failure is not None:
                raise self._failure
            if self._at_end:
                return 0
            if self._plain:
                size = min(len(into), len(self._plain))
                into[:size], self._plain = self._plain[:size], self._plain[size:]
                return size
            # Within a handshake message data is an error. So there is room for none, and it goes the way of all others.
            room = into[:0] if self._message else into
            self._raw_start, size, why = self._records.open(self._raw, self._raw_start, self._raw_stop, room)
            if size:
                return size
            if why == PUMP.WANTS_MORE:
                received = self._receive_raw()
                if not received:
                    return received
                continue
            try:
                self._take_record()
            except ssl.SSLError as exc:
                self._failure = exc

    def _take_record(self) -> None:
        """Take the next record, which is whole, or is none, whatever it is. Raises ssl.SSLError."""
        assert self._records is not None
        start, numbers = self._raw_start, self._records.numbers()
        self._other = False
        try:
            self._raw_start, kind, content = self._records.take(self._raw, start, self._raw_stop)
        except ValueError as exc:
            raise _error(str(exc)) from None
        if kind == _DATA and content and not self._message:
            self._plain = content
            return
        self._interrupted = True
        self._others = self._others + 1 if numbers == self._numbers else 1
        if self._others > MAX_OTHERS:
            raise _error("TOO_MANY_KEY_UPDATES")
        if kind == _HANDSHAKE and content:
            if not self._message and content[0] == _NEW_SESSION_TICKET:
                self._show(start)
            self._take_messages(content)
        elif kind == _ALERT and len(content) == 2:
            self._take_alert(start, content)
        elif kind != _DATA or self._message:  # else it is empty, as section 5.4 allows
            raise _error("UNEXPECTED_MESSAGE")
        self._numbers = self._records.numbers()

    def _show(self, start: int) -> None:
        """Show OpenSSL the record from ``start`` on, which was opened already, if it has seen all before it. Raises
        ssl.SSLError, for an alert."""
        assert self._records is not None
        if self._shown != self._records.numbers()[1] - 1:
            return
        self._shown += 1
        self._incoming.write(memoryview(self._raw)[start : self._raw_start])
        with suppress(ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            self._object.read(1)

    def _take_alert(self, start: int, content: bytes) -> None:
        """A close_notify ends the stream (RFC 8446 section 6.1), and a user_canceled only comes before it. Raises
        ssl.SSLError for any other alert."""
        if content[1] == _CLOSE_NOTIFY:
            self._at_end = True
        if content[1] in (_CLOSE_NOTIFY, _USER_CANCELED):
            return
        self._last_alert = True  # section 6.2: it is not answered
        self._show(start)
        raise _error(_ALERTS.get(content[1], f"ALERT_{content[1]}"))

    def _take_messages(self, content: bytes) -> None:
        """Take the handshake messages of a record (RFC 8446 section 4). Raises ssl.SSLError."""
        assert self._records is not None
        message = self._message + content
        while len(message) >= _MESSAGE_HEAD:
            kind, size = message[0], int.from_bytes(message[1:_MESSAGE_HEAD], "big")
            if size > MAX_MESSAGE_BYTES:
                raise _error("EXCESSIVE_MESSAGE_SIZE")
            if len(message) < _MESSAGE_HEAD + size:
                break
            body, message = message[_MESSAGE_HEAD : _MESSAGE_HEAD + size], message[_MESSAGE_HEAD + size :]
            if kind == _KEY_UPDATE:
                if body not in (b"\0", b"\1"):
                    raise _error("BAD_KEY_UPDATE")
                if message:  # section 5.1: a message must not span a change of the keys
                    raise _error("NOT_ON_RECORD_BOUNDARY")
                self._shown = -1
                try:
                    self._records.update(body == b"\1")
                except ValueError:
                    raise _error("INTERNAL_ERROR") from None
            elif kind != _NEW_SESSION_TICKET:
                raise _error("UNEXPECTED_MESSAGE")
        self._message = message

    # -- sending

    def try_send(self, parts: Sequence[bytes | memoryview]) -> int:
        # What was sealed once has to be sent. Our callers keep the bytes that were not taken, and offer them first; see
        # `TlsConnection.try_send`.
        if self._fd < 0:
            raise self._closed()
        if self._failure is not None:
            raise self.failure(self._failure)
        data = memoryview(b"".join(parts) if len(parts) > 1 else parts[0])
        sent = 0
        try:
            while self._flush():
                sent, self._owed = sent + self._owed, 0
                if sent == len(data):
                    break
                piece = data[sent : sent + BATCH_BYTES]
                self._unsent = memoryview(self._seal(piece))
                self._owed = len(piece)
        except OSError as exc:
            if not sent:  # otherwise the next send gets the same error
                raise self.failure(self._reason(exc)) from exc
        return sent

    def _flush(self) -> bool:
        """Send what was sealed. Returns whether nothing is left. Raises OSError."""
        try:
            while self._unsent:
                self._unsent = self._unsent[self._sock.send(self._unsent) :]
        except BlockingIOError:
            return False
        return True

    def _seal(self, piece: memoryview) -> bytes:
        """Raises ssl.SSLError."""
        if self._records is None:
            self._object.write(piece)
            return self._outgoing.read()
        try:
            sealed: bytes = self._records.seal(piece)
        except ValueError:
            raise _error("INTERNAL_ERROR") from None
        return sealed

    def _say_last(self, level: int = _WARNING, alert: int = _CLOSE_NOTIFY) -> None:
        """The same, or another alert."""
        if self._last_alert or self._fd < 0 or not self._finished:
            return
        self._last_alert = True
        for end in list(self.borrowers):
            end()
        if not self._unsent:
            with suppress(OSError, ValueError):
                self._sock.send(self._last_record(level, alert))

    def _last_record(self, level: int, alert: int) -> bytes:
        """Raises ValueError."""
        if self._records is not None:
            return self._records.seal(bytes((level, alert)), _ALERT)
        with suppress(ssl.SSLError):  # SSLWantReadError, or it has failed, and has made its alert already
            self._object.unwrap()
        return self._outgoing.read()

    # -- OpenSSL alone

    def _receive_by_openssl(self, into: memoryview) -> int | None:
        """Returns as `Connection.try_receive`; raises OSError."""
        while True:
            try:
                return self._object.read(len(into), into)  # type: ignore[return-value]
            except ssl.SSLWantReadError:
                self._raw_start = self._raw_stop = 0
                received = self._receive_raw()
                if received is None:
                    return None
                if received:
                    self._incoming.write(memoryview(self._raw)[:received])
                else:
                    self._incoming.write_eof()
            except ssl.SSLEOFError:  # as `ssl.SSLSocket` with suppress_ragged_eofs
                return 0

    def _receive_alert(self) -> None:
        if self._raw_lent:
            raise ssl.SSLWantReadError  # the plane receives it
        received = self._receive_some if self._records else self._receive_by_openssl
        received(memoryview(bytearray(1)))

    def close(self) -> None:
        super().close()
        self._records = None  # the keys go with it, and are wiped

    # -- the plane

    @property
    def can_lend_sending(self) -> bool:
        return self._fd >= 0 and self._records is not None and not self._unsent and self._failure is None

    @property
    def can_lend_receiving(self) -> bool:
        unusual = self._other or self._plain or self._message or self._at_end or self._failure
        return self._fd >= 0 and self._records is not None and not unusual

    def lend_sending(self) -> Tls | None:
        return self._records

    def take_back_sending(self, rest: bytes) -> bytes:
        if not rest:
            return b""  # what `try_send` has kept, if anything, stays
        assert not self._unsent, "others sent while bytes were waiting here"
        self._unsent, self._owed = memoryview(rest), 1
        return b"\0"

    def lend_receiving(self) -> tuple[Tls, mmap, int, int] | None:
        assert self._records is not None
        self._raw_lent = True
        return self._records, self._raw, self._raw_start, self._raw_stop

    def take_back_receiving(self, raw_start: int, raw_stop: int, *, other: bool) -> None:
        self._raw_lent = False
        self._raw_start, self._raw_stop, self._other = raw_start, raw_stop, other


class _KeyLog:
    """What OpenSSL logs of keys within the block. It passes through a pipe: no file ever has it.

    If there can be no pipe, or OpenSSL cannot open it, there are no secrets.
    """

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._text = bytearray()

    def __enter__(self) -> _KeyLog:
        self._read_fd = self._write_fd = -1
        with suppress(OSError):  # no descriptor, or no /proc
            self._read_fd, self._write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            self._context.keylog_filename = f"/proc/self/fd/{self._write_fd}"
        return self

    def __exit__(self, failure: type[BaseException] | None, *_: object) -> None:
        self._context.keylog_filename = None  # type: ignore[assignment]
        if self._read_fd < 0:
            return
        os.close(self._write_fd)
        self._text = bytearray(_LOG_BYTES)
        with suppress(BlockingIOError):
            os.readv(self._read_fd, [self._text])
        os.close(self._read_fd)
        if failure is not None:
            self.wipe()

    def records(self, suite: int) -> Tls | None:
        """An object with the secrets; None if they did not come, or are of no use."""
        assert PUMP is not None
        with memoryview(self._text) as view:
            found = {match[1]: match.span(2) for match in _SECRET.finditer(view)}
            if len(found) < 2:
                return None
            with (
                view[slice(*found[b"CLIENT"])] as client,
                view[slice(*found[b"SERVER"])] as server,
                suppress(ValueError),  # libcrypto does not have the cipher, or not for us
            ):
                tls: Tls = PUMP.Tls(suite, client, server)
                return tls
        return None

    def wipe(self) -> None:
        """Overwrite what was logged."""
        self._text[:] = bytes(len(self._text))


def _error(reason: str) -> ssl.SSLError:
    """An error as OpenSSL would report it."""
    error = ssl.SSLError(1, f"[SSL: {reason}] {reason.lower().replace('_', ' ')}")
    error.library, error.reason = "SSL", reason
    return error
