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
import sys
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
_META_KEY: Final = 2  # enum nft_meta_attributes
_META_PROTOCOL, _META_IIF, _META_IIFNAME, _META_NFPROTO = 1, 4, 6, 15  # enum nft_meta_keys
_ETH_P_IPV6: Final = b"\x86\xdd"  # linux/if_ether.h
_NFPROTO_IPV6: Final = b"\x0a"
_NAME_OPERAND_BYTES: Final = 16  # IFNAMSIZ
_CMP_OPERATOR, _CMP_DATA = 2, 3  # enum nft_cmp_attributes
_EQUAL, _NOT_EQUAL = 0, 1  # enum nft_cmp_ops
_DATA_VALUE, _DATA_VERDICT = 1, 2  # enum nft_data_attributes
_IMMEDIATE_DATA: Final = 2  # enum nft_immediate_attributes
_LOOKUP_RESULT: Final = 3  # NFTA_LOOKUP_DREG: a map
_TARGET_NAME: Final = 1  # enum nft_target_attributes
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
        named: the interfaces, of those asked about, whose packets it may pass on: its rules are for those of others, or
            a rule of the table decides about theirs.
    """

    table: str
    chain: str
    named: frozenset[str] = frozenset()


def strict_ipv6_filters(interfaces: Iterable[str]) -> tuple[ReversePathFilter, ...]:
    """Return the strict reverse path filters for IPv6 in nftables, which iptables-nft uses too. Those that concern none
    of the ``interfaces`` are left out. Empty if they cannot be read."""
    names = frozenset(interfaces)
    try:
        with _open_nftables() as sock:
            tables = _by_table(_dump(sock, _GET_RULE, _NEW_RULE))
    except (OSError, struct.error):
        return ()
    found: list[ReversePathFilter] = []
    for (family, table), rules in tables.items():
        if 6 not in _VERSIONS.get(family, ()):
            continue
        decided: set[str] = set()
        concerned: dict[str, set[str]] = {}  # by each chain that has such a rule
        for chain, expressions in rules:
            if _has_strict(expressions):
                concerned.setdefault(chain, set()).update(name for name in names if _concerns(name, expressions))
            elif (named := _named(names, [expressions])) and _has_verdict(expressions):
                decided |= named
        table = f"{_FAMILIES[family]} {table}"
        found += [ReversePathFilter(table, chain, names - of | decided) for chain, of in concerned.items() if of]
    return tuple(found)


def _has_strict(expressions: bytes) -> bool:
    """Whether a rule asks for the way back, and decides about the packet."""
    if b"fib\0" not in expressions and b"rpfilter\0" not in expressions:  # as nearly all of many thousands
        return False
    for name, data in _expressions(expressions):
        if name == "fib":
            result, flags = (int.from_bytes(data.get(key, b""), "big") for key in (_FIB_RESULT, _FIB_FLAGS))
            if result in _FIB_OUTPUT and flags & _FIB_STRICT == _FIB_STRICT:
                return _has_verdict(expressions)
        if name == "match" and _text(data.get(_MATCH_NAME)) == "rpfilter":
            is_loose = int.from_bytes(data.get(_MATCH_INFO, b"")[:1], "little") & _RPFILTER_LOOSE
            return not is_loose and _has_verdict(expressions)
    return False


def _has_verdict(expressions: bytes) -> bool:
    for name, data in _expressions(expressions):
        if name == "reject" or (name == "target" and _text(data.get(_TARGET_NAME)) == "REJECT"):
            return True
        if name == "immediate" and _DATA_VERDICT in _attributes(data.get(_IMMEDIATE_DATA, b"")):
            return True
        if name == "lookup" and int.from_bytes(data.get(_LOOKUP_RESULT, b"\1"), "big") == 0:  # a map of verdicts
            return True
    return False


def _concerns(interface: str, expressions: bytes) -> bool:
    """Whether a rule may apply to IPv6 packets from this interface. Only comparisons with one value are understood."""
    key = None  # what the expression before has read
    for name, data in _expressions(expressions):
        if name == "cmp" and key in (_META_PROTOCOL, _META_NFPROTO, _META_IIF, _META_IIFNAME):
            value = _attributes(data.get(_CMP_DATA, b"")).get(_DATA_VALUE, b"")
            is_equal = _is_of_ipv6(interface, key, value)
            if int.from_bytes(data.get(_CMP_OPERATOR, b""), "big") != (_EQUAL if is_equal else _NOT_EQUAL):
                return False
        key = int.from_bytes(data.get(_META_KEY, b""), "big") if name == "meta" else None
    return True


def _is_of_ipv6(interface: str, key: int, value: bytes) -> bool:
    """Whether IPv6 packets from this interface have that value."""
    if key == _META_PROTOCOL:
        return value == _ETH_P_IPV6
    if key == _META_NFPROTO:
        return value == _NFPROTO_IPV6
    if key == _META_IIF:
        try:
            return int.from_bytes(value, sys.byteorder) == socket.if_nametoindex(interface)
        except OSError:  # there is no such interface now
            return False
    return os.fsencode(interface).ljust(_NAME_OPERAND_BYTES, b"\0").startswith(value)  # a shorter one: eth*


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
        tables = _by_table(_dump(sock, _GET_RULE, _NEW_RULE))
    names = frozenset(interfaces)
    named = {key: _named(names, (expressions for _, expressions in rules)) for key, rules in tables.items()}
    for family, table, name in chains:
        text = f"chain {name} of the nftables table {_FAMILIES[family]} {table}"
        by_iptables = (table, name) == ("filter", "FORWARD") and len(_VERSIONS[family]) == 1  # iptables-nft
        nft = "" if by_iptables else f"{_FAMILIES[family]} {table} {name}"
        yield ForwardChain(text, named.get((family, table), frozenset()), _VERSIONS[family], nft)


def _by_table(messages: Iterable[bytes]) -> dict[tuple[int, str], list[tuple[str, bytes]]]:
    """The rules of each table: the chain and the expressions of each. A machine may have 100,000."""
    tables: dict[tuple[int, str], list[tuple[str, bytes]]] = {}
    for message in messages:
        family, rule = _parse(message)
        place = tables.setdefault((family, _text(rule.get(_RULE_TABLE))), [])
        place.append((_text(rule.get(_RULE_CHAIN)), rule.get(_RULE_EXPRESSIONS, b"")))
    return tables


def _named(interfaces: Iterable[str], rules: Iterable[bytes]) -> frozenset[str]:
    """Those of the interfaces that one of the rules, by its expressions, names."""
    return frozenset(name for rule in rules for name in interfaces if _is_named(name, rule))


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


def _expressions(data: bytes) -> Iterator[tuple[str, dict[int, bytes]]]:
    """The name and the attributes of each expression of a rule."""
    for _, expression in _each(data):
        parts = _attributes(expression)
        yield _text(parts.get(_NAME)), _attributes(parts.get(_DATA, b""))


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
