"""The other end of a TLS 1.3 connection after its handshake, in Python and slow: the oracle for `_tls.c`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

SUITES: Final = {"aes-128-gcm": 0x1301, "aes-256-gcm": 0x1302, "chacha20-poly1305": 0x1303}
ALERT, HANDSHAKE, DATA = 21, 22, 23
HEAD_BYTES: Final = 5
RECORD_BYTES: Final = 16384


def key_update(request: int) -> bytes:
    """The message KeyUpdate (RFC 8446 section 4.6.3)."""
    return bytes((24, 0, 0, 1, request))


class Direction:
    """One direction of a connection: RFC 8446 sections 5.2, 5.3, 7.2 and 7.3."""

    def __init__(self, suite: int, secret: bytes) -> None:
        self.suite = suite
        self._hash = hashes.SHA384() if suite == 0x1302 else hashes.SHA256()
        self.number = 0
        self._use(secret)

    def _expand(self, label: str, size: int) -> bytes:
        name = b"tls13 " + label.encode()
        info = size.to_bytes(2, "big") + bytes((len(name),)) + name + b"\0"
        return HKDFExpand(self._hash, size, info).derive(self.secret)

    def _use(self, secret: bytes) -> None:
        self.secret = secret
        key = self._expand("key", 16 if self.suite == 0x1301 else 32)
        self._aead = ChaCha20Poly1305(key) if self.suite == 0x1303 else AESGCM(key)
        self._iv = int.from_bytes(self._expand("iv", 12), "big")
        self.number = 0

    def update(self) -> None:
        self._use(self._expand("traffic upd", self._hash.digest_size))

    def _nonce(self) -> bytes:
        self.number += 1
        return (self._iv ^ (self.number - 1)).to_bytes(12, "big")

    def seal(self, content: bytes, kind: int = DATA, padding: int = 0) -> bytes:
        """One record."""
        inner = content + bytes((kind,)) + bytes(padding)
        head = b"\x17\x03\x03" + (len(inner) + 16).to_bytes(2, "big")
        return head + self._aead.encrypt(self._nonce(), inner, head)

    def seal_all(self, content: bytes) -> bytes:
        """As few records as possible."""
        return b"".join(self.seal(content[at : at + RECORD_BYTES]) for at in range(0, len(content), RECORD_BYTES))

    def open(self, record: bytes) -> tuple[int, bytes]:
        """Type and content of one record. Raises cryptography's InvalidTag."""
        inner = self._aead.decrypt(self._nonce(), record[HEAD_BYTES:], record[:HEAD_BYTES]).rstrip(b"\0")
        return inner[-1], inner[:-1]

    def open_all(self, sealed: bytes) -> Iterator[tuple[int, bytes]]:
        """All records, which are whole. Follows KeyUpdates."""
        while sealed:
            size = HEAD_BYTES + int.from_bytes(sealed[3:5], "big")
            kind, content = self.open(sealed[:size])
            sealed = sealed[size:]
            yield kind, content
            if kind == HANDSHAKE and content[0] == 24:
                self.update()


class Reader:
    """Opens a stream of records that comes in pieces."""

    def __init__(self, direction: Direction) -> None:
        self._direction = direction
        self._rest = b""
        self.others: list[tuple[int, bytes]] = []  # type and content of the records that are no data

    def feed(self, received: bytes) -> bytes:
        """The data of the records that are whole now."""
        data = self._rest + received
        at = 0
        while len(data) - at >= HEAD_BYTES and len(data) - at >= (
            size := HEAD_BYTES + int.from_bytes(data[at + 3 : at + 5], "big")
        ):
            at += size
        self._rest = data[at:]
        content = b""
        for kind, piece in self._direction.open_all(data[:at]):
            if kind == DATA:
                content += piece
            else:
                self.others.append((kind, piece))
        return content

    @property
    def updates(self) -> int:
        """KeyUpdates among them."""
        return sum(kind == HANDSHAKE for kind, _ in self.others)
