"""TLS against real servers on loopback: who is believed, what is resumed, and what is said of who is not."""

from __future__ import annotations

import errno
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
import trio
import trio.testing
import trustme
from cryptography.hazmat.primitives import serialization

from tapotun_trio.config.model import TlsConfig, Url
from tapotun_trio.errors import HostError, PeerError
from tapotun_trio.host.net import tls_records
from tapotun_trio.host.net.tls import TlsClient, TlsConnection, open_tls
from tapotun_trio.host.net.tls_errors import failed
from tapotun_trio.host.net.tls_files import UselessFile, judge_files
from tapotun_trio.http.client import CONNECT_S, check_status, open_connection, read_response, send_request
from tapotun_trio.http.heads import ResponseHead
from tapotun_trio.http.websocket import check_upgrade

NAME: Final = "localhost"
CA: Final = trustme.CA()
OTHER_CA: Final = trustme.CA()
Serve = Callable[[trio.SocketStream], Awaitable[None]]


@pytest.fixture
def ca_file(tmp_path: Path) -> str:
    CA.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    return str(tmp_path / "ca.pem")


@pytest.fixture(params=["openssl", "records"], autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Everything holds with OpenSSL's records, and with ours."""
    if request.param == "records" and not tls_records.can_open_records():
        pytest.skip("the native part is not built, or finds no libcrypto")
    monkeypatch.setattr(tls_records, "wanted", lambda context: request.param == "records")
    return str(request.param)


def pem(path: Path, *blobs: trustme.Blob) -> str:
    for blob in blobs:
        blob.write_to_path(str(path), append=True)
    return str(path)


def server_context(
    *names: str, version: str = "1.3", clients: trustme.CA | None = None, **issue: Any
) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    CA.issue_cert(*(names or (NAME,)), **issue).configure_cert(context)
    context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, f"TLSv1_{version[-1]}")
    if clients is not None:
        clients.configure_trust(context)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def wrong_version() -> ssl.SSLError:
    exc = ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER] wrong version number (_ssl.c:1006)")
    exc.reason = "WRONG_VERSION_NUMBER"
    return exc


@asynccontextmanager
async def serving(serve: Serve) -> AsyncIterator[int]:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        nursery.start_soon(trio.serve_listeners, serve, listeners)
        yield listeners[0].socket.getsockname()[1]
        nursery.cancel_scope.cancel()


async def answer(context: ssl.SSLContext, stream: trio.SocketStream) -> None:
    """An https server with one answer. In a thread: trio.SSLStream sends no alert when a handshake fails."""
    sock = socket.socket(fileno=os.dup(stream.socket.fileno()))
    await stream.aclose()
    sock.settimeout(10)
    await trio.to_thread.run_sync(_answer, context, sock)


def _answer(context: ssl.SSLContext, sock: socket.socket) -> None:
    with sock, suppress(OSError), context.wrap_socket(sock, server_side=True) as tls:
        tls.recv(1000)
        tls.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
        tls.recv(1000)


async def says(data: bytes, stream: trio.SocketStream) -> None:
    async with stream:
        await stream.receive_some()
        await stream.send_all(data)
        await stream.send_eof()
        while await stream.receive_some():
            pass


async def ask(url: Url, client: TlsClient | None) -> TlsConnection:
    """A request and its answer; the caller closes."""
    connection = await open_connection(url, client)
    try:
        await send_request(connection, "GET", url, [])
        head, body = await read_response(connection, "GET")
        check_status(head, url, body)
    except BaseException:
        connection.close()
        raise
    assert isinstance(connection, TlsConnection)
    return connection


@pytest.mark.parametrize("close_first", [True, False])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_a_session_is_resumed(ca_file: str, version: str, close_first: bool) -> None:
    """After the earlier connection's end, and, as at a rotation, beside it."""
    client = TlsClient(TlsConfig(ca_file=ca_file))
    context = server_context(version=version)
    async with serving(partial(answer, context)) as port:
        url = Url("https", NAME, port, "/")
        reused = []
        earlier: list[TlsConnection] = []
        for _ in range(3):
            connection = await ask(url, client)
            reused.append(connection.session_reused)
            if close_first:
                connection.close()
            earlier.append(connection)
        for connection in earlier:
            connection.close()
    assert reused == [False, True, True]
    assert context.session_stats()["hits"] == 2


@pytest.mark.parametrize("end", ["close", "shutdown_sending", "abort", "a bad record"])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_what_a_server_hears_at_the_end(ca_file: str, version: str, end: str) -> None:
    """RFC 8446 section 6: a close_notify, which OpenSSL tells from a mere end; or an alert that says what was wrong."""
    heard: list[str] = []

    def listen(sock: socket.socket) -> None:
        context = server_context(version=version)
        with context.wrap_socket(sock, server_side=True, suppress_ragged_eofs=False) as tls:
            if end == "a bad record":
                socket.socket.sendall(tls, b"\x17\x03\x03\0\x20" + bytes(32))
            try:
                heard.append(f"{tls.recv(9)!r} and {tls.recv(9)!r}")
            except OSError as exc:
                heard.append(getattr(exc, "reason", None) or type(exc).__name__)

    async def serve(stream: trio.SocketStream) -> None:
        sock = socket.socket(fileno=os.dup(stream.socket.fileno()))
        await stream.aclose()
        sock.settimeout(10)
        with sock:
            await trio.to_thread.run_sync(listen, sock)
        done.set()

    done = trio.Event()
    async with serving(serve) as port:
        url = Url("https", NAME, port, "/")
        connection = await open_connection(url, TlsClient(TlsConfig(ca_file=ca_file)))
        if end == "a bad record":
            with pytest.raises(PeerError, match="BAD_RECORD_MAC"):
                await connection.receive(memoryview(bytearray(9)))
        else:
            await connection.send_all(b"all")
            getattr(connection, end)()
        with trio.fail_after(10):
            await done.wait()
        connection.close()
    if end == "a bad record":
        assert heard == ["SSLV3_ALERT_BAD_RECORD_MAC"]
    elif end == "abort":
        assert "b''" not in heard[0]
    else:
        assert heard == ["b'all' and b''"]


async def test_a_session_that_the_server_forgot_costs_nothing(ca_file: str) -> None:
    client = TlsClient(TlsConfig(ca_file=ca_file))
    for _ in range(2):
        async with serving(partial(answer, server_context())) as port:
            connection = await ask(Url("https", NAME, port, "/"), client)
            assert not connection.session_reused
            connection.close()


async def test_a_failed_handshake_leaves_no_session(ca_file: str) -> None:
    client = TlsClient(TlsConfig(ca_file=ca_file, server_name="other.example"))
    context = server_context(version="1.2")
    async with serving(partial(answer, context)) as port:
        for _ in range(2):
            with pytest.raises(PeerError, match=r"not for other\.example but for localhost"):
                await ask(Url("https", NAME, port, "/"), client)
    assert context.session_stats()["hits"] == 0


async def test_server_name_is_asked_for_and_checked(ca_file: str) -> None:
    asked: list[str | None] = []
    context = server_context("vpn.example.com")
    context.sni_callback = lambda _sock, name, _context: asked.append(name)
    async with serving(partial(answer, context)) as port:
        url = Url("https", "127.0.0.1", port, "/")
        (await ask(url, TlsClient(TlsConfig(ca_file=ca_file, server_name="vpn.example.com")))).close()
        with pytest.raises(PeerError, match=r"not for 127\.0\.0\.1 but for vpn\.example\.com"):
            await ask(url, TlsClient(TlsConfig(ca_file=ca_file)))
    assert asked == ["vpn.example.com", None]


async def test_a_client_certificate(ca_file: str, tmp_path: Path) -> None:
    leaf = CA.issue_cert("laptop")
    both = pem(tmp_path / "both.pem", leaf.private_key_and_cert_chain_pem)
    cert, key = pem(tmp_path / "cert.pem", *leaf.cert_chain_pems), pem(tmp_path / "key.pem", leaf.private_key_pem)
    async with serving(partial(answer, server_context(clients=CA))) as port:
        for config in (TlsConfig(cert_file=both), TlsConfig(cert_file=cert, key_file=key)):
            client = TlsClient(TlsConfig(ca_file, cert_file=config.cert_file, key_file=config.key_file))
            (await ask(Url("https", NAME, port, "/"), client)).close()


YESTERDAY: Final = datetime.now(UTC) - timedelta(days=1)


@pytest.mark.parametrize(
    ("context", "tls", "words"),
    [
        (lambda: server_context(not_after=YESTERDAY), {}, r"of localhost has expired \(notAfter .* GMT\); renew"),
        (lambda: server_context(not_before=datetime.now(UTC) + timedelta(days=1)), {}, "is not yet valid .*clock"),
        (lambda: server_context("a.example", "b.example"), {}, r"is not for localhost but for a\.example, b\.example;"),
        (lambda: server_context(*(f"h{i}.example" for i in range(9))), {}, r"and 4 more;"),
        (server_context, {"ca_file": None}, r"authority that this system does not know .*set tls\.ca_file"),
        (lambda: server_context(version="1.2"), {"min_version": "1.3"}, r"no TLS version that tls\.min_version 1\.3"),
        (lambda: server_context(clients=CA), {}, r"wants a certificate of the client: set tls\.cert_file"),
        (
            lambda: server_context(clients=CA, version="1.2"),
            {},
            r"wants a certificate of the client: set tls\.cert_file",
        ),
    ],
)
async def test_what_is_said(
    ca_file: str, context: Callable[[], ssl.SSLContext], tls: dict[str, Any], words: str
) -> None:
    client = TlsClient(TlsConfig(**{"ca_file": ca_file, **tls}))
    async with serving(partial(answer, context())) as port:
        with pytest.raises(PeerError, match=words) as caught:
            await ask(Url("https", NAME, port, "/"), client)
    assert "\n" not in str(caught.value)


async def test_an_authority_that_is_not_in_ca_file(tmp_path: Path) -> None:
    file = pem(tmp_path / "other.pem", OTHER_CA.cert_pem)
    async with serving(partial(answer, server_context())) as port:
        with pytest.raises(PeerError, match=rf"an authority that tls\.ca_file {re.escape(file)} does not know"):
            await ask(Url("https", NAME, port, "/"), TlsClient(TlsConfig(file)))


@pytest.mark.parametrize("version", ["1.2", "1.3"])
async def test_a_client_certificate_that_is_not_accepted(ca_file: str, tmp_path: Path, version: str) -> None:
    both = pem(tmp_path / "both.pem", OTHER_CA.issue_cert("x").private_key_and_cert_chain_pem)
    async with serving(partial(answer, server_context(clients=CA, version=version))) as port:
        with pytest.raises(PeerError, match=rf"does not accept the certificate of tls\.cert_file {re.escape(both)}"):
            await ask(Url("https", NAME, port, "/"), TlsClient(TlsConfig(ca_file, cert_file=both)))


async def resets(stream: trio.SocketStream) -> None:
    """As a server of plain HTTP does that has not read all of what it takes for a request."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    await stream.wait_send_all_might_not_block()
    await trio.lowlevel.wait_readable(stream.socket)


async def answers_and_resets(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await resets(stream)


NO_TLS: Final[dict[str, Serve]] = {
    "an answer in plain HTTP": partial(says, b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "one that comes in pieces": partial(says, b"H"),
    "another protocol": partial(says, b"SSH-2.0-OpenSSH_9.2\r\n"),
    "an end": partial(says, b""),
    "a reset": resets,
    "an answer and a reset": answers_and_resets,
}


@pytest.mark.parametrize("case", NO_TLS)
async def test_a_port_without_tls(case: str) -> None:
    """One cause has one text and one key, whichever part of the answer is seen first."""
    said = "this port does not speak TLS; use http:// if it speaks plain HTTP, else the proxy's TLS port"
    async with serving(NO_TLS[case]) as port:
        with pytest.raises(PeerError) as caught:
            await ask(Url("https", NAME, port, "/"), TlsClient(TlsConfig()))
    assert str(caught.value) == f"TLS handshake with {NAME} (127.0.0.1:{port}) failed: {said}"
    assert (caught.value.reason, caught.value.key) == ("tls", f"tls: {said}")


@pytest.mark.parametrize(
    ("exc", "first"),
    [
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), b""),
        (ssl.SSLEOFError(8, "EOF occurred in violation of protocol"), b"HTTP/"),
        (ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"), b""),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), b"HTTP/"),
        (wrong_version(), b""),
        (wrong_version(), b"HTTP/"),
        (wrong_version(), b"SSH-2"),
    ],
)
def test_a_port_without_tls_is_one_failure_in_whatever_order_its_signs_come(exc: OSError, first: bytes) -> None:
    failure = failed(exc, first, NAME, "127.0.0.1:1", TlsConfig())
    assert "this port does not speak TLS; use http://" in str(failure)
    assert failure.key == failed(ConnectionResetError(), b"", NAME, "[::1]:1", TlsConfig()).key


def test_a_tls_server_that_goes_within_the_handshake_is_another_failure() -> None:
    for exc in (ConnectionResetError(), ssl.SSLEOFError(8, "EOF")):
        failure = failed(exc, b"\x16\x03\x03\0\x7a", NAME, "127.0.0.1:1", TlsConfig())
        assert str(failure).endswith("failed: the server closed the connection")


BODY: Final = b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n<center>%b</center>"


@pytest.mark.parametrize(
    "data",
    [
        b"\x15\x03\x01\x00\x02\x02\x46",
        BODY % b"The plain HTTP request was sent to HTTPS port",
        BODY % b"Client sent an HTTP request to an HTTPS server.",
        BODY % b"Reason: You're speaking plain HTTP to an SSL-enabled server port.",
    ],
)
async def test_plain_http_to_a_port_with_tls(data: bytes) -> None:
    async with serving(partial(says, data)) as port:
        with pytest.raises(PeerError, match="speaks TLS; write https://"):
            await ask(Url("http", NAME, port, "/"), None)


def test_a_websocket_s_answer_says_the_same() -> None:
    head, url = ResponseHead(400, "Bad Request", {}), Url("http", NAME, 443, "/")
    with pytest.raises(PeerError, match="speaks TLS; write https://"):
        check_upgrade(head, url, b"Client sent an HTTP request to an HTTPS server.")
    with pytest.raises(PeerError, match="answered 400 to a WebSocket"):
        check_upgrade(head, url, b"no")


async def test_a_handshake_has_a_deadline(autojump_clock: trio.testing.MockClock) -> None:
    """A server that accepts, and then says nothing. (Its side is the kernel's: nobody has to run for that.)"""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = Url("https", "127.0.0.1", silent.getsockname()[1], "/")
        began = trio.current_time()
        with pytest.raises(PeerError, match=f"within {CONNECT_S:.0f} s"):
            await open_connection(url, TlsClient(TlsConfig()))
        assert trio.current_time() - began == pytest.approx(CONNECT_S, abs=1)


def test_files_that_are_of_no_use(tmp_path: Path) -> None:
    leaf, other = CA.issue_cert("laptop"), CA.issue_cert("laptop")
    cert, key = pem(tmp_path / "cert.pem", *leaf.cert_chain_pems), pem(tmp_path / "key.pem", leaf.private_key_pem)
    wrong = pem(tmp_path / "wrong.pem", other.private_key_pem)
    parsed = serialization.load_pem_private_key(leaf.private_key_pem.bytes(), None)
    encrypted = tmp_path / "encrypted.pem"
    for form in (serialization.PrivateFormat.PKCS8, serialization.PrivateFormat.TraditionalOpenSSL):
        encryption = serialization.BestAvailableEncryption(b"x")
        encrypted.write_bytes(parsed.private_bytes(serialization.Encoding.PEM, form, encryption))
        with pytest.raises(HostError, match=r"key_file .*encrypted\.pem holds an encrypted key"):
            TlsClient(TlsConfig(cert_file=cert, key_file=str(encrypted)))
    for config, words in (
        (TlsConfig(cert_file="/nowhere/c"), "tls.cert_file /nowhere/c cannot be read: No such file"),
        (TlsConfig(cert_file=cert, key_file="/nowhere/k"), "tls.key_file /nowhere/k cannot be read: No such file"),
        (
            TlsConfig(cert_file=cert, key_file=wrong),
            f"tls.key_file {wrong} holds a key that does not match the certificate of tls.cert_file {cert};",
        ),
        (TlsConfig(ca_file="/nowhere/ca"), "tls.ca_file /nowhere/ca cannot be read: No such file"),
        (TlsConfig(ca_file=key), f"tls.ca_file {key} holds no certificate that can be trusted"),
        (TlsConfig(cert_file=cert), f"tls.cert_file {cert} holds no PEM key that can be used"),
        (TlsConfig(cert_file=key, key_file=key), f"tls.cert_file {key} holds no PEM certificate"),
    ):
        with pytest.raises(UselessFile, match=re.escape(words)) as caught:
            TlsClient(config)
        assert "\n" not in str(caught.value)
        assert judge_files(config) == caught.value.found
    both = pem(tmp_path / "both.pem", leaf.private_key_and_cert_chain_pem)
    for config in (TlsConfig(), TlsConfig(cert, cert_file=cert, key_file=key), TlsConfig(cert_file=both)):
        assert judge_files(config) is None


async def test_interfaces_that_start_together_wait_for_each_other() -> None:
    """More of them than there are threads to read their files."""
    ready: list[TlsClient] = []

    async def start() -> None:
        ready.append(await open_tls(TlsConfig()))

    async with trio.open_nursery() as nursery:
        for _ in range(6):
            nursery.start_soon(start)
    assert len(ready) == 6
