"""Further headers and Basic auth of a client: what the config accepts, what is sent, and what nobody sees."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.client.requests import download_fields, upload_fields
from tapotun_trio.config.diagnostics import InvalidValue
from tapotun_trio.config.diff import changes
from tapotun_trio.config.load import check, check_content
from tapotun_trio.config.model import ClientConfig, DeviceKind, Secret, TransportChoice
from tapotun_trio.config.parsers import parse_header_name, parse_header_value, parse_password, parse_user, secret_line
from tapotun_trio.http.heads import RequestParser, basic, encode_request
from tapotun_trio.http.websocket import AnswerParser

from ..fakes import MemoryHost
from ..packets import ipv4
from ..tables import table
from .support import allowed, client_config, free_port, running, server_config
from .test_config_load import client, load_entries

SECRET: Final = "hunter2-that-nobody-may-see"
HEADERS: Final = {"CF-Access-Client-Id": "id.access", "CF-Access-Client-Secret": SECRET}


def loaded(**fields: Any) -> ClientConfig:
    config, texts = load_entries(client(**fields))
    assert config is not None, texts
    found = config.interfaces[0]
    assert isinstance(found, ClientConfig)
    return found


def finding(**fields: Any) -> str:
    """The one finding of a client with these fields, which never shows the secret."""
    config, texts = load_entries(client(**fields))
    assert len(texts) == 1, texts
    assert (config is None) == ("warning: " not in texts[0])
    assert SECRET not in texts[0]
    assert texts[0].isprintable()
    return texts[0].removeprefix("F: ")


# ------------------------------------------------------------------ the config


def test_headers_and_a_login_are_loaded_as_secrets(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(f"{SECRET}\n")
    file.chmod(0o600)
    found = loaded(headers=HEADERS, user="jürgen", password_file=str(file))
    assert [(name, value.reveal()) for name, value in found.headers] == list(HEADERS.items())
    assert found.login is not None
    assert found.login.reveal().encode("latin-1") == f"jürgen:{SECRET}".encode()
    assert SECRET not in repr(found)
    assert SECRET not in f"{found.headers} {found.login}"


def test_a_login_in_the_url() -> None:
    found = loaded(server=f"https://us%65r:{SECRET}%ff%3a@h:444/ip?key=k")
    assert found.login is not None
    assert found.login.reveal() == f"user:{SECRET}\xff:"
    assert (found.server.authority, found.server.target) == ("h:444", "/ip?key=k")
    assert found.server.shown == "https://h:444/ip?***"
    assert SECRET not in repr(found)


@table(
    "name remedy",
    *((name, name, "remove it") for name in (
        *("Host", "content-length", "Transfer-Encoding", "CONNECTION", "upgrade", "TE", "Trailer", "Keep-Alive"),
        *("Proxy-Connection", "Expect", "Sec-WebSocket-Key", "sec-websocket-protocol", "sec-websocket-x", "X-API-Key"),
        *("x-tun-conf", "X-Tun-Anything", "Range", "If-None-Match", "accept-encoding", "content-encoding"),
        *("x-http-method-override", "http2-settings"),
    )),
    ("Authorization", "Authorization", 'write "user" and "password_file" instead'),
    ("Proxy-Authorization", "Proxy-Authorization", 'write the login of an outgoing proxy into "proxy"'),
)  # fmt: skip
def test_headers_that_are_refused(name: str, remedy: str) -> None:
    text = finding(headers={name: SECRET})
    assert text.startswith(f'[0].headers.{name}: "{name}" is a header that cannot be set here; ')
    assert remedy in text


@pytest.mark.parametrize("name", ["", " ", "a b", "a:", "a\r\nx", "ä", "a\0", "(x)", "a" * 65, "\ud800"])
def test_names_that_are_none(name: str) -> None:
    assert (
        "characters; choose a name" in (text := finding(headers={name: SECRET})) or "not the name of a header" in text
    )


@table(
    "value problem",
    ("nothing", "", "is empty"),
    ("a second header", f"{SECRET}\r\nx-api-key: t", "cannot carry"),
    ("LF", f"{SECRET}\n", "cannot carry"),
    ("CR", f"a\r{SECRET}", "cannot carry"),
    ("NUL", f"{SECRET}\0", "cannot carry"),
    ("DEL", f"{SECRET}\x7f", "cannot carry"),
    ("C1", f"{SECRET}\x85", "cannot carry"),
    ("not Latin", f"{SECRET}Ж", "beyond Latin-1"),
    ("an emoji", f"{SECRET}\U0001f600", "beyond Latin-1"),
    ("bidi", f"{SECRET}\u202e", "cannot carry"),
    ("half a surrogate pair", f"{SECRET}\ud800", "surrogate"),
    ("a space before it", f" {SECRET}", "starts or ends with a space"),
    ("too long", SECRET * 200, "has more than 4096 characters"),
    ("a number", 5, "is a number, not text"),
    ("null", None, "is not text"),
)
def test_values_that_are_refused(value: object, problem: str) -> None:
    text = finding(headers={"x-a": value})
    assert text.startswith("[0].headers.x-a: *** ")
    assert problem in text


@table(
    "headers problem",
    ("a list", [["x-a", SECRET]], "[0].headers: *** is a list, not an object"),
    ("too many", {f"x-{n}": "v" for n in range(33)}, "[0].headers: *** has 33 members; write at most 32"),
    (
        "two in different cases",
        {"x-a": SECRET, "X-A": SECRET},
        '[0].headers.X-A: "X-A" is the header of [0].headers.x-a',
    ),
    ("too much in all", {f"x-{n}": "v" * 4000 for n in range(4)}, "[0].headers: makes requests of 160"),
)
def test_headers_as_a_whole(headers: object, problem: str) -> None:
    assert finding(headers=headers).startswith(problem)


def test_one_name_twice() -> None:
    text = json.dumps([client()]).replace("{", '{"headers": {"x-a": "1", "x-a": "2"}, ', 1)
    _, findings = check_content(text.encode(), "F")
    assert [found.text("F") for found in findings] == [
        'F: [0].headers.x-a: "x-a" is more than once in this object; keep one (line 1)'
    ]


@table(
    "fields text",
    ("no password", {"user": "u"}, '[0].user: is given without "password_file"'),
    ("no user", {"password_file": "PASSWORD"}, '[0].password_file: is given without "user"'),
    ("twice", {"server": f"https://u:{SECRET}@h/", "user": "u", "password_file": "PASSWORD"},
     '[0].user: is given in addition to the login in "server"; remove one'),
    ("a colon", {"user": "u:v", "password_file": "PASSWORD"}, '[0].user: "u:v" has a colon'),
    ("no file", {"user": "u", "password_file": "/nonexistent"}, '[0].password_file: "/nonexistent" cannot be read'),
    *((f"auth_header {header}", {"auth_header": header, "user": "u", "password_file": "PASSWORD"},
       f'[0].auth_header: "{header}" needs the header Authorization for the token, which Basic auth')
      for header in ("authorization", "both")),
    *((f"auth_header {header} and the URL", {"auth_header": header, "server": f"https://u:{SECRET}@h/"},
       f'[0].auth_header: "{header}" needs') for header in ("authorization", "both")),
)  # fmt: skip
def test_logins_that_are_refused(tmp_path: Path, fields: dict[str, str], text: str) -> None:
    file = tmp_path / "password"
    file.write_text(SECRET)
    file.chmod(0o600)
    given = {key: str(file) if value == "PASSWORD" else value for key, value in fields.items()}
    assert finding(**given).startswith(text)


@table(
    "content problem",
    ("nothing", b"", "is empty"),
    ("a line's end only", b"\n", "is empty"),
    ("two lines", f"{SECRET}\nmore\n".encode(), "2 lines"),
    ("NUL", f"{SECRET}\0".encode(), "control characters or several lines"),
    ("too long", SECRET.encode() * 100, "has more than 512 bytes"),
)
def test_password_files_that_are_refused(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "password"
    file.write_bytes(content)
    file.chmod(0o600)
    text = finding(user="u", password_file=str(file))
    assert f"holds a password that {problem}" in text or f"holds a password that has {problem}" in text


def test_a_public_file_with_any_secret_is_warned_of(tmp_path: Path) -> None:
    file = tmp_path / "c.json"
    token = tmp_path / "token"
    token.write_text("t")
    token.chmod(0o600)
    for fields, path in (
        ({"headers": HEADERS}, "[0].headers"),
        ({"server": f"https://u:{SECRET}@h/"}, "[0].server"),
        ({"proxy": f"http://u:{SECRET}@h:1"}, "[0].proxy"),
    ):
        entry = client(**fields)
        del entry["token"]
        file.write_text(json.dumps([{**entry, "token_file": str(token)}]))
        file.chmod(0o644)
        _, findings = check(file)
        assert [(found.severity, found.path, found.value) for found in findings] == [("warning", path, "***")]
        file.chmod(0o600)
        assert check(file)[1] == []


def test_a_reload_says_that_they_changed_and_not_what() -> None:
    before = loaded(headers={"x-a": SECRET}, server=f"https://u:{SECRET}@h/")
    after = loaded(headers={"x-a": SECRET + "2"}, server=f"https://u:{SECRET}3@h/")
    (change,) = changes([before], [after])
    assert change.kind == "restart"
    assert SECRET not in " ".join(change.lines)
    assert "headers" in change.lines[0]
    assert "login" in change.lines[0]


# ------------------------------------------------------------------ the wire


@given(st.text(max_size=30))
def test_what_is_accepted_can_be_sent(text: str) -> None:
    fields = [("Host", "h")]
    for parse in (parse_header_name, parse_header_value, parse_user, parse_password):
        try:
            # A password comes out of a file, as bytes.
            found = parse(secret_line(text.encode()) if parse is parse_password else text)
        except InvalidValue:
            continue
        match parse:
            case _ if parse is parse_header_name:
                fields.append((found, "v"))
            case _ if parse is parse_header_value:
                fields.append(("x-value", text))
            case _ if parse is parse_user:
                fields.append(("x-user", basic(Secret(f"{found}:p"))))
            case _:
                fields.append(("x-password", basic(Secret(f"u:{secret_line(text.encode())}"))))
    done = RequestParser().feed(encode_request("GET", "/", fields))
    assert done is not None
    assert done[0].headers == {name.lower(): value for name, value in fields}
    assert done[1] == b""


@pytest.mark.parametrize("put", [False, True])
def test_requests_carry_them(put: bool) -> None:
    config = loaded(headers={**HEADERS, "x-latin": "für"}, server=f"https://u:{SECRET}@h/ip")
    fields = upload_fields(config, "s", 1, "tun") if put else download_fields(config, "s", frozenset(), yields=False)
    done = RequestParser().feed(encode_request("PUT" if put else "GET", "/", [("Host", "h"), *fields]))
    assert done is not None
    headers = done[0].headers
    assert headers["authorization"] == "Basic " + base64.b64encode(f"u:{SECRET}".encode()).decode()
    assert headers["cf-access-client-secret"] == SECRET
    assert headers["x-latin"] == "für"
    assert "x-api-key" in headers
    handshake = AnswerParser(config.server, fields).request
    assert b"cf-access-client-secret: " + SECRET.encode() in handshake.lower().replace(
        SECRET.lower().encode(), SECRET.encode()
    )


def test_without_them_a_request_is_as_before() -> None:
    names = [name for name, _ in download_fields(loaded(), "s", frozenset(), yields=False)]
    assert names == ["x-api-key", "x-tun-features", "x-tun-session"]


@table(
    "number device extended",
    ("a base server's", None, "tun", ""),
    # No such upload exists, since Ethernet is agreed on together with control frames. A base server gets nothing of it.
    ("a base server's, and Ethernet", None, "tap", ""),
    ("of packets of IP", 7, "tun", "x-tun-session: s\r\nx-tun-upload: 7\r\n"),
    ("of Ethernet frames", 7, "tap", "x-tun-session: s\r\nx-tun-upload: 7\r\nx-tun-features: tap\r\n"),
)
def test_only_an_upload_of_ethernet_says_what_it_carries(number: int | None, device: DeviceKind, extended: str) -> None:
    fields = [("Host", "h"), *upload_fields(loaded(token="T"), "s", number, device)]
    head = f"PUT /ip HTTP/1.1\r\nHost: h\r\nx-api-key: T\r\nTransfer-Encoding: chunked\r\n{extended}\r\n"
    assert encode_request("PUT", "/ip", fields) == head.encode()


@pytest.mark.parametrize("transport", ["http", "websocket"])
async def test_a_server_of_ours_does_not_mind_them(
    transport: TransportChoice, caplog: pytest.LogCaptureFixture
) -> None:
    port = free_port()
    host = MemoryHost()
    own = (("CF-Access-Client-Secret", Secret(SECRET)),)
    config = replace(client_config("a", port), headers=own, login=Secret(f"u:{SECRET}"), transport=transport)
    with caplog.at_level("DEBUG", "tapotun"):
        async with running(host, server_config(port, allowed("a", "10.10.0.2")), config):
            hub, a = await host.device("hub"), await host.device("a")
            up = ipv4("10.10.0.2", "10.10.0.1", b"up")
            a.send(up)
            assert await hub.receive_packet() == up
    assert SECRET not in caplog.text
