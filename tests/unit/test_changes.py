"""config.diff: finds every difference and nothing else, and the smallest change that each needs."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, IPv6Interface, IPv6Network, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.config.diff import changes, process_lines
from tapotun_trio.config.model import (
    AdminConfig,
    AllowedClient,
    Config,
    IngressOptions,
    InterfaceConfig,
    LogConfig,
    Mark,
    Proxy,
    Secret,
    ServerConfig,
    TcpAddress,
    UnixAddress,
)

from .support import allowed, client_config, server_config

A, B = allowed("a", "10.10.0.2"), allowed("b", "10.10.0.3")
SERVER = server_config(8080, A, B)
CLIENT = client_config("tun0", 8080)


def only(after: InterfaceConfig, before: InterfaceConfig = SERVER) -> tuple[str, list[str]]:
    [change] = changes([before], [after])
    assert (change.before, change.after) == (before, after)
    return change.kind, list(change.lines)


def test_nothing() -> None:
    assert changes([SERVER, CLIENT], [CLIENT, SERVER]) == []


@pytest.mark.parametrize(
    ("after", "line"),
    [
        (replace(SERVER, mtu=1400), "hub: mtu changed (1500 -> 1400)"),
        (replace(SERVER, ips=(IPv4Address("10.10.0.9"),)), "hub: ips changed (+10.10.0.9)"),
        (replace(SERVER, ips=(IPv6Address("fd00::9"),)), "hub: ips changed (+fd00::9)"),
        (
            replace(SERVER, nets=(*SERVER.nets, IPv6Interface("fd00::1/64"))),
            "hub: net changed (10.10.0.1/24 -> 10.10.0.1/24 and fd00::1/64)",
        ),
        (replace(SERVER, nets=(IPv6Interface("fd00::1/64"),)), "hub: net changed (10.10.0.1/24 -> fd00::1/64)"),
        (replace(SERVER, mark=Mark(7, 7)), "hub: mark changed (none -> 7 in table 7)"),
        (replace(SERVER, keepalive_s=5.0), "hub: keepalive changed (10 -> 5)"),
        (replace(SERVER, clients=(A,)), "hub b: removed"),
        (replace(SERVER, clients=(A, B, allowed("c", "10.10.0.4"))), "hub c: added"),
        (replace(SERVER, clients=(B, A)), "hub: the order of its clients changed"),
        (
            replace(SERVER, clients=(A, allowed("b", "10.10.0.3", ("10.60.0.0/24",)))),
            "hub b: routes changed (+10.60.0.0/24)",
        ),
        (
            replace(SERVER, clients=(A, replace(B, routes=(IPv6Network("fd00:60::/64"),)))),
            "hub b: routes changed (+fd00:60::/64)",
        ),
        (
            replace(SERVER, clients=(A, replace(B, addresses=(*B.addresses, IPv6Address("fd00::3"))))),
            "hub b: ip changed (10.10.0.3 -> 10.10.0.3 and fd00::3)",
        ),
        (replace(SERVER, clients=(A, replace(B, token=allowed("x", "10.10.0.9").token))), "hub b: token changed"),
        (replace(SERVER, clients=(A, replace(B, name="c"))), "hub b: name changed (b -> c)"),
        (
            replace(SERVER, clients=(A, replace(B, name="c", addresses=(IPv4Address("10.10.0.4"),)))),
            "hub b: name, ip changed (name b -> c, ip 10.10.0.3 -> 10.10.0.4)",
        ),
    ],
)
def test_live(after: ServerConfig, line: str) -> None:
    assert only(after) == ("live", [line])


@pytest.mark.parametrize(
    ("after", "line"),
    [
        (replace(SERVER, listen=(TcpAddress("::1", 8080),)), "hub: listen, port changed, so it starts again"),
        (replace(SERVER, path="/x", mtu=1400), "hub: path changed, so it starts again (none -> /x)"),
        (
            replace(SERVER, listen=(UnixAddress("/x"),), ingress=IngressOptions(trusts_unix=True)),
            "hub: listen, port, trusted_proxies, proxy_protocol, listen_mode changed, so it starts again",
        ),
        (replace(CLIENT, name="hub"), "hub: is a client now, and starts again"),
    ],
)
def test_restart(after: InterfaceConfig, line: str) -> None:
    assert only(after) == ("restart", [line])


def test_a_client_restarts_and_no_line_has_its_token() -> None:
    kind, [line] = only(replace(CLIENT, token=Secret("another")), CLIENT)
    assert (kind, line) == ("restart", "tun0: token changed, so it starts again")
    proxy = Proxy("proxy.example.com", 3128, Secret("user:pass"))
    moved = replace(CLIENT, token=Secret("another"), proxy=proxy)
    _, [line] = only(moved, CLIENT)
    assert line == "tun0: token, proxy changed, so it starts again"


def test_a_long_list_is_shortened() -> None:
    nets = tuple(f"10.{number}.0.0/16" for number in range(60, 80))
    _, lines = only(replace(SERVER, clients=(A, allowed("b", "10.10.0.3", nets))))
    assert lines == ["hub b: routes changed (+10.60.0.0/16 +10.61.0.0/16 +10.62.0.0/16 +10.63.0.0/16 and 16 more)"]
    two = replace(SERVER, ips=(IPv4Address("10.10.0.8"), IPv4Address("10.10.0.9")))
    assert only(replace(two, ips=two.ips[::-1]), two)[1] == ["hub: ips changed (in another order)"]
    assert only(replace(SERVER, install_routes=False))[1] == ["hub: install_routes changed (true -> false)"]


def test_the_mark_of_a_client_changes_while_it_runs() -> None:
    assert only(replace(CLIENT, mark=Mark(7, 7)), CLIENT) == ("live", ["tun0: mark changed (none -> 7 in table 7)"])
    kind, _ = only(replace(CLIENT, mark=Mark(7, 7), transport_mark=8), CLIENT)
    assert kind == "restart"


def test_what_frees_comes_first() -> None:
    other = replace(SERVER, name="other")
    found = changes([SERVER, CLIENT], [replace(CLIENT, transport_mark=3), other])
    assert [change.kind for change in found] == ["removed", "restart", "added"]
    assert [change.inverse.kind for change in found] == ["added", "restart", "removed"]


ADMIN = AdminConfig(TcpAddress("127.0.0.1", 9090), Secret("the-admin-token"))


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        (Config((SERVER,)), Config((CLIENT,)), []),
        (Config((), admin=ADMIN), Config((), admin=ADMIN), []),
        (Config(()), Config((), admin=ADMIN), ["admin: added"]),
        (Config((), admin=ADMIN), Config(()), ["admin: removed"]),
        (Config((), admin=ADMIN), Config((), admin=replace(ADMIN, token=None)), ["admin: token changed"]),
        (
            Config((), admin=ADMIN),
            Config((), admin=AdminConfig(UnixAddress("/x"), Secret("another"))),
            ["admin: listen, token changed"],
        ),
        (Config(()), Config((), log=LogConfig("debug")), ["log: level changed"]),
        (Config(()), Config((), user="tapotun"), ["user: needs a restart (none -> tapotun)"]),
        (Config((), user="vpn"), Config((), user="tapotun"), ["user: needs a restart (vpn -> tapotun)"]),
        (Config((), user="tapotun"), Config((), user="tapotun"), []),
        (Config(()), Config((), log=LogConfig("debug", "json")), ["log: level, format changed"]),
    ],
)
def test_the_process(before: Config, after: Config, lines: list[str]) -> None:
    assert process_lines(before, after) == lines


names = st.sampled_from(["tun0", "tun1", "tun2"])
entries = st.builds(
    lambda name, mtu, port, clients: replace(server_config(port, *clients, mtu=mtu), name=name),
    names,
    st.sampled_from([1400, 1500]),
    st.sampled_from([1, 2]),
    st.lists(
        st.builds(
            lambda name, net: AllowedClient(
                name=name, token=A.token, addresses=(IPv4Address("10.10.0.2"),), routes=(ip_network(net),)
            ),
            st.sampled_from(["a", "b", "c"]),
            st.sampled_from(["10.60.0.0/24", "fd00:61::/64"]),
        ),
        unique_by=lambda client: client.name,
        max_size=3,
    ),
)
files = st.lists(entries, unique_by=lambda config: config.name, max_size=3)


@given(files, files)
def test_changes_lead_to_the_new_config_and_their_inverses_back(
    before: list[ServerConfig], after: list[ServerConfig]
) -> None:
    running: dict[str, InterfaceConfig] = {config.name: config for config in before}
    found = changes(before, after)
    for steps, goal in ((found, after), ([change.inverse for change in reversed(found)], before)):
        for step in steps:
            assert step.lines
            if step.before is not None:
                assert running.pop(step.before.name) == step.before
            if step.after is not None:
                running[step.after.name] = step.after
        assert running == {config.name: config for config in goal}
