"""``python3 tools/ktls/check.py``: whether this kernel takes over a TLS 1.3 connection that Python's `ssl` has opened.

Needs the kernel's module `tls`, Python, and the command `openssl`. The server is `openssl s_server`, which does not use
kTLS. It answers each line reversed. The handshake is OpenSSL's, over memory BIOs and one record at a time, as in
`tapotun_trio/host/net/tls_records.py`. The traffic secrets in the key log then give the kernel its keys (RFC 8446
section 7.3; linux/tls.h). Everything after that is `sendmsg` and `recvmsg` of the socket.

Prints a line for each thing seen. Ends with an AssertionError or OSError at the first thing that is wrong. What the
kernel does about a KeyUpdate is only printed, because it depends on the version.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
import socket
import ssl
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

TCP_ULP: Final = 31  # linux/tcp.h
SOL_TLS: Final = 282  # linux/socket.h
TLS_TX, TLS_RX = 1, 2  # from here on linux/tls.h
TLS_SET_RECORD_TYPE, TLS_GET_RECORD_TYPE = 1, 2
TLS_1_3: Final = 0x0304
ALERT, HANDSHAKE, DATA = 21, 22, 23  # RFC 8446 appendix B.1
CLOSE_NOTIFY: Final = b"\x01\x00"
NEW_SESSION_TICKET: Final = 4
KEY_UPDATE: Final = b"\x18\x00\x00\x01\x00"  # one that asks for none in return
ROUNDS, LINES_A_ROUND, LINE_BYTES = 16, 8, 8000
RECEIVE_BYTES: Final = 128 * 1024
HANDSHAKE_S: Final = 60.0  # a processor in software is slow


class Suite(NamedTuple):
    """A cipher suite, and what linux/tls.h has for it. Its `salt` is the first ``salt_bytes`` of the IV's 12 bytes."""

    cipher_type: int
    hash: str
    key_bytes: int
    salt_bytes: int


SUITES: Final = {
    "TLS_AES_128_GCM_SHA256": Suite(51, "sha256", 16, 4),
    "TLS_AES_256_GCM_SHA384": Suite(52, "sha384", 32, 4),
    "TLS_CHACHA20_POLY1305_SHA256": Suite(54, "sha256", 32, 0),
}


def expand(suite: Suite, secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label with an empty context; ``size`` is at most the hash's, so its first block is enough."""
    info = struct.pack("!HB", size, 6 + len(label)) + b"tls13 " + label + b"\0"
    return hmac.digest(secret, info + b"\x01", suite.hash)[:size]


def crypto_info(suite: Suite, secret: bytes) -> bytes:
    """`struct tls12_crypto_info_*` for record 0 under ``secret``."""
    key, iv = expand(suite, secret, b"key", suite.key_bytes), expand(suite, secret, b"iv", 12)
    return (
        struct.pack("=HH", TLS_1_3, suite.cipher_type)
        + iv[suite.salt_bytes :]
        + key
        + iv[: suite.salt_bytes]
        + bytes(8)  # the record's number
    )


@contextmanager
def server(directory: Path, suite: str, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """`openssl s_server` for one connection, and its port."""
    # fmt: off
    command = [
        "openssl", "s_server", "-accept", "127.0.0.1:0", "-naccept", "1", "-tls1_3", "-ciphersuites", suite,
        "-cert", str(directory / "cert"), "-key", str(directory / "key"), *options,
    ]
    # fmt: on
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                if found := re.fullmatch(rb"ACCEPT 127\.0\.0\.1:(\d+)\n", line):
                    yield process, int(found[1])
                    return
            raise AssertionError("openssl s_server has ended before it listened")
        finally:
            process.kill()


def receive_exactly(sock: socket.socket, size: int) -> bytes:
    """The next ``size`` bytes. Raises EOFError."""
    data = b""
    while len(data) < size:
        piece = sock.recv(size - len(data))
        if not piece:
            raise EOFError(f"{len(data)} bytes of {size}")
        data += piece
    return data


def shake_hands(sock: socket.socket, directory: Path) -> tuple[str, bytes, bytes]:
    """Returns the suite's name and the traffic secrets of the client and the server. No record behind the server's
    Finished has been received then."""
    log = directory / "log"
    log.write_bytes(b"")
    context = ssl.create_default_context(cafile=directory / "cert")
    context.keylog_filename = str(log)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            sock.sendall(outgoing.read())
            head = receive_exactly(sock, 5)
            incoming.write(head + receive_exactly(sock, int.from_bytes(head[3:], "big")))
        else:
            break
    sock.sendall(outgoing.read())
    found = dict(re.findall(r"(?m)^(CLIENT|SERVER)_TRAFFIC_SECRET_0 [0-9a-f]+ ([0-9a-f]+)$", log.read_text()))
    cipher = tls.cipher()
    assert cipher is not None
    return cipher[0], bytes.fromhex(found["CLIENT"]), bytes.fromhex(found["SERVER"])


@contextmanager
def connected(directory: Path, port: int, wanted: str) -> Iterator[tuple[socket.socket, bytes]]:
    """A connection whose records are the kernel's, and the server's traffic secret."""
    with socket.create_connection(("127.0.0.1", port), timeout=HANDSHAKE_S) as sock:
        name, client_secret, server_secret = shake_hands(sock, directory)
        assert name == wanted, name
        sock.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
        sock.setsockopt(SOL_TLS, TLS_TX, crypto_info(SUITES[name], client_secret))
        sock.setsockopt(SOL_TLS, TLS_RX, crypto_info(SUITES[name], server_secret))
        yield sock, server_secret


def receive(sock: socket.socket) -> tuple[int, bytes]:
    """Type and content of what one `recvmsg` brings; records of data come together."""
    data, ancillary, _, _ = sock.recvmsg(RECEIVE_BYTES, socket.CMSG_SPACE(1))
    kinds = [value[0] for level, what, value in ancillary if (level, what) == (SOL_TLS, TLS_GET_RECORD_TYPE)]
    return kinds[0] if kinds else DATA, data


def take_tickets(sock: socket.socket) -> int:
    """Receives the server's two session tickets. Returns their bytes."""
    messages = b""
    ends = [0]
    while len(ends) <= 2:
        kind, content = receive(sock)
        assert kind == HANDSHAKE, kind
        messages += content
        while len(messages) > ends[-1]:  # whole messages
            assert messages[ends[-1]] == NEW_SESSION_TICKET
            ends.append(ends[-1] + 4 + int.from_bytes(messages[ends[-1] + 1 : ends[-1] + 4], "big"))
    assert len(messages) == ends[2]
    return ends[2]


def echo(directory: Path, suite: str) -> None:
    """Data in both directions, and both ends' close_notify."""
    with server(directory, suite, "-rev") as (process, port), connected(directory, port, suite) as (sock, _):
        print(f"{suite}: the kernel has both keys", flush=True)
        try:
            sock.recv(RECEIVE_BYTES)
        except OSError as exc:
            print(f"  recv of a record that is not data: {exc}")
        else:
            raise AssertionError("recv has taken a session ticket for data")
        print(f"  two session tickets of together {take_tickets(sock)} bytes by recvmsg")
        receives = largest = 0
        for _ in range(ROUNDS):
            lines = [secrets.token_hex(LINE_BYTES // 2) for _ in range(LINES_A_ROUND)]
            sock.sendall("".join(f"{line}\n" for line in lines).encode())
            expected = "".join(f"{line[::-1]}\n" for line in lines).encode()
            answer = b""
            while len(answer) < len(expected):
                kind, piece = receive(sock)
                assert kind == DATA, (kind, piece)
                assert piece
                receives, largest = receives + 1, max(largest, len(piece))
                answer += piece
            assert answer == expected
        total = ROUNDS * LINES_A_ROUND * (LINE_BYTES + 1)
        print(f"  {total} bytes there, and reversed back: all right; {receives} receives of at most {largest} bytes")
        sock.sendmsg([CLOSE_NOTIFY], [(SOL_TLS, TLS_SET_RECORD_TYPE, bytes((ALERT,)))])
        answered = receive(sock)
        assert answered == (ALERT, CLOSE_NOTIFY), answered
        assert process.stdout is not None
        assert b"CONNECTION CLOSED\n" in process.stdout.read()
        print("  close_notify sent and received", flush=True)


def key_update(directory: Path, suite: str) -> None:
    """A KeyUpdate of the server, which `s_server` sends at the command "k"."""
    with server(directory, suite) as (process, port), connected(directory, port, suite) as (sock, secret):
        take_tickets(sock)
        assert process.stdin is not None
        for command, expected in (b"before\n", (DATA, b"before\n")), (b"k\n", (HANDSHAKE, KEY_UPDATE)):
            process.stdin.write(command)
            process.stdin.flush()
            received = receive(sock)
            assert received == expected, received
        new = SUITES[suite]
        secret = expand(new, secret, b"traffic upd", hashlib.new(new.hash).digest_size)
        try:
            sock.setsockopt(SOL_TLS, TLS_RX, crypto_info(new, secret))
        except OSError as exc:
            print(f"  the next key: {exc}")
        else:
            print("  the next key: taken")
        process.stdin.write(b"after\n")
        process.stdin.flush()
        try:
            print(f"  data under it: {receive(sock)}", flush=True)
        except OSError as exc:
            print(f"  data under it: {exc}", flush=True)


def main() -> None:
    print(f"Linux {os.uname().release}, {ssl.OPENSSL_VERSION}", flush=True)
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        # fmt: off
        subprocess.run([
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-subj",
            "/CN=localhost", "-addext", "subjectAltName=DNS:localhost",
            "-out", directory / "cert", "-keyout", directory / "key",
        ], check=True, stderr=subprocess.DEVNULL)
        # fmt: on
        for suite in SUITES:
            echo(directory, suite)
        print("KeyUpdate", flush=True)
        key_update(directory, next(iter(SUITES)))
    print(Path("/proc/net/tls_stat").read_text(), end="")


if __name__ == "__main__":
    main()
