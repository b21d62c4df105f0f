"""Valid files: the values that they become, and what may be used more than once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, ip_address, ip_interface, ip_network
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import pytest

from tapotun_trio.config.load import check, check_content
from tapotun_trio.config.model import (
    AllowedClient,
    Bridge,
    ClientConfig,
    Config,
    Mark,
    Secret,
    ServerConfig,
    TcpAddress,
    TlsConfig,
    TokenHash,
    UnixAddress,
    Url,
)
from tapotun_trio.config.structs import RawClient, RawServer
from tapotun_trio.wire import params
from tapotun_trio.wire.control import MAX_PAYLOAD_BYTES
from tapotun_trio.wire.tunconf import TunConf, decode, encode_generation_2

from ..twins import both_families

EXAMPLES = Path(__file__).parents[2] / "conf" / "examples"

Json = dict[str, Any]
Family: TypeAlias = Callable[[Any], Any]  # see `tests.twins`


def sha1(token: str) -> str:
    return hashlib.sha1(token.encode(), usedforsecurity=False).hexdigest()


def sha256(token: str) -> str:
    return "sha256:" + hashlib.sha256(token.encode()).hexdigest()


def allowed(**changes: Any) -> Json:
    """One of a server's clients."""
    return _merge({"token": sha1("test"), "ip": "10.10.0.2"}, changes)


def server(**changes: Any) -> Json:
    """A valid server with these changes; a field given as ... is left out."""
    valid = {"name": "tun0", "port": 8080, "net": "10.10.0.1/24", "clients": [allowed()]}
    return _merge(valid, changes)


def client(**changes: Any) -> Json:
    """A valid client with these changes; a field given as ... is left out."""
    return _merge({"name": "tun1", "server": "http://127.0.0.1:8080/ip", "token": "test"}, changes)


def _merge(valid: Json, changes: Json) -> Json:
    return {key: value for key, value in {**valid, **changes}.items() if value is not ...}


def load_entries(*entries: object) -> tuple[Config | None, list[str]]:
    """The config and the text of every finding, without the line, of a file with these entries."""
    config, findings = check_content(json.dumps(list(entries)).encode(), "F")
    return config, [finding.text("F").removesuffix(" (line 1)") for finding in findings]


def accept(entry: Json) -> ServerConfig | ClientConfig:
    """The interface of a file with this one entry, which must have no findings."""
    config, texts = load_entries(entry)
    assert texts == []
    assert config is not None
    (interface,) = config.interfaces
    return interface


def accept_server(**changes: Any) -> ServerConfig:
    interface = accept(server(**changes))
    assert isinstance(interface, ServerConfig)
    return interface


def accept_client(**changes: Any) -> ClientConfig:
    interface = accept(client(**changes))
    assert isinstance(interface, ClientConfig)
    return interface


# --- values ---


@both_families
def test_minimal_server_gets_the_defaults(family: Family) -> None:
    address = family("10.10.0.2")
    assert accept(family(server())) == ServerConfig(
        name="tun0",
        nets=(ip_interface(family("10.10.0.1/24")),),
        listen=(TcpAddress("127.0.0.1", 8080, optional=True), TcpAddress("::1", 8080, optional=True)),
        mtu=1500,
        ips=(),
        routes=(),
        clients=(AllowedClient(address, TokenHash("sha1", sha1("test")), (ip_address(address),)),),
        mark=None,
        install_routes=True,
        source_check="loose",
        push_routes=(),
        peers=1,
        keepalive_s=10.0,
    )


@both_families
def test_server_with_every_field(family: Family) -> None:
    entry = server(
        name="corp0",
        port=80,
        net="10.50.0.1/24",
        mtu=1400,
        ips=["10.50.0.254"],
        mark={"value": 2**32 - 1, "table": 100},
        routes=["172.20.0.0/16"],
        install_routes=False,
        source_check="strict",
        push_routes=["172.20.0.0/16", "10.60.0.0/15"],
        push_dns=["172.20.0.53", "10.50.0.1", "172.20.0.53"],
        peers=2,
        keepalive=2.5,
        clients=[
            {
                "name": "Zürich 1",
                "token": sha256("a"),
                "ip": "10.50.0.2",
                "routes": ["10.60.0.0/24", "10.61.0.0/24"],
                "sources": ["192.168.100.10"],
            },
        ],
    )
    listen = ["0.0.0.0", "2001:DB8:0::1", "unix:/run/tapotun.sock"]

    def addresses(*texts: str) -> Any:
        return tuple(ip_address(family(text)) for text in texts)

    def networks(*texts: str) -> Any:
        return tuple(ip_network(family(text)) for text in texts)

    assert accept({**family(entry), "listen": listen}) == ServerConfig(
        name="corp0",
        nets=(ip_interface(family("10.50.0.1/24")),),
        listen=(
            TcpAddress("0.0.0.0", 80),
            TcpAddress("2001:db8::1", 80),
            UnixAddress("/run/tapotun.sock"),
        ),
        mtu=1400,
        ips=addresses("10.50.0.254"),
        routes=networks("172.20.0.0/16"),
        clients=(
            AllowedClient(
                "Zürich 1",
                TokenHash("sha256", sha256("a").removeprefix("sha256:")),
                addresses("10.50.0.2"),
                networks("10.60.0.0/24", "10.61.0.0/24"),
                addresses("192.168.100.10"),
            ),
        ),
        mark=Mark(2**32 - 1, 100),
        install_routes=False,
        source_check="strict",
        push_routes=networks("172.20.0.0/16", "10.60.0.0/15"),
        push_dns=addresses("172.20.0.53", "10.50.0.1"),
        peers=2,
        keepalive_s=2.5,
    )


def test_client() -> None:
    assert accept(client(mark={"value": 100, "table": 100})) == ClientConfig(
        name="tun1",
        server=Url("http", "127.0.0.1", 8080, "/ip"),
        token=Secret("test"),
        mark=Mark(100, 100),
        tls=TlsConfig(None, insecure=False),
        rotate_s=(420.0, 900.0),
        transport_mark=None,
    )


def test_insecure_leaves_the_server_unverified() -> None:
    config, (text,) = load_entries(client(server="https://vpn.example.com", tls={"insecure": True}))
    assert text.startswith("F: warning: [0].tls.insecure: true leaves the server unverified")
    assert config is not None
    (changed,) = config.interfaces
    assert isinstance(changed, ClientConfig)
    assert changed.tls == TlsConfig(None, insecure=True)


def test_a_client_s_own_certificate(tmp_path: Path) -> None:
    for name in ("cert", "key"):
        (tmp_path / name).write_text(f"-----BEGIN {'EC PRIVATE KEY' if name == 'key' else 'CERTIFICATE'}-----\n")
        (tmp_path / name).chmod(0o600)
    cert, key = str(tmp_path / "cert"), str(tmp_path / "key")
    tls = {"cert_file": cert, "key_file": key, "server_name": "Other.example", "min_version": "1.3"}
    changed = accept_client(server="https://192.0.2.1", tls=tls)
    assert changed.tls == TlsConfig(cert_file=cert, key_file=key, server_name="other.example", min_version="1.3")


def test_a_token_never_shows_itself() -> None:
    token = accept_client(token="s3cret").token
    assert "s3cret" not in f"{accept(client(token='s3cret'))!r} {token} {token!s} {token!r} {token:>9}"
    assert token.reveal() == "s3cret"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://h", Url("http", "h", 80, "/")),
        ("https://h", Url("https", "h", 443, "/")),
        ("HTTPS://Host.Example:444/A?b=C", Url("https", "host.example", 444, "/A?b=C")),
        ("http://h?x=1", Url("http", "h", 80, "/?x=1")),
        ("http://h:/", Url("http", "h", 80, "/")),
        ("http://h:65535/%20@", Url("http", "h", 65535, "/%20@")),
        ("http://[2001:DB8::1]:81/ip", Url("http", "2001:db8::1", 81, "/ip")),
        ("http://[::1]", Url("http", "::1", 80, "/")),
        ("http://under_score.example./", Url("http", "under_score.example.", 80, "/")),
        ("http://xn--bcher-kva.example/", Url("http", "xn--bcher-kva.example", 80, "/")),
        ("http://10.0.0.1/a//b/../c", Url("http", "10.0.0.1", 80, "/a//b/../c")),
    ],
)
def test_urls(text: str, expected: Url) -> None:
    assert accept_client(server=text).server == expected


@pytest.mark.parametrize("mtu", [68, 1400, 65535])  # IPv6: see test_config_families
def test_mtu(mtu: int) -> None:
    assert accept_server(mtu=mtu).mtu == mtu


@pytest.mark.parametrize("port", [1, 65535])
def test_port(port: int) -> None:
    assert {e.port for e in accept_server(port=port).listen if isinstance(e, TcpAddress)} == {port}


@pytest.mark.parametrize("keepalive", [1, 1.5, 50])
def test_keepalive(keepalive: float) -> None:
    found = accept_server(keepalive=keepalive).keepalive_s
    assert (found, type(found)) == (keepalive, float)


def test_the_limits_of_config_and_wire_agree() -> None:
    """The config does not import the wire; what it accepts can be sent all the same."""
    _, schema = msgspec.json.schema_components([RawServer], ref_template="{name}")
    keepalive = schema["RawServer"]["properties"]["keepalive"]
    assert (keepalive["minimum"], keepalive["maximum"]) == params.KEEPALIVE_S
    pushed = [f"172.16.{n}.0/24" for n in range(255)]
    routes = accept_server(push_routes=pushed).push_routes
    assert list(map(str, routes)) == pushed
    conf = TunConf(1500, (IPv4Interface("10.10.0.2/24"),), tuple(map(IPv4Network, pushed)))
    assert decode(encode_generation_2(conf)) == conf


def test_as_many_routes_as_can_be_pushed_fit_into_params() -> None:
    """With the longest texts: 255 networks of each family."""
    longest = IPv6Address("fd11:1111:1111:1111:1111:1111:1111:1111")
    pushed = [f"172.{100 + n}.200.200/32" for n in range(100)] + [f"173.{100 + n}.200.200/32" for n in range(155)]
    pushed += [f"{longest + n}/128" for n in range(255)]
    routes = accept_server(net=["10.10.0.1/24", "fd00::1/64"], push_routes=pushed).push_routes
    assert len(routes) == 510
    packed = params.encode(params.Params(mtu=1500, addresses=(IPv4Interface("10.10.0.2/24"),), routes=routes))
    assert len(packed) <= MAX_PAYLOAD_BYTES
    assert params.decode(packed).routes == routes


@both_families
def test_a_route_pushed_twice_is_pushed_once(family: Family) -> None:
    config, _ = load_entries(family(server(push_routes=["10.60.0.0/24", "10.61.0.0/24", "10.60.0.0/24"])))
    assert config is not None
    (found,) = config.interfaces
    assert isinstance(found, ServerConfig)
    assert found.push_routes == (ip_network(family("10.60.0.0/24")), ip_network(family("10.61.0.0/24")))


@pytest.mark.parametrize("rotate_s", [[0.1, 86400], [5, 5], [420.5, 900]])
def test_rotate_s(rotate_s: list[float]) -> None:
    assert accept_client(rotate_s=rotate_s).rotate_s == tuple(rotate_s)


@pytest.mark.parametrize(("mask", "expected"), [("0xff", 0xFF), ("0X4064", 0x4064), (0xFFFF, 0xFFFF)])
def test_a_mark_with_a_mask(mask: object, expected: int) -> None:
    assert accept_client(mark={"value": 100, "mask": mask, "table": 100}).mark == Mark(100, 100, expected)


def test_marks_of_other_bits_may_have_other_tables() -> None:
    first = client(mark={"value": 1, "mask": "0x1", "table": 100}, transport_mark=2)
    second = client(name="tun2", token="b", mark={"value": 2, "mask": "0x2", "table": 200})
    third = client(name="tun3", token="c", mark={"value": 4, "mask": "0x6", "table": 300})
    assert load_entries(first, second, third)[1] == []


@pytest.mark.parametrize("value", [1, 2**32 - 1])
def test_transport_mark(value: int) -> None:
    assert accept_client(transport_mark=value, mark={"value": 100, "table": 100}).transport_mark == value


def test_a_transport_may_enter_the_tunnel_of_another_interface() -> None:
    first = client(mark={"value": 100, "table": 100})
    assert load_entries(first, client(name="tun2", token="b", transport_mark=100))[1] == []


@pytest.mark.parametrize("name", ["a", "123456789012345", "tun-0_a.b", "é", "äöüäöüx"])
def test_interface_names(name: str) -> None:
    assert accept_server(name=name).name == name


@both_families
@pytest.mark.parametrize("net", ["10.0.0.1/8", "10.0.0.1/30", "10.0.0.0/31", "10.0.0.1/31", "10.0.0.7/32"])
def test_nets(net: str, family: Family) -> None:
    net = family(net)
    config, texts = load_entries(server(net=net, clients=[]))
    assert texts == ["F: warning: [0].clients: [] lists no client, so none can connect; add one"]
    assert config is not None
    assert [i.nets for i in config.interfaces if isinstance(i, ServerConfig)] == [(ip_interface(net),)]


@both_families
def test_both_hosts_of_a_net_of_two_addresses_can_be_used(family: Family) -> None:
    clients = accept_server(**family({"net": "10.0.0.0/31", "clients": [allowed(ip="10.0.0.1")]})).clients
    assert [c.addresses for c in clients] == [(ip_address(family("10.0.0.1")),)]


@pytest.mark.parametrize("token", ["x", "with space", '!"#~', "a" * 39, "A" * 41, "é".encode().hex()])
def test_raw_tokens(token: str) -> None:
    assert accept_client(token=token).token.reveal() == token


def test_a_unix_socket_needs_no_port() -> None:
    assert accept_server(port=..., listen="unix:/run/t.sock").listen == (UnixAddress("/run/t.sock"),)
    assert accept_server(port=..., listen=["unix:/a", "unix:/b"]).listen == (UnixAddress("/a"), UnixAddress("/b"))
    longest = "unix:/" + "a" * 106
    assert accept_server(port=..., listen=longest).listen == (UnixAddress(longest[5:]),)


def test_one_listen_address_needs_no_list() -> None:
    assert accept_server(listen="::").listen == (TcpAddress("::", 8080),)


# --- what may be used twice ---


def test_the_families_do_not_clash() -> None:
    assert accept_server(listen=["0.0.0.0", "::"]).listen == (TcpAddress("0.0.0.0", 8080), TcpAddress("::", 8080))


@both_families
def test_a_port_may_be_used_on_two_addresses(family: Family) -> None:
    second = server(name="tun1", net="10.11.0.1/24", listen="127.0.0.2", clients=[allowed(ip="10.11.0.2")])
    assert load_entries(family(server(listen="127.0.0.1")), family(second))[1] == []


@both_families
def test_two_servers_may_accept_the_same_token(family: Family) -> None:
    second = server(name="tun1", port=8081, net="10.11.0.1/24", clients=[allowed(ip="10.11.0.2")])
    config, texts = load_entries(server(), family(second), client(name="tun2"))
    assert texts == []
    assert config is not None
    assert [type(i) for i in config.interfaces] == [ServerConfig, ServerConfig, ClientConfig]


def test_a_token_may_be_used_at_two_servers() -> None:
    assert load_entries(client(), client(name="tun2", server="http://127.0.0.1:8081/ip"))[1] == []


@both_families
def test_routes_may_nest(family: Family) -> None:
    clients = [
        allowed(routes=["10.60.0.0/16", "10.10.0.2/32", "10.10.0.0/24"]),
        allowed(token=sha1("b"), ip="10.10.0.3", routes=["10.60.1.0/24"]),
    ]
    assert len(accept_server(**family({"net": "10.10.0.1/24", "clients": clients})).clients) == 2


@both_families
def test_a_client_may_be_the_exit_for_another(family: Family) -> None:
    clients = [allowed(sources=["10.10.0.3"]), allowed(token=sha1("b"), ip="10.10.0.3")]
    found = accept_server(**family({"net": "10.10.0.1/24", "clients": clients}))
    assert found.clients[0].sources == (ip_address(family("10.10.0.3")),)


@both_families
def test_two_servers_may_have_the_same_route_if_one_installs_none(family: Family) -> None:
    def one(**changes: Any) -> Json:
        clients = [allowed(ip=changes["net"].replace("1/24", "2"), routes=["10.60.0.0/24"])]
        return server(clients=clients, **changes)

    second = one(name="tun1", port=81, net="10.11.0.1/24", install_routes=False)
    assert load_entries(family(one(net="10.10.0.1/24")), family(second))[1] == []


# --- the shipped examples ---


def test_examples() -> None:
    """Each example has what docs/config.md#example-files describes."""
    found: dict[str, ServerConfig | ClientConfig] = {}
    for name in (file.stem for file in EXAMPLES.iterdir()):
        config, findings = check(EXAMPLES / f"{name}.json")
        assert config is not None, findings
        assert all("every user" in finding.problem for finding in findings)
        (found[name],) = config.interfaces
    minimal, corp = found["server-minimal"], found["server-corp"]
    assert isinstance(minimal, ServerConfig)
    assert (minimal.name, minimal.net4) == ("tun0", IPv4Interface("10.10.0.1/24"))
    assert [(c.token.digest, str(c.ipv4)) for c in minimal.clients] == [(sha1("test"), "10.10.0.2")]
    assert {e.port for e in minimal.listen if isinstance(e, TcpAddress)} == {8080}
    assert isinstance(corp, ServerConfig)
    assert (corp.name, corp.net4, corp.mtu) == ("corp0", IPv4Interface("10.50.0.1/24"), 1400)
    assert corp.ips == (IPv4Address("10.50.0.254"),)
    assert corp.mark == Mark(100, 100)
    assert corp.routes == (IPv4Network("172.20.0.0/16"),)
    assert [(str(c.ipv4), [str(r) for r in c.routes], [str(s) for s in c.sources]) for c in corp.clients] == [
        ("10.50.0.2", ["10.60.0.0/24", "10.61.0.0/24"], ["192.168.100.10"]),
        ("10.50.0.3", ["10.70.0.0/24"], []),
    ]
    assert isinstance(found["client-minimal"], ClientConfig)
    assert found["client-minimal"].token.reveal() == "test"
    assert found["client-marked"].mark == Mark(100, 100)
    dual = found["server-dual"]
    assert isinstance(dual, ServerConfig)
    assert (dual.name, list(map(str, dual.nets))) == ("dual0", ["10.20.0.1/24", "fd00:20::1/64"])
    assert list(map(str, dual.push_routes)) == ["10.21.0.0/16", "fd00:21::/48"]
    assert [(c.name, [str(a) for a in c.addresses], [str(r) for r in c.routes]) for c in dual.clients] == [
        ("branch", ["10.20.0.2", "fd00:20::2"], ["10.22.0.0/24", "fd00:22::/64"]),
        ("sensor", ["fd00:20::3"], []),
    ]
    branch = found["client-dual"]
    assert isinstance(branch, ClientConfig)
    assert dual.clients[0].token.digest == sha1(branch.token.reveal())
    assert branch.mark == Mark(100, 100)
    segment, office = found["server-tap"], found["client-tap"]
    assert isinstance(segment, ServerConfig)
    assert isinstance(office, ClientConfig)
    assert (segment.name, segment.device, segment.nets, segment.mtu) == ("seg0", "tap", (), 1500)
    assert segment.bridge == Bridge("br0")
    assert [(c.name, c.token.digest, c.addresses) for c in segment.clients] == [
        ("branch", sha1(office.token.reveal()), ())
    ]
    assert (office.name, office.device, office.bridge) == ("seg0", "tap", Bridge("br0"))
    assert len(found) == 8


# --- the structs ---


def test_the_structs_name_exactly_the_fields_of_the_issues() -> None:
    """And a JSON Schema can be made of them."""
    _, schema = msgspec.json.schema_components([RawServer, RawClient], ref_template="{name}")

    def fields(struct: str) -> tuple[set[str], set[str]]:
        return set(schema[struct]["properties"]), set(schema[struct]["required"])

    assert fields("RawServer") == (
        {
            *("name", "mark", "port", "listen", "path", "net", "mtu", "ips", "routes", "push_routes", "push_dns"),
            *("listen_mode", "trusted_proxies", "proxy_protocol"),
            *("clients", "install_routes", "source_check", "peers", "keepalive"),
            *("device", "bridge", "mac", "macs", "isolate", "arp_guard", "bpdu", "storm_limit"),
        },
        {"name"},
    )
    assert fields("RawAllowedClient") == ({"token", "ip", "routes", "sources", "macs", "name"}, {"token"})
    assert fields("RawBridge") == ({"name", "create", "isolated", "learning", "bpdu_guard"}, {"name"})
    assert fields("RawClient") == (
        {
            *("name", "mark", "server", "token", "token_file", "tls", "rotate_s", "transport", "transport_mark"),
            *("headers", "user", "password_file"),
            *("auth_header", "proxy"),
            *("device", "bridge", "mac"),
        },
        {"name", "server"},
    )
    assert fields("RawMark") == ({"value", "table", "mask"}, {"value", "table"})
    assert all(part["additionalProperties"] is False for part in schema.values())


@both_families
def test_ten_thousand_routes_load_fast(family: Family) -> None:
    """Well under a second; the limit leaves room for a busy machine. Neither checks nor errors take quadratic time."""
    clients = [
        allowed(
            token=sha1(str(i)),
            ip=f"10.{1 + i // 250}.0.{i % 250 + 1}",
            routes=[f"172.{16 + i // 256}.{i % 256}.{16 * j}/28" for j in range(10)],
        )
        for i in range(1000)
    ]
    for net, errors in (("10.0.0.1/8", 0), ("192.168.0.1/24", 1000)):
        data = json.dumps([family(server(net=net, clients=clients))], indent=1).encode()
        start = time.process_time()
        config, findings = check_content(data, "F")
        assert time.process_time() - start < 3
        assert len(findings) == errors
        assert (config is None) == bool(errors)
