"""Every test that names IPv4 addresses names IPv6 ones, too, or there is a reason why it does not.

A test names what its own code names, and the functions and constants of its module that it uses. Addresses of loopback
and "any" do not count: a test's own daemons listen there. `@only_ipv4` takes the IPv6 part of a module's world away.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Final

from ..tables import table

TESTS: Final = Path(__file__).parent.parent
_IPV4: Final = re.compile(r"(?<![\w.:])\d{1,3}(?:\.\d{1,3}){3}(?![\w.])")
_IPV6: Final = re.compile(r"(?<![\w.:])[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7}(?![\w.:])")

# What makes IPv6 of IPv4, or brings it along.
_NAMES: Final = frozenset(
    {
        *("as_ipv6", "both_families", "twin", "twin_of", "FAMILIES"),  # tests.twins
        *("BOTH", "Family"),  # tests.netns.families
        *("ipv6", "IPV6", "IPv6Address", "IPv6Interface", "IPv6Network"),
        *("dual", "dual_cable", "dual_config", "addresses_6", "routes_6", "rules_6"),  # tests.netns.dual
        "besieged",  # tests.unit.hostile: traffic of both families passes beside each attack
    }
)


# Why tests have no twin of their own. Each is true of all tests that it is given for.
BASE: Final = "base peers, and what is said to them, know IPv4 only"
CARRIED: Final = "a packet is what is carried: what is tested does not depend on its addresses"
NAME: Final = "an address is a name in a config, a key, a line or a field: nothing depends on its family"
ROAD: Final = "the path is the bench's, of IPv4; TCP's congestion control is the same in both families"
OUTSIDE: Final = "an address is where daemons listen or connect: tests/netns/test_outside_ipv6.py has that of IPv6"


class Twins(tuple[str, ...]):
    """The files, as from ``tests``, in which other tests do the same with IPv6."""


def twin_in(*files: str) -> Twins:
    return Twins(files)


# A file of tests, or one test of it, as from ``tests``.
REASONS: Final[dict[str, str | Twins]] = {
    **dict.fromkeys(
        (
            "netns/test_howtos.py::test_from_the_original_and_back",
            "netns/test_interop.py",
            "unit/test_basepeer.py",
            "unit/test_basepeer_faults.py",
            "unit/test_generation_2.py",
            "unit/test_interop_base.py",
            "unit/test_wire_tunconf.py",
        ),
        BASE,
    ),
    **dict.fromkeys(
        (
            "netns/test_backlog.py",
            "netns/test_life_bug.py",
            "netns/test_plane.py",
            "netns/test_shortages.py",
            "unit/test_client_faults.py",
            "unit/test_congestion.py",
            "unit/test_device_tasks.py",
            "unit/test_faults.py",
            "unit/test_garbage.py",
            "unit/test_http_connection.py",
            "unit/test_large_ping.py",
            "unit/test_plane_hook.py",
            "unit/test_plane_loans.py",
            "unit/test_plane_tls.py",
            "unit/test_receiver.py",
            "unit/test_refused_streams.py",
            "unit/test_request_headers.py",
            "unit/test_segment.py",
            "unit/test_sender.py",
            "unit/test_session_end.py",
            "unit/test_shortages.py",
            "unit/test_stall.py",
            "unit/test_steps.py",
            "unit/test_tap_tunnel.py",
            "unit/test_teardown.py",
            "unit/test_tunnel.py::test_an_answer_that_overtakes_the_end_of_an_upload_is_no_failure",
            "unit/test_upload_rotation.py",
            "unit/test_websocket.py",
            "unit/test_wire_websocket.py",
        ),
        CARRIED,
    ),
    **dict.fromkeys(
        (
            "netns/test_harness.py",
            "netns/test_howtos.py::test_rotate_a_token",
            "netns/test_panel.py",
            "netns/test_panel_page.py",
            "netns/test_panel_reader.py",
            "netns/test_panel_segment.py",
            "netns/test_prometheus.py",
            "netns/test_second_start.py",
            "netns/test_status.py",
            "netns/test_supervision.py",
            "packages/test_completion.py",
            "packages/test_pyz.py",
            "packages/test_systemd.py::test_the_sandbox_holds",
            "unit/test_admin_manager.py",
            "unit/test_admin_server.py",
            "unit/test_ages.py",
            "unit/test_bench.py",
            "unit/test_changes.py",
            "unit/test_cli.py",
            "unit/test_config_files.py",
            "unit/test_config_syntax.py",
            "unit/test_failure_log.py",
            "unit/test_hostile_log.py",
            "unit/test_http_heads.py",
            "unit/test_left_out.py",
            "unit/test_log.py",
            "unit/test_metrics.py",
            "unit/test_openwrt.py",
            "unit/test_ownership.py",
            "unit/test_path_mtu.py",
            "unit/test_probe.py",
            "unit/test_probe_verdict.py",
            "unit/test_render.py",
            "unit/test_scale.py",
            "unit/test_sd_notify.py",
            "unit/test_segments.py",
            "unit/test_status.py",
            "unit/test_supervisor.py",
            "unit/test_up_again.py",
            "unit/test_update_answers.py::test_the_order_of_versions",
            "unit/test_wire_control.py",
        ),
        NAME,
    ),
    **dict.fromkeys(
        (
            "netns/test_absent_address.py",
            "netns/test_failures.py",
            "netns/test_hostile_handshake.py",
            "netns/test_names.py",
            "netns/test_outgoing_proxy.py",
            "netns/test_outside_ipv6.py",
            "netns/test_refusals.py",
            "netns/test_roaming.py::test_a_hundred_flaps_of_docker0",
            "netns/test_roaming.py::test_changes_of_other_links_renew_nothing",
            "netns/test_roaming.py::test_changes_of_the_path_renew",
            "unit/test_descriptors.py",
            "unit/test_host_dial.py",
            "unit/test_host_listen.py",
            "unit/test_proxy.py",
            "unit/test_virtual_hosts.py",
            "unit/test_zones.py",
        ),
        OUTSIDE,
    ),
    "netns/test_lossy_path.py": ROAD,
    "netns/test_behind_proxies.py": twin_in("netns/test_outside_ipv6.py", "unit/test_http_forwarded.py"),
    "netns/test_covering.py::test_a_push_that_covers_the_server": twin_in("netns/test_dual_outside.py"),
    "netns/test_covering.py::test_the_outgoing_proxy_s_address_is_what_counts": twin_in(
        "netns/test_outside_ipv6.py", "unit/test_transport_guard.py"
    ),
    "netns/test_covering.py::test_what_a_killed_run_leaves_is_removed_before_the_first_connection": twin_in(
        "netns/test_dual_outside.py"
    ),
    "netns/test_examples.py": twin_in("netns/test_examples.py"),
    "netns/test_host_changes.py": twin_in("netns/test_host_ipv6.py", "netns/test_outside_ipv6.py"),
    "netns/test_host_netlink.py": twin_in("netns/test_host_ipv6.py"),
    "netns/test_host_tun.py": twin_in("netns/test_packets_6.py"),
    "netns/test_lifecycle.py": twin_in("netns/test_dual.py"),
    "netns/test_merge_tcp.py": twin_in("netns/test_packets_6.py"),
    "netns/test_packets.py": twin_in("netns/test_packets_6.py"),
    "netns/test_proxies.py": twin_in("netns/test_outside_ipv6.py"),
    "netns/test_repair.py": twin_in("netns/test_repair.py"),
    "netns/test_roaming.py::test_two_clients_of_one_server_on_one_machine": twin_in("unit/test_left_out.py"),
    "netns/test_routing.py": twin_in("netns/test_dual.py"),
    "unit/test_blocks.py": twin_in("unit/test_blocks.py"),
    "unit/test_budget.py": twin_in("unit/test_budget_ipv6.py"),
    "unit/test_client_address.py": twin_in("unit/test_http_forwarded.py", "unit/test_wire_proxyprotocol.py"),
    "unit/test_config_errors.py": twin_in("unit/test_config_families.py"),
    "unit/test_config_load.py": twin_in("unit/test_config_families.py"),
    "unit/test_doctor.py": twin_in("unit/test_doctor.py"),
    "unit/test_hostile_bounds.py": twin_in("unit/test_ipv6_tunnel.py"),
    "unit/test_hostile_properties.py": twin_in("unit/test_wire_control.py"),
    "unit/test_hostile_server.py": twin_in("unit/test_ipv6_tunnel.py"),
    "unit/test_martians.py": twin_in("unit/test_martians.py"),
    "unit/test_netlink_codec.py": twin_in("unit/test_netlink_codec.py"),
    "unit/test_path_table.py": twin_in("unit/test_path_table.py", "netns/test_outside_ipv6.py"),
    "unit/test_pump.py": twin_in("unit/test_pump.py", "unit/test_plane_differential.py"),
    "unit/test_reload.py": twin_in("unit/test_ipv6_tunnel.py", "netns/test_installed.py", "netns/test_reload.py"),
    "unit/test_repairer.py": twin_in("unit/test_repairer.py", "netns/test_repair.py"),
    "unit/test_routing_router.py": twin_in("unit/test_routing_router.py"),
    "unit/test_transport_guard.py": twin_in("netns/test_covering.py"),
    "unit/test_transport_routes.py": twin_in("netns/test_covering.py", "unit/test_transport_routes.py"),
    "unit/test_wire_vnet.py": twin_in("unit/test_wire_vnet.py"),
}


def is_special(address: IPv4Address) -> bool:
    """Loopback and "any": where a daemon of the test itself listens."""
    return address.is_loopback or address == IPv4Address(0)


def names_ipv4(text: str) -> bool:
    return any(not is_special(address) for address in _parsed(_IPV4, text, IPv4Address))


def names_ipv6(text: str) -> bool:
    return any(_parsed(_IPV6, text, IPv6Address))


def _parsed(pattern: re.Pattern[str], text: str, kind: type) -> Iterator:  # type: ignore[type-arg]
    for match in pattern.findall(text):
        try:
            yield kind(match)
        except ValueError:
            continue


class Reach:
    """What a test consists of: its own code, and all that it uses of its module, directly or not."""

    def __init__(self, module: ast.Module) -> None:
        self._parts: dict[str, ast.stmt] = {}
        self._only_ipv4: set[str] = set()
        for part in module.body:
            match part:
                case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                    self._parts[part.name] = part
                    if any(isinstance(it, ast.Name) and it.id == "only_ipv4" for it in part.decorator_list):
                        self._only_ipv4.add(part.name)
                case ast.Assign(targets=targets):
                    self._parts |= {
                        each.id: part for it in targets for each in ast.walk(it) if isinstance(each, ast.Name)
                    }
                case ast.AnnAssign(target=ast.Name(id=name)):
                    self._parts[name] = part
        self.tests = [
            name
            for name, part in self._parts.items()
            if name.startswith("test_") and isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
        ]

        self._looked: dict[str, tuple[set[int], set[str]]] = {}

    def families(self, test: str) -> set[int]:
        """The families that it names."""
        found, seen, left = set[int](), {test}, [test]
        while left:
            families, used = self._look(left.pop())
            found |= families
            left += used - seen
            seen |= used
        return {4} if test in self._only_ipv4 else found

    def _look(self, name: str) -> tuple[set[int], set[str]]:
        """The families that one part of the module names, and the parts that it uses."""
        if name not in self._looked:
            nodes = list(ast.walk(self._parts[name]))
            names = {node.id for node in nodes if isinstance(node, ast.Name)}
            names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
            names |= {node.arg for node in nodes if isinstance(node, ast.arg)}
            texts = [str(node.value) for node in nodes if isinstance(node, ast.Constant)]
            families = {4} if any(map(names_ipv4, texts)) else set[int]()
            if names & _NAMES or any(map(names_ipv6, texts)):
                families.add(6)
            self._looked[name] = families, names & self._parts.keys()
        return self._looked[name]


@cache
def ipv4_only() -> dict[str, list[str]]:
    """File, as from ``tests``: its tests that name IPv4 addresses and none of IPv6."""
    found = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        text = path.read_text(encoding="utf-8")
        if not names_ipv4(text):
            continue
        reach = Reach(ast.parse(text))
        if tests := [test for test in reach.tests if reach.families(test) == {4}]:
            found[str(path.relative_to(TESTS))] = tests
    return found


def reason_of(file: str, test: str) -> str | None:
    """Under which key the reason of a test is; None: there is none."""
    return next((key for key in (f"{file}::{test}", file) if key in REASONS), None)


def test_each_test_of_ipv4_has_its_twin_or_a_reason() -> None:
    missing = [f"{file}::{test}" for file, tests in ipv4_only().items() for test in tests if not reason_of(file, test)]
    assert not missing, "write them for both families (tests/twins.py), or add a true reason to REASONS"


def test_no_reason_is_left_over() -> None:
    needed = {reason_of(file, test) for file, tests in ipv4_only().items() for test in tests}
    assert set(REASONS) <= needed, "these have their twins now"


def test_where_the_twin_is_said_to_be_there_is_one() -> None:
    for files in {reason for reason in REASONS.values() if isinstance(reason, Twins)}:
        for file in files:
            reach = Reach(ast.parse((TESTS / file).read_bytes()))
            assert any(6 in reach.families(test) for test in reach.tests), file


@table(
    "code found",
    ("nothing", "def test_it(): pass", set()),
    ("IPv4", "def test_it(): f('http://10.0.0.1:8080/')", {4}),
    ("in a decorator", "@parametrize('ip', ['10.0.0.1/24'])\ndef test_it(ip): pass", {4}),
    (
        "loopback, any, a version, a part of a number",
        "def test_it(): f('127.0.0.1', '0.0.0.0', '1.2.3', '1.2.3.4.5')",
        set(),
    ),
    ("IPv6", "def test_it(): f('[2001:db8::1]:80')", {6}),
    ("a time, a C++ name, a slice", "def test_it(): f('12:30:00', 'std::move', x[1::2])", set()),
    ("by a constant", "ME = '10.0.0.1'\nYOU = ME\ndef test_it(): f(YOU)", {4}),
    ("by a function", "def f(): return g()\ndef g(): return '10.0.0.1'\ndef test_it(): f()", {4}),
    ("by what is not used", "ME = '10.0.0.1'\ndef test_it(): pass", set()),
    (
        "one of both",
        "only_ipv4 = parametrize('world', [4])\ndef world(): twin('10.0.0.1')\n@only_ipv4\ndef test_it(world): pass",
        {4},
    ),
    ("both, by their names", "@both_families\ndef test_it(family): f(family('10.0.0.1'))", {4, 6}),
)
def test_what_a_test_names(code: str, found: set[int]) -> None:
    reach = Reach(ast.parse(code))
    assert reach.tests == ["test_it"]
    assert reach.families("test_it") == found
