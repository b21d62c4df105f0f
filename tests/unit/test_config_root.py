"""The root as an object: interfaces, admin, log, update; and as a plain array."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from tapotun_trio.config.diagnostics import InvalidValue
from tapotun_trio.config.load import check, check_content
from tapotun_trio.config.model import AdminConfig, Config, LogConfig, Secret, TcpAddress, TokenHash, UnixAddress
from tapotun_trio.config.parsers import parse_admin_listen, parse_admin_token
from tapotun_trio.config.structs import RawAdmin, RawLog, RawRoot

from ..twins import as_ipv6
from .test_config_load import Json, client, server, sha1, sha256

LOOPBACK: Final = TcpAddress("127.0.0.1", 9433)


def root(**changes: Any) -> Json:
    return {"interfaces": [server()], **changes}


def accept(value: object) -> Config:
    config, findings = check_content(json.dumps(value).encode(), "F")
    assert [finding.text("F") for finding in findings] == []
    assert config is not None
    return config


def lines(value: object) -> list[str]:
    _, findings = check_content(json.dumps(value).encode(), "F")
    return [finding.text("F").removeprefix("F: ").partition(" (line")[0] for finding in findings]


def test_an_object_holds_what_the_array_holds() -> None:
    assert accept(root()) == accept([server()])
    assert accept([server()]).admin is None
    assert accept([server()]).log == LogConfig("info", "text")


@pytest.mark.parametrize(
    ("given", "endpoint"),
    [
        ("127.0.0.1:9433", LOOPBACK),
        ("9433", LOOPBACK),
        (9433, LOOPBACK),
        ("127.1.2.3:1", TcpAddress("127.1.2.3", 1)),
        ("[::1]:65535", TcpAddress("::1", 65535)),
        ("unix:/run/tapotun/admin.http", UnixAddress("/run/tapotun/admin.http")),
    ],
)
def test_admin_listen(given: object, endpoint: object) -> None:
    assert accept(root(admin={"listen": given})).admin == AdminConfig(endpoint, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("address", "interfaces", "early", "warned"),
    [
        ("10.10.0.1", [server()], True, False),
        ("10.10.0.9", [server(ips=["10.10.0.9"])], True, False),
        ("10.10.0.2", [server()], False, True),  # a client's, at the other end
        ("10.10.0.2", [client()], True, True),  # its server may assign that address to it
        ("fd00::1", [as_ipv6(server())], False, True),  # the twin of none
        ("fd00::a0a:1", [as_ipv6(server())], True, False),
        ("fd00::a0a:9", [as_ipv6(server(ips=["10.10.0.9"]))], True, False),
        ("fd00::a0a:2", [as_ipv6(server())], False, True),
        ("fd00::a0a:2", [client()], True, True),
        ("::1", [as_ipv6(server()), client(name="tun1")], False, False),
        ("::", [as_ipv6(server())], False, True),
        ("0.0.0.0", [server()], False, True),
        ("127.0.0.1", [server(), client(name="tun1")], False, False),
    ],
)
def test_an_address_that_an_interface_brings(address: str, interfaces: list[Json], early: bool, warned: bool) -> None:
    place = f"[{address}]:9433" if ":" in address else f"{address}:9433"
    value = root(interfaces=interfaces, admin={"listen": place, "token": sha256("x")})
    config, findings = check_content(json.dumps(value).encode(), "F")
    assert config is not None
    assert config.admin is not None
    assert isinstance(config.admin.listen, TcpAddress)
    assert config.admin.listen == TcpAddress(address, 9433)
    assert config.admin.listen.early is early
    assert [finding.path for finding in findings] == ["admin.listen"] * warned


@pytest.mark.parametrize(
    ("given", "token"),
    [
        (sha1("x"), TokenHash("sha1", sha1("x"))),
        (sha256("x"), TokenHash("sha256", sha256("x").removeprefix("sha256:"))),
        ("a raw one", Secret("a raw one")),
    ],
)
def test_the_token_is_a_hash_or_raw(given: str, token: TokenHash | Secret) -> None:
    assert accept(root(admin={"listen": 9433, "token": given})).admin == AdminConfig(LOOPBACK, token)

    for both in ({"read_token": given}, {"read_token": given, "token": sha256("another")}):
        admin = accept(root(admin={"listen": 9433, **both})).admin
        assert admin is not None
        assert admin.read_token == token
        assert admin.has_token


@pytest.mark.parametrize("token", [sha1("x"), sha256("x"), "x"])
@pytest.mark.parametrize("read_token", [sha1("x"), sha256("x"), "x"])
def test_a_read_only_token_that_is_the_full_one(token: str, read_token: str) -> None:
    found = lines(root(admin={"listen": 9433, "token": token, "read_token": read_token}))
    if {token, read_token} == {sha1("x"), sha256("x")}:  # nobody can tell
        assert found == []
    else:
        assert found == [
            "admin.read_token: *** is the token of admin.token too, and would not be limited to reading; "
            "make another one with tapotun token"
        ]


@pytest.mark.parametrize("name", ["tapotun", "_apt", "net.admin", "a-b_9", "svc$", "CORP\\vpn"])
def test_the_user(name: str) -> None:
    assert accept(root(user=name)).user == name
    assert accept(root()).user is None


def test_the_log() -> None:
    assert accept(root(log={"level": "debug"})).log == LogConfig("debug", "text")
    assert accept(root(log={"level": "error", "format": "json"})).log == LogConfig("error", "json")


ONE_FINDING: Final[list[tuple[Json, str]]] = [
    # --- the root ---
    ({}, 'interfaces: is missing; add "interfaces": [{...}]'),
    (root(interfaces=[]), "interfaces: [] has nothing to run; write at least one interface definition"),
    (root(interfaces=server()), "interfaces: {...} is an object, not a list; write [{...}]"),
    (root(interfaces=[5]), 'interfaces[0]: 5 is a number, not an object; write {"name": "tun0", ...}'),
    (server(), "{...} is not a list; write a list of interface definitions, [{...}]"),
    (root(amdin={}), 'amdin: "amdin" is an unknown field in the file\'s root object; did you mean "admin"?'),
    (
        root(name="x"),
        'name: "name" is an unknown field in the file\'s root object; it belongs in a server or a client or an entry '
        'of "clients" or "bridge"',
    ),
    (
        root(interfaces=[server(admin={})]),
        'interfaces[0].admin: "admin" is an unknown field in a server; it belongs in the file\'s root object',
    ),
    (root(interfaces=[server(mtu=1)]), "interfaces[0].mtu: 1 is out of range; write a whole number from 68 to 65535"),
    # --- user ---
    (
        root(user="root"),
        'user: "root" keeps every file of this machine writable; leave it out, or name an ordinary user',
    ),
    (root(user="810"), 'user: "810" is a number; write the name of the user, such as "tapotun"'),
    (root(user=810), 'user: 810 is a number, not text; write "tapotun"'),
    (root(user=""), 'user: "" is not the name of a user; write one such as "tapotun"'),
    (root(user="a b"), 'user: "a b" is not the name of a user; write one such as "tapotun"'),
    (root(user="../etc"), 'user: "../etc" is not the name of a user; write one such as "tapotun"'),
    # --- admin ---
    (root(admin=9433), 'admin: 9433 is a number, not an object; write {"listen": "127.0.0.1:9433", ...}'),
    (root(admin="t0k3n"), 'admin: *** is text, not an object; write {"listen": "127.0.0.1:9433", ...}'),
    (root(admin={"token": "t"}), 'admin.listen: is missing; add "listen": "127.0.0.1:9433"'),
    (
        root(admin={"listen": 9433, "port": 1}),
        'admin.port: "port" is an unknown field in "admin"; remove it; the fields are listen, token, read_token',
    ),
    (
        root(admin={"listen": 9433, "tokens": "t"}),
        'admin.tokens: "tokens" is an unknown field in "admin"; did you mean "token"?',
    ),
    (root(admin={"listen": 0}), "admin.listen: 0 is out of range; write a whole number from 1 to 65535"),
    (root(admin={"listen": 1.5}), "admin.listen: 1.5 is not a whole number; write a whole number from 1 to 65535"),
    (root(admin={"listen": True}), 'admin.listen: true is not text or a number; write "127.0.0.1:9433"'),
    (root(admin={"listen": None}), 'admin.listen: null is not text or a number; write "127.0.0.1:9433"'),
    (
        root(admin={"listen": ["9433"]}),
        'admin.listen: [...] is a list, not text or a number; write "127.0.0.1:9433"',
    ),
    (
        root(admin={"listen": 9433, "token": ""}),
        'admin.token: *** is empty; write the "sha256:..." that tapotun token prints',
    ),
    (
        root(admin={"listen": 9433, "token": 5}),
        'admin.token: *** is a number, not text; write "<sha256: and the hash of a token>"',
    ),
    (
        root(admin={"listen": 9433, "token": sha1("x").upper()}),
        "admin.token: *** is a hash in capital letters; write it in lower case",
    ),
    (
        root(admin={"listen": 9433, "token": "sha256:12"}),
        "admin.token: *** is not a SHA-256 hash; write sha256: and 64 digits of lower-case hex",
    ),
    (root(admin={"listen": 9433, "token": "t "}), "admin.token: *** starts or ends with a space; remove the space"),
    (
        root(admin={"listen": "0.0.0.0:9433"}),
        'admin.token: is missing, and others can reach 0.0.0.0; add the "sha256:..." that tapotun token prints, or '
        "listen on 127.0.0.1",
    ),
    (
        root(admin={"listen": "[::]:9433", "token": sha256("x")}),
        'warning: admin.listen: "::" is not loopback, and over plain HTTP anyone on the path can read the token; '
        "listen on 127.0.0.1 behind a proxy that ends TLS, or on an address within a tunnel",
    ),
    (
        root(admin={"listen": "127.0.0.1:8080"}),
        "admin.listen: 8080 clashes with interfaces[0].port on port 8080; choose another port or socket",
    ),
    (
        root(interfaces=[server(listen="0.0.0.0", path="/x")], admin={"listen": 8080}),
        "admin.listen: 8080 clashes with interfaces[0].listen on port 8080; choose another port or socket",
    ),
    (
        root(interfaces=[server(listen="unix:/run/t", port=..., path="/x")], admin={"listen": "unix:/run//t"}),
        'admin.listen: "unix:/run//t" clashes with interfaces[0].listen; choose another port or socket',
    ),
    # --- log ---
    (root(log="debug"), 'log: *** is text, not an object; write {"level": "info", "format": "text"}'),
    (
        root(log={"level": "warn"}),
        'log.level: "warn" is not one of the choices; write "debug", "error", "info" or "warning"',
    ),
    (root(log={"levle": "info"}), 'log.levle: "levle" is an unknown field in "log"; did you mean "level"?'),
    # --- update ---
    (
        root(update=True),
        'update: true is not an object; write {"url": "https://updates.example.com/tapotun/", ...}',
    ),
    (
        root(update={"url": "https://u/"}),
        "update.root_file: is missing, and this build of the program has no root metadata of its own; "
        'add "root_file" with the path of the root.json that the publisher gave you',
    ),
]


@pytest.mark.parametrize(("value", "line"), ONE_FINDING, ids=[line[:60] for _, line in ONE_FINDING])
def test_one_finding(value: Json, line: str) -> None:
    assert lines(value) == [line]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", 'is not an address with a port; write one such as "127.0.0.1:9433"'),
        (":", 'is not an address with a port; write one such as "127.0.0.1:9433"'),
        ("127.0.0.1", 'has no port; write it, as in "127.0.0.1:9433"'),
        ("::1", 'has no port; write it, as in "[::1]:9433"'),
        ("[::1]", 'has no port; write it, as in "[::1]:9433"'),
        ("2001:db8::1:9433", 'has no port; write it, as in "[2001:db8::1:9433]:9433"'),
        ("tapotun", 'is not an address with a port; write one such as "127.0.0.1:9433" or "[::1]:9433"'),
        (" 9433", 'has white space at its ends; write "9433"'),
        ("localhost:9433", 'has a name, not an address; write "127.0.0.1:9433" or "[::1]:9433"'),
        (":9433", 'names no address; write "0.0.0.0:9433" for every address, or "9433" for loopback'),
        ("*:9433", 'names no address; write "0.0.0.0:9433" for every address, or "9433" for loopback'),
        ("127.0.0.1:", 'has no port from 1 to 65535 after its last colon; write it as in "127.0.0.1:9433"'),
        ("127.0.0.1:http", 'has no port from 1 to 65535 after its last colon; write it as in "127.0.0.1:9433"'),
        ("127.0.0.1:0", "has a port out of range; write one from 1 to 65535"),
        ("65536", "has a port out of range; write one from 1 to 65535"),
        ("٩٠٩٠", 'is not an address with a port; write one such as "127.0.0.1:9433" or "[::1]:9433"'),
        ("/run/admin", 'is a path without unix:; write "unix:/run/admin"'),
        ("unix:admin", 'has no absolute path; write it as in "unix:/run/tapotun.sock"'),
        ("[127.0.0.1]:9433", 'has brackets that hold no IPv6 address; write "[::1]:9433"'),
        (
            "[fe80::1]:9433",
            "has an address that is link-local, for which an interface would have to be named; write "
            'one such as "127.0.0.1:9433"',
        ),
        ("host.example:9433", 'has an address that is not an address; write one such as "127.0.0.1:9433"'),
    ],
)
def test_invalid_admin_listen(text: str, problem: str) -> None:
    with pytest.raises(InvalidValue) as caught:
        parse_admin_listen(text)
    assert str(caught.value) == problem


def test_a_token_is_never_in_an_error() -> None:
    for text in ("s3cr3t\n", "s3cr3té", "s3cr3t" * 1000, "sha256:s3cr3t"):
        with pytest.raises(InvalidValue) as caught:
            parse_admin_token(text)
        assert "s3cr3t" not in f"{caught.value}{caught.value.shown}"
    assert "s3cr3t" not in repr(accept(root(admin={"listen": 9433, "token": "s3cr3t"})))


def test_all_errors_at_once_and_in_their_order() -> None:
    value = {
        "log": {"level": 5},
        "interfaces": [server(mtu=1), client(name="tun0")],
        "admin": {"listen": "9433x", "token": ""},
        "update": 1,
    }
    _, findings = check_content(json.dumps(value, indent=1).encode(), "F")
    assert [(finding.path, finding.line) for finding in findings] == [
        ("log.level", 3),
        ("interfaces[0].mtu", 16),
        ("interfaces[1].name", 19),
        ("admin.listen", 25),
        ("admin.token", 26),
        ("update", 28),
    ]


def test_a_repeated_field() -> None:
    data = b'{"interfaces": [], "log": {}, "log": {"level": "info", "level": "info"}}'
    _, findings = check_content(data, "F")
    assert [finding.path for finding in findings] == ["interfaces", "log", "log.level"]


def test_a_raw_token_in_a_public_file_causes_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    for token, warned in (("raw", ["admin.token"]), (sha256("raw"), []), (sha1("raw"), [])):
        file.write_text(json.dumps(root(admin={"listen": 9433, "token": token})))
        file.chmod(0o644)
        assert [finding.path for finding in check(file)[1]] == warned


def test_a_schema_can_be_made_of_the_structs() -> None:
    _, schema = msgspec.json.schema_components([RawRoot], ref_template="{name}")
    assert set(schema["RawRoot"]["properties"]) == {"interfaces", "admin", "log", "user", "plane", "update", "$schema"}
    assert schema["RawRoot"]["required"] == ["interfaces"]
    assert schema["RawAdmin"]["required"] == ["listen"]
    assert set(schema[RawLog.__name__]["properties"]) == {"level", "format"}
    assert set(schema[RawAdmin.__name__]["properties"]) == {"listen", "token", "read_token"}
