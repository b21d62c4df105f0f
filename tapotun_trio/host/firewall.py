"""Finds the firewalls of this machine that drop forwarded packets unless a rule accepts them, and those that filter
IPv6 by the reverse path. Blocking; read-only.

Asks the kernel directly, so neither nft nor iptables has to be installed. nftables, which iptables-nft uses too, is
read over nfnetlink (linux/netfilter/nf_tables.h). iptables-legacy and ip6tables-legacy are read with a socket option
(linux/netfilter_ipv4/ip_tables.h, linux/netfilter_ipv6/ip6_tables.h).
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Final

_NETLINK_NETFILTER: Final = 12  # linux/netlink.h
_NLM_F_REQUEST: Final = 0x1
_NLM_F_DUMP: Final = 0x300
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")  # struct nlmsghdr
_GENERIC: Final = struct.Struct("=BBH")  # struct nfgenmsg: family, version, resource id
_ATTRIBUTE: Final = struct.Struct("=HH")  # struct nlattr: length, type
_TYPE_MASK: Final = 0x3FFF
_NFTABLES: Final = 10 << 8  # NFNL_SUBSYS_NFTABLES
_NEW_CHAIN, _GET_CHAIN, _NEW_RULE, _GET_RULE = 3, 4, 6, 7  # enum nf_tables_msg_types
_CHAIN_TABLE, _CHAIN_NAME, _CHAIN_HOOK, _CHAIN_POLICY = 1, 3, 4, 5  # enum nft_chain_attributes
_HOOK_NUMBER: Final = 1  # enum nft_hook_attributes
_RULE_TABLE, _RULE_CHAIN, _RULE_EXPRESSIONS = 1, 2, 4  # enum nft_rule_attributes
_NAME, _DATA = 1, 2  # enum nft_expr_attributes
_FIB_RESULT, _FIB_FLAGS = 2, 3  # enum nft_fib_attributes
_FIB_OUTPUT: Final = frozenset({1, 2})  # NFT_FIB_RESULT_OIF, NFT_FIB_RESULT_OIFNAME
_FIB_STRICT: Final = 1 | 8  # NFTA_FIB_F_SADDR, NFTA_FIB_F_IIF: the way back is through the interface that it came from
_MATCH_NAME, _MATCH_INFO = 1, 3  # enum nft_match_attributes
_RPFILTER_LOOSE: Final = 1  # XT_RPFILTER_LOOSE, linux/netfilter/xt_rpfilter.h
_FORWARD: Final = 2  # NF_INET_FORWARD
_DROP: Final = 0  # NF_DROP
_FAMILIES: Final = {1: "inet", 2: "ip", 10: "ip6"}  # NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6
_VERSIONS: Final = {1: frozenset({4, 6}), 2: frozenset({4}), 10: frozenset({6})}
_RECEIVE_BYTES: Final = 64 * 1024
_TIMEOUT_S: Final = 3.0

_IPT_SO_GET_INFO: Final = 64  # the same numbers and layouts for IPv6, but for the offset
_IPT_SO_GET_ENTRIES: Final = 65
_NAME_BYTES: Final = 32  # XT_TABLE_MAXNAMELEN
_INFO: Final = struct.Struct("=32sI5I5III")  # struct ipt_getinfo: name, hooks, entries, underflows, number, size
_ENTRIES: Final = struct.Struct("=32sI4x")  # struct ipt_get_entries: name, size
_TARGET_BYTES: Final = 32  # struct xt_entry_target; the verdict of a standard target follows


@dataclass(frozen=True, slots=True)
class _Legacy:
    """Where the tables of one IP version are read.

    Attributes:
        names: the file with the names of the tables in use.
        target: the offset of target_offset in struct ipt_entry or ip6t_entry.
    """

    version: int
    names: str
    family: int
    level: int
    target: int
    program: str


_LEGACY: Final = (
    _Legacy(4, "/proc/thread-self/net/ip_tables_names", socket.AF_INET, socket.IPPROTO_IP, 88, "iptables"),
    _Legacy(6, "/proc/thread-self/net/ip6_tables_names", socket.AF_INET6, socket.IPPROTO_IPV6, 140, "ip6tables"),
)


@dataclass(frozen=True, slots=True)
class ForwardChain:
    """A chain at the forward hook whose policy is to drop.

    Attributes:
        name: the table and the chain, as text for people.
        named: the interfaces, of those asked about, that appear by name in a rule of the table.
        versions: the IP versions of the packets that it drops.
        nft: the chain as for ``nft``: ``inet filter forward``. Empty: it is one of iptables or ip6tables.
    """

    name: str
    named: frozenset[str] = frozenset()
    versions: frozenset[int] = frozenset({4})
    nft: str = ""

    def accepting(self, interface: str) -> tuple[str, str]:
        """The commands that let packets from this interface pass, and those to it."""
        if self.nft:
            return (
                f"nft insert rule {self.nft} iifname {interface} accept",
                f"nft insert rule {self.nft} oifname {interface} accept",
            )
        program = "iptables" if 4 in self.versions else "ip6tables"
        return f"{program} -I FORWARD -i {interface} -j ACCEPT", f"{program} -I FORWARD -o {interface} -j ACCEPT"


@dataclass(frozen=True, slots=True)
class ReversePathFilter:
    """A chain with a rule that asks whether the way back to the source of an IPv6 packet leads through the interface
    that it came from. firewalld has one by default, and NixOS; the kernel itself has none for IPv6.

    Attributes:
        table, chain: as for ``nft``: ``inet firewalld``, ``filter_PREROUTING``.
        named: the interfaces, of those asked about, that appear by name in a rule of the table.
    """

    table: str
    chain: str
    named: frozenset[str] = frozenset()


def strict_ipv6_filters(interfaces: Iterable[str]) -> tuple[ReversePathFilter, ...]:
    """Return the strict reverse path filters for IPv6 in nftables, which iptables-nft uses too. Empty if they cannot be
    read. ``interfaces``: the names to look for in the rules."""
    try:
        with _open_nftables() as sock:
            rules = _dump(sock, _GET_RULE, _NEW_RULE)
    except (OSError, struct.error):
        return ()
    found: dict[tuple[int, str, str], None] = {}
    for message in rules:
        family, rule = _parse(message)
        if family in _VERSIONS and 6 in _VERSIONS[family] and _is_strict(rule.get(_RULE_EXPRESSIONS, b"")):
            found[family, _text(rule.get(_RULE_TABLE)), _text(rule.get(_RULE_CHAIN))] = None
    return tuple(
        ReversePathFilter(f"{_FAMILIES[family]} {table}", chain, _named(interfaces, rules, family, table))
        for family, table, chain in found
    )


def _is_strict(expressions: bytes) -> bool:
    for _, expression in _each(expressions):
        parts = _attributes(expression)
        name, data = _text(parts.get(_NAME)), _attributes(parts.get(_DATA, b""))
        if name == "fib":
            result, flags = (int.from_bytes(data.get(key, b""), "big") for key in (_FIB_RESULT, _FIB_FLAGS))
            if result in _FIB_OUTPUT and flags & _FIB_STRICT == _FIB_STRICT:
                return True
        if name == "match" and _text(data.get(_MATCH_NAME)) == "rpfilter":
            return not int.from_bytes(data.get(_MATCH_INFO, b"")[:1], "little") & _RPFILTER_LOOSE
    return False


def dropping_forward_chains(interfaces: Iterable[str]) -> tuple[ForwardChain, ...]:
    """Return the chains whose policy drops every packet that no rule accepts. Tables that cannot be read are left out.

    ``interfaces``: the names to look for in the rules.
    """
    names = tuple(interfaces)
    found: list[ForwardChain] = []
    reads: list[Callable[[Iterable[str]], Iterator[ForwardChain]]] = [_nftables]
    reads += (partial(_legacy, legacy) for legacy in _LEGACY)
    for read in reads:
        try:
            found += read(names)
        except (OSError, struct.error):  # no such kernel module, no permission
            continue
    return tuple(found)


# -- nftables


def _open_nftables() -> socket.socket:
    """Raises OSError."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
    try:
        sock.settimeout(_TIMEOUT_S)
        sock.bind((0, 0))
    except OSError:
        sock.close()
        raise
    return sock


def _nftables(interfaces: Iterable[str]) -> Iterator[ForwardChain]:
    with _open_nftables() as sock:
        chains = [chain for message in _dump(sock, _GET_CHAIN, _NEW_CHAIN) if (chain := _drops(message)) is not None]
        if not chains:
            return
        rules = _dump(sock, _GET_RULE, _NEW_RULE)
    for family, table, name in chains:
        text = f"chain {name} of the nftables table {_FAMILIES[family]} {table}"
        by_iptables = (table, name) == ("filter", "FORWARD") and len(_VERSIONS[family]) == 1  # iptables-nft
        nft = "" if by_iptables else f"{_FAMILIES[family]} {table} {name}"
        yield ForwardChain(text, _named(interfaces, rules, family, table), _VERSIONS[family], nft)


def _named(interfaces: Iterable[str], rules: Iterable[bytes], family: int, table: str) -> frozenset[str]:
    """Those of the interfaces that a rule of the table names."""
    parsed = ((message, *_parse(message)) for message in rules)
    own = [message for message, of, found in parsed if (of, _text(found.get(_RULE_TABLE))) == (family, table)]
    return frozenset(name for name in interfaces if any(_is_named(name, rule) for rule in own))


def _dump(sock: socket.socket, request: int, answer: int) -> list[bytes]:
    """The payloads of all answers. Raises OSError."""
    payload = _GENERIC.pack(0, 0, 0)
    sock.send(
        _HEADER.pack(_HEADER.size + len(payload), _NFTABLES | request, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0) + payload
    )
    found: list[bytes] = []
    while True:
        datagram = sock.recv(_RECEIVE_BYTES)
        offset = 0
        while offset + _HEADER.size <= len(datagram):
            length, kind, _, _, _ = _HEADER.unpack_from(datagram, offset)
            if kind == _NLMSG_DONE:
                return found
            if kind == _NLMSG_ERROR or length < _HEADER.size:
                raise OSError("nfnetlink refuses")
            if kind == _NFTABLES | answer:
                found.append(datagram[offset + _HEADER.size : offset + length])
            offset += length + 3 & ~3


def _drops(message: bytes) -> tuple[int, str, str] | None:
    """Family, table and name of a chain; None unless it is at the forward hook and its policy is to drop."""
    family, found = _parse(message)
    hook = _attributes(found.get(_CHAIN_HOOK, b"")).get(_HOOK_NUMBER)
    if family not in _FAMILIES or hook is None or int.from_bytes(hook, "big") != _FORWARD:
        return None
    if int.from_bytes(found.get(_CHAIN_POLICY, b"\1"), "big") != _DROP:
        return None
    return family, _text(found.get(_CHAIN_TABLE)), _text(found.get(_CHAIN_NAME))


def _parse(message: bytes) -> tuple[int, dict[int, bytes]]:
    return message[0], _attributes(message[_GENERIC.size :])


def _attributes(data: bytes) -> dict[int, bytes]:
    return dict(_each(data))


def _each(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            break
        yield kind & _TYPE_MASK, data[offset + _ATTRIBUTE.size : offset + length]
        offset += length + 3 & ~3


def _text(data: bytes | None) -> str:
    return (data or b"").rstrip(b"\0").decode(errors="replace")


def _is_named(interface: str, rule: bytes) -> bool:
    """Whether a rule compares something with this name. The operand is up to 16 bytes long, padded with zeros."""
    return interface.encode(errors="surrogateescape") + b"\0" in rule


# -- iptables-legacy


def _legacy(legacy: _Legacy, interfaces: Iterable[str]) -> Iterator[ForwardChain]:
    with open(legacy.names, encoding="ascii", errors="replace") as file:
        if "filter" not in file.read().split():
            return  # asking would create the table
    with socket.socket(legacy.family, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.IPPROTO_RAW) as sock:
        table = b"filter".ljust(_NAME_BYTES, b"\0")
        info = _get(sock, legacy.level, _IPT_SO_GET_INFO, table.ljust(_INFO.size, b"\0"))
        fields = _INFO.unpack(info)
        underflow, size = fields[7 + _FORWARD], fields[-1]
        answer = _get(sock, legacy.level, _IPT_SO_GET_ENTRIES, _ENTRIES.pack(table, size) + bytes(size))
    entries = answer[_ENTRIES.size :]
    (target,) = struct.unpack_from("=H", entries, underflow + legacy.target)
    (verdict,) = struct.unpack_from("=i", entries, underflow + target + _TARGET_BYTES)
    if verdict == -_DROP - 1:
        named = frozenset(interface for interface in interfaces if _is_named(interface, entries))
        yield ForwardChain(f"chain FORWARD of {legacy.program}-legacy", named, frozenset({legacy.version}))


def _get(sock: socket.socket, level: int, option: int, request: bytes) -> bytes:
    """Call getsockopt(2) with a request in the buffer. Python's `socket.getsockopt` cannot pass one. Raises OSError."""
    buffer = ctypes.create_string_buffer(request, len(request))
    length = ctypes.c_uint32(len(request))  # socklen_t
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.getsockopt(sock.fileno(), level, option, buffer, ctypes.byref(length)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return buffer.raw[: length.value]
