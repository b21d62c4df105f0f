"""One test of `host` for both families: it is written with IPv4 addresses, and its twin has those of `tests.twins`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface, ip_network
from typing import Final

import pytest

from tapotun_trio.families import IPAddress, IPNetwork
from tapotun_trio.host.items import MAIN_METRICS, MAIN_TABLE, Address, Item, Route, Rule
from tapotun_trio.host.netlink.codec import PROTOCOL

from ..twins import twin
from .fresh_namespace import Json, ip


@dataclass(frozen=True)
class Family:
    """Translates IPv4 in the words of a test, asks `ip` about one family, and makes its items."""

    version: int

    def __call__(self, text: str) -> str:
        return twin(text, self.version)

    def all(self, *texts: str) -> list[str]:
        return [self(text) for text in texts]

    def ip(self, *words: str) -> Json:
        """Run ``ip -4`` or ``ip -6`` with these words, translated."""
        return ip(f"-{self.version}", *map(self, words))

    def host(self, text: str) -> IPAddress:
        return ip_address(self(text))

    def network(self, text: str) -> IPNetwork:
        return ip_network(self(text))

    # -- items

    def address(self, text: str) -> Address:
        return Address(ip_interface(self(text)))

    def route(self, network: str, table: int = MAIN_TABLE) -> Route:
        return Route(self.network(network), table)

    def rule(self, fwmark: int, table: int) -> Rule:
        return Rule(fwmark, table, version=self.version)

    def marked(self, fwmark: int = 100, table: int = 100) -> list[Item]:
        """What an interface with ``mark`` wants."""
        return [self.route("0.0.0.0/0", table), self.rule(fwmark, table)]

    # -- what is there, as `ip` has it

    def addresses(self, name: str = "tun0") -> list[str]:
        found = self.ip("addr", "show", "dev", name)
        return [f"{info['local']}/{info['prefixlen']}" for link in found for info in link["addr_info"]]

    def routes(self, table: str = "main") -> list[Json]:
        """Those of ours. A table that does not exist is one with no routes."""
        found: Sequence[Json] = self.ip("route", "show", "table", "all", "proto", str(PROTOCOL))
        return [route for route in found if route.get("table", "main") == table]

    def rules(self) -> list[Json]:
        return [rule for rule in self.ip("rule", "show") if rule["priority"] not in (0, 32766, 32767)]

    @property
    def main_metric(self) -> int:
        return MAIN_METRICS[self.version]


BOTH: Final = pytest.mark.parametrize("family", [Family(4), Family(6)], ids=["IPv4", "IPv6"])
