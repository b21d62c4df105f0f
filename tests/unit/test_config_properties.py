"""Any content of a file leads to findings only, one line each, and never shows a raw token."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tapotun_trio.config.diagnostics import Findings, InvalidValue, report_json, report_text
from tapotun_trio.config.jsontext import parse
from tapotun_trio.config.load import check_content
from tapotun_trio.config.model import TcpAddress, UnixAddress
from tapotun_trio.config.parsers import parse_admin_listen
from tapotun_trio.config.structs import NAMES, RawAdmin, RawClient, RawLog, RawRoot, RawServer
from tapotun_trio.config.typecheck import check_object, field_specs
from tapotun_trio.config.urls import parse_url

from .test_config_load import Json, allowed, client, server, sha1

PACKAGE = Path(__file__).parents[2] / "tapotun_trio" / "config"

patient = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])  # this machine may be busy

TOKEN = "R4w-T0k3n-that-nobody-may-see"

NAMES_IN_USE = sorted({name for struct in NAMES for name in field_specs(struct)})
TEXTS = st.sampled_from(
    [
        *("", "tun0", "10.10.0.1/24", "10.10.0.2", "10.60.0.0/24", "::1", "unix:/run/t", "http://h/", sha1("x")),
        *("loose", "fd00:10::1/64", "fd00:10::2", "fd00:60::/64", "fe80::1%eth0", "::ffff:10.10.0.2"),
        *("tun", "tap", "br0", "02:00:5e:10:00:01", "02-00-5E-10-00-02", "ff:ff:ff:ff:ff:ff", "forward"),
    ]
) | st.text(max_size=12)
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 68, 8080, 65535, 65536, 2**32 - 1, 2**32])
    | st.floats()
    | TEXTS
    | st.text(alphabet=st.characters(codec=None), max_size=4)  # lone surrogates too
)
JSON = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(NAMES_IN_USE) | st.text(max_size=6), inner, max_size=8)
    ),
    max_leaves=30,
)


def valid() -> list[Json]:
    """A valid file that uses every field."""
    second = allowed(
        name="b",
        token=sha1("b"),
        ip=["10.10.0.3", "fd00:10::3"],
        routes=["10.60.0.0/24", "fd00:60::/64"],
        sources=["10.10.0.2", "2001:db8::2"],
    )
    return [
        server(
            listen=["127.0.0.1", "::1", "unix:/run/t.sock"],
            net=["10.10.0.1/24", "fd00:10::1/64"],
            mtu=1400,
            ips=["10.10.0.254", "fd00:10::fe"],
            routes=["172.20.0.0/16", "fd00:20::/64"],
            mark={"value": 1, "table": 101},
            install_routes=True,
            source_check="off",
            push_routes=["10.60.0.0/24", "172.20.0.0/16", "fd00:20::/64"],
            push_dns=["10.10.0.1", "fd00:10::1"],
            peers=2,
            keepalive=2.5,
            path="/tun0",
            listen_mode="0666",
            trusted_proxies=["127.0.0.1", "fd00::/8", "unix"],
            proxy_protocol=True,
            clients=[allowed(), second],
        ),
        client(
            token=TOKEN,
            server="https://h:444/ip",
            mark={"value": 2, "table": 102},
            tls={"insecure": False},
            rotate_s=[60, 90.5],
            transport_mark=3,
        ),
        server(
            name="tap0",
            port=8081,
            device="tap",
            net=["10.11.0.1/24", "fd00:11::1/64"],
            mtu=9000,
            ips=["10.11.0.254", "fd00:11::fe"],
            push_dns=["10.11.0.1", "fd00:11::1"],
            bridge={"name": "br0", "create": True, "isolated": True, "learning": False, "bpdu_guard": True},
            mac="02:00:5e:10:00:01",
            isolate=True,
            arp_guard=True,
            bpdu="drop",
            storm_limit=100,
            clients=[
                allowed(ip=["10.11.0.2", "fd00:11::2"], macs=["02:00:5e:10:00:02", "02-00-5E-10-00-03"]),
                allowed(token=sha1("b"), ip=..., macs=["02:00:5e:10:00:04"]),
                allowed(token=sha1("c"), ip=...),
            ],
        ),
        client(
            name="tap1",
            token=f"{TOKEN}-2",
            server="https://h:445/ip",
            device="tap",
            bridge="br0",
            mac="02:00:5e:10:00:05",
        ),
    ]


ADMIN_TOKEN = "4dm1n-T0k3n-that-nobody-may-see"


def valid_root() -> Json:
    """The same with an object as the root."""
    return {
        "interfaces": valid(),
        "admin": {"listen": "127.0.0.1:9090", "token": ADMIN_TOKEN},
        "log": {"level": "debug", "format": "json"},
    }


def assert_invariants(data: bytes) -> None:
    """No exception, each finding one printable line, no token, and a config if and only if there is no error."""
    config, findings = check_content(data, "F", 0o644)
    errors = [finding for finding in findings if finding.severity == "error"]
    assert (config is None) == bool(errors)
    for finding in findings:
        text = finding.text("F")
        assert text.isprintable()
        assert TOKEN not in text
        assert ADMIN_TOKEN not in text
        assert finding.problem
        assert finding.remedy
    text, document = report_text("F", config, findings), report_json("F", findings)
    assert TOKEN not in text + document
    assert ADMIN_TOKEN not in text + document
    assert ADMIN_TOKEN not in repr(config)
    assert len(text.splitlines()) == len(findings) + 1
    report = json.loads(document)
    assert report["valid"] == (config is not None)
    assert len(report["errors"] + report["warnings"]) == len(findings)


@patient
@given(st.binary(max_size=60))
def test_arbitrary_bytes(data: bytes) -> None:
    assert_invariants(data)


@patient
@given(JSON)
def test_arbitrary_json(value: object) -> None:
    assert_invariants(json.dumps(value).encode())


@patient
@given(st.lists(JSON, max_size=4))
def test_arbitrary_entries(value: object) -> None:
    assert_invariants(json.dumps(value).encode())


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every value inside."""
    found = [path] if path else []
    if isinstance(value, dict):
        for key, field in value.items():
            found += places(field, (*path, key))
    if isinstance(value, list):
        for i, element in enumerate(value):
            found += places(element, (*path, i))
    return found


def parent(root: Any, path: tuple[Any, ...]) -> Any:
    for step in path[:-1]:
        root = root[step]
    return root


@pytest.mark.parametrize("make", [valid, valid_root])
def test_the_valid_file_is_valid(make: Callable[[], Any]) -> None:
    config, findings = check_content(json.dumps(make()).encode(), "F")
    assert config is not None
    assert findings == []


@patient
@given(st.data(), st.sampled_from([valid, valid_root]))
def test_mutated_files(data: st.DataObject, make: Callable[[], Any]) -> None:
    root: Any = make()
    for _ in range(data.draw(st.integers(1, 4))):
        path = data.draw(st.sampled_from(places(root) or [(0,)]))
        if isinstance(root, dict) and not root:
            root = []
        where, last = parent(root, path), path[-1]
        match data.draw(st.sampled_from(["remove", "replace", "repeat", "rename"])):
            case "remove" if root:
                del where[last]
            case "replace" if root:
                where[last] = data.draw(JSON)
            case "repeat" if isinstance(where, list) and root:
                where.append(copy.deepcopy(where[last]))
            case "rename" if isinstance(where, dict):
                where[data.draw(st.sampled_from(NAMES_IN_USE) | st.text(max_size=12))] = None
            case _:
                pass
    assert_invariants(json.dumps(root).encode())


@patient
@given(st.data())
def test_damaged_text(data: st.DataObject) -> None:
    """Cut, or with some characters changed: a syntax error may be next to the token."""
    text = json.dumps(data.draw(st.sampled_from([valid(), valid_root()])), indent=data.draw(st.sampled_from([None, 1])))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 8)))
    inserted = data.draw(st.text(alphabet="[]{},:\"\\\n\x00é'#/ 1t", max_size=4))
    assert_invariants((text[:start] + inserted + text[end:]).encode())


@patient
@given(st.data())
def test_a_token_in_the_wrong_place(data: st.DataObject) -> None:
    """As an entry, in a server's client, in a list or an object, before an @, under a misspelled name."""
    wrong = data.draw(
        st.sampled_from([TOKEN, f"{TOKEN}\n", [TOKEN], {"token": TOKEN}, f" {TOKEN}", f"{TOKEN}é", f"sha256:{TOKEN}"])
    )
    root: list[Any] = valid()
    match data.draw(st.integers(0, 7)):
        case 0:
            root.append(wrong)
        case 1:
            root[0]["clients"][0]["token"] = wrong
        case 2:
            root[0]["clients"].append(wrong)
        case 3:
            root[0]["token"] = wrong
        case 4:
            root[1]["token"] = wrong
        case 5:
            root[1]["tokn"] = wrong
        case 6:
            root[1]["server"] = f"http://{TOKEN}@h /"
        case _:
            root[1]["server"] = f"http://h:x/?key={TOKEN}"
    assert_invariants(json.dumps(root).encode())


@patient
@given(st.data())
def test_an_admin_token_in_the_wrong_place(data: st.DataObject) -> None:
    """As the object itself, in a list, as the address, under a misspelled name, in another object."""
    token = ADMIN_TOKEN
    wrong = data.draw(st.sampled_from([token, f"{token}\n", [token], {"token": token}, f"{token}é", f"sha256:{token}"]))
    root: Any = valid_root()
    match data.draw(st.integers(0, 5)):
        case 0:
            root["admin"] = wrong
        case 1:
            root["admin"]["token"] = wrong
        case 2:
            root["admin"]["tokn"] = wrong
        case 3:
            root["log"]["token"] = wrong
        case 4:
            root["token"] = wrong
        case _:
            root["interfaces"].append({"admin": {"token": wrong}})
    assert_invariants(json.dumps(root).encode())


@patient
@given(
    st.sampled_from(["127.0.0.1", "0.0.0.0", "::1", "[::1]", "[::]", "unix:/run/a", "localhost", ""])
    | st.text(max_size=8),
    st.sampled_from(["", ":", ":9090", ":0", ":65536", "9090", ":9090 "]) | st.text(max_size=4),
)
def test_an_accepted_listener_means_the_same_when_written_again(address: str, port: str) -> None:
    try:
        found = parse_admin_listen(address + port)
    except InvalidValue:
        return
    if isinstance(found, UnixAddress):
        assert parse_admin_listen(f"unix:{found.path}") == found
        return
    assert isinstance(found, TcpAddress)
    assert 1 <= found.port <= 65535
    host = f"[{found.address}]" if ":" in found.address else found.address
    assert parse_admin_listen(f"{host}:{found.port}") == found


STRUCTS = st.sampled_from([RawServer, RawClient, RawAdmin, RawLog, RawRoot])
ENTRIES = st.fixed_dictionaries(
    {},
    optional={
        **dict.fromkeys(NAMES_IN_USE, JSON),
        "name": SCALARS,
        "port": SCALARS,
        "net": TEXTS | st.lists(TEXTS, max_size=3),
        "server": TEXTS,
        "mark": st.fixed_dictionaries({"value": SCALARS, "table": st.integers(0, 9)}, optional={"x": SCALARS}),
        "peers": SCALARS,
        "keepalive": SCALARS | st.floats(0.5, 51),
        "push_routes": st.integers(254, 257).map(lambda n: ["10.60.0.0/24"] * n) | JSON,
        "rotate_s": st.lists(st.floats(0, 86401) | SCALARS, max_size=3) | JSON,
        "transport_mark": SCALARS,
        "device": TEXTS,
        "bridge": TEXTS | st.fixed_dictionaries({"name": TEXTS}, optional={"create": SCALARS, "x": SCALARS}) | JSON,
        "mac": TEXTS,
        "storm_limit": SCALARS,
        "clients": (
            st.lists(
                st.fixed_dictionaries(
                    {"token": TEXTS},
                    optional={
                        "ip": TEXTS | st.lists(TEXTS, max_size=3),
                        "routes": JSON,
                        "macs": st.lists(TEXTS, max_size=3) | JSON,
                    },
                )
            )
            | JSON
        ),
    },
)


@patient
@given(ENTRIES, STRUCTS)
def test_the_shape_is_checked_as_by_msgspec(entry: Json, struct: type[msgspec.Struct]) -> None:
    """`check_object` reports something if and only if ``msgspec.convert`` raises."""
    fitting = {key: value for key, value in entry.items() if key in field_specs(struct)}
    for candidate in (entry, fitting):
        plain = json.loads(json.dumps(candidate))
        findings = Findings()
        check_object(parse(json.dumps(candidate)), struct, "", findings)
        try:
            msgspec.convert(plain, struct, strict=True)
        except (msgspec.ValidationError, UnicodeEncodeError):  # the latter for half a surrogate pair
            assert findings.found
        else:
            assert [f for f in findings.found if "surrogate" not in f.problem] == []


@patient
@given(
    st.sampled_from(["http://", "https://", "HTTP://", ""]),
    st.sampled_from(["h", "H.example.", "10.0.0.1", "[::1]", "a_b"]) | st.text(max_size=8),
    st.sampled_from(["", ":", ":80", ":443", ":8080", ":0"]),
    st.text(alphabet=st.characters(codec="ascii"), max_size=12).map(lambda text: f"/{text}") | st.text(max_size=4),
)
def test_an_accepted_url_means_the_same_when_written_again(scheme: str, host: str, port: str, target: str) -> None:
    try:
        found, login = parse_url(scheme + host + port + target)
    except InvalidValue:
        return
    assert parse_url(f"{found.scheme}://{found.authority}{found.target}") == (found, None)
    assert login is None or "@" in host
    assert found.target.startswith("/")
    assert found.target.isascii()
    assert " " not in found.target
    assert found.target.isprintable()
    assert 1 <= found.port <= 65535


def test_config_imports_no_event_loop_socket_or_clock() -> None:
    for module in PACKAGE.glob("*.py"):
        words = {line.split()[1].split(".")[0] for line in module.read_text().splitlines() if _imports(line)}
        assert not words & {"trio", "socket", "time", "ssl", "asyncio"}, module


def _imports(line: str) -> bool:
    return line.lstrip().startswith(("import ", "from "))


def test_a_wrong_field_name_in_our_own_code_is_a_bug() -> None:
    node = check_object(parse("{}"), RawServer, "", Findings())
    assert node is not None
    with pytest.raises(LookupError):
        node.get("prot", int)
