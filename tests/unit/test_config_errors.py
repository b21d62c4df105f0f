"""Every error of a config file, as the whole line that the operator reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

import pytest

from tapotun_trio.config.load import check_content

from ..twins import as_ipv6
from .test_config_load import Json, allowed, client, load_entries, server, sha1

B: Final = sha1("b")


def two(**changes: Any) -> Json:
    """A server whose second client has these changes."""
    return server(clients=[allowed(), allowed(**{"token": B, "ip": "10.10.0.3", **changes})])


def other(**changes: Any) -> Json:
    """A second server that gets along with the first."""
    return server(**{"name": "b", "port": 81, "net": "10.11.0.1/24", "clients": [allowed(ip="10.11.0.2")], **changes})


def mark(value: object, table: object, mask: object = ...) -> Json:
    return {"mark": {"value": value, "table": table, **({} if mask is ... else {"mask": mask})}}


FIELDS: Final = (  # of a server
    "name, mark, port, listen, listen_mode, path, trusted_proxies, proxy_protocol, device, net, mtu, ips, routes, "
    "push_routes, push_dns, clients, install_routes, source_check, peers, keepalive, bridge, mac, macs, isolate, "
    "arp_guard, bpdu, storm_limit"
)

# The entries of one file, and the line of its one finding.
UNSEEN: Final = "has characters that look blank or draw over their neighbours; choose a name that can be read in a list"

# Where a text of IPv4 has no twin below, `test_config_families` has one, unless IPv6 has no such thing (broadcast).
ONE_FINDING: Final[list[tuple[Sequence[object], str]]] = [
    # --- shape ---
    ([], "[] has nothing to run; write at least one interface definition"),
    ([5], '[0]: 5 is a number, not an object; write {"name": "tun0", ...}'),
    (["s3cret"], '[0]: *** is text, not an object; write {"name": "tun0", ...}'),
    ([server(), None], '[1]: null is not an object; write {"name": "tun0", ...}'),
    ([[]], '[0]: [] is a list, not an object; write {"name": "tun0", ...}'),
    (
        [{"name": "tun0"}],
        '[0]: is neither a server nor a client; add "port" and "net" to make it a server, '
        'or "server" to make it a client',
    ),
    (
        [server(server="http://h/")],
        '[0]: has fields of a server ("port", "net") and of a client ("server"); split it into two definitions',
    ),
    # --- unknown and missing fields ---
    ([server(mtuu=1400)], '[0].mtuu: "mtuu" is an unknown field in a server; did you mean "mtu"?'),
    ([server(Name="x")], '[0].Name: "Name" is an unknown field in a server; did you mean "name"?'),
    ([server(installRoutes=1)], '[0].installRoutes: "installRoutes" is an unknown field in a server; did you mean '
     '"install_routes"?'),
    ([client(rotates=[1, 2])], '[0].rotates: "rotates" is an unknown field in a client; did you mean "rotate_s"?'),
    ([server(transport_mark=1)], '[0].transport_mark: "transport_mark" is an unknown field in a server; '
     "it belongs in a client"),
    ([client(keepalive=5)], '[0].keepalive: "keepalive" is an unknown field in a client; it belongs in a server'),
    ([server(xyzzy=1)], f'[0].xyzzy: "xyzzy" is an unknown field in a server; remove it; the fields are {FIELDS}'),
    ([server(token=B)], '[0].token: "token" is an unknown field in a server; it belongs in a client or an entry of '
     '"clients"'),
    ([server(ip="10.10.0.3")], '[0].ip: "ip" is an unknown field in a server; it belongs in an entry of "clients", '
     'or did you mean "ips"?'),
    ([client(mtu=1400)], '[0].mtu: "mtu" is an unknown field in a client; it belongs in a server'),
    ([two(route=[])], '[0].clients[1].route: "route" is an unknown field in an entry of "clients"; '
     'did you mean "routes"?'),
    ([server(mark={"value": 1, "table": 100, "tables": 1})], '[0].mark.tables: "tables" is an unknown field in '
     '"mark"; did you mean "table"?'),
    ([client(server="https://h/", tls={"cafile": "x"})], '[0].tls.cafile: "cafile" is an unknown field in "tls"; '
     'did you mean "ca_file"?'),
    ([server(**{"a\nb": 1})], f'[0]["a\\nb"]: "a\\nb" is an unknown field in a server; remove it; the fields are '
     f"{FIELDS}"),
    ([server(**{"": 1})], f'[0][""]: "" is an unknown field in a server; remove it; the fields are {FIELDS}'),
    ([server(**{"[x]": 1})], f'[0]["[x]"]: "[x]" is an unknown field in a server; remove it; the fields are {FIELDS}'),
    ([server(name=...)], '[0].name: is missing; add "name": "tun0"'),
    ([server(port=...)], '[0].port: is missing; add "port": 8080, or let "listen" name Unix sockets only'),
    ([server(port=..., listen=["unix:/a", "::1"])], '[0].port: is missing; add "port": 8080, or let "listen" name '
     "Unix sockets only"),
    ([server(net=...)], '[0].net: is missing; add "net": "10.10.0.1/24"'),
    ([two(ip=...)], '[0].clients[1].ip: is missing; add "ip": "10.10.0.2"'),
    ([two(token=...)], '[0].clients[1].token: is missing; add "token": "<hash of the raw token>"'),
    ([server(mark={"value": 1})], '[0].mark.table: is missing; add "table": 100'),
    ([server(mark={"table": 100})], '[0].mark.value: is missing; add "value": 100'),
    ([client(token=...)], '[0].token: is missing; add "token": "<raw token>", or "token_file" with the path of a file'),
    ([client(token_file="/dev/null")], '[0].token_file: is given in addition to "token"; remove one'),
    # --- types ---
    ([server(port="8080")], '[0].port: "8080" is text, not a number; write a whole number from 1 to 65535, without '
     "quotes"),
    ([server(port="http")], '[0].port: "http" is text, not a number; write a whole number from 1 to 65535'),
    ([server(port=True)], "[0].port: true is not a number; write a whole number from 1 to 65535"),
    ([server(port=None)], "[0].port: null is not a number; write a whole number from 1 to 65535"),
    ([server(port=[8080])], "[0].port: [...] is a list, not a number; write a whole number from 1 to 65535"),
    ([server(port=8080.0)], "[0].port: 8080.0 is not a whole number; write a whole number from 1 to 65535"),
    ([server(port=float("inf"))], "[0].port: Infinity is not a whole number; write a whole number from 1 to 65535"),
    ([server(port=float("nan"))], "[0].port: NaN is not a whole number; write a whole number from 1 to 65535"),
    ([server(name=5)], '[0].name: 5 is a number, not text; write "tun0"'),
    ([server(net=[])], '[0].net: [] has 0 elements; write "10.10.0.1/24"'),
    ([server(net=["10.10.0.1/24", "fd00::1/64", "fd01::1/64"])], "[0].net: [...] has 3 elements; write at most 2"),
    ([server(net=["10.10.0.1/24", 5])], '[0].net[1]: 5 is a number, not text; write "10.10.0.1/24"'),
    ([two(ip=[])], '[0].clients[1].ip: [] has 0 elements; write "10.10.0.2"'),
    ([two(ip=["10.10.0.3", ["fd00::3"]])], '[0].clients[1].ip[1]: [...] is a list, not text; write "10.10.0.2"'),
    ([server(net=10.1)], '[0].net: 10.1 is a number, not text; write "10.10.0.1/24"'),
    ([server(ips="10.10.0.9")], '[0].ips: "10.10.0.9" is text, not a list; write ["10.10.0.2"]'),
    ([server(ips=[9])], '[0].ips[0]: 9 is a number, not text; write "10.10.0.2"'),
    ([server(clients={})], '[0].clients: {} is an object, not a list; write [{"token": "<hash of the raw token>", '
     "...}]"),
    ([server(clients=["s3cret"])], '[0].clients[0]: *** is text, not an object; write {"token": "<hash of the raw '
     'token>", ...}'),
    ([two(token=5)], '[0].clients[1].token: *** is a number, not text; write "<hash of the raw token>"'),
    ([client(token=["s3cret"])], '[0].token: *** is a list, not text; write "<raw token>"'),
    ([client(token=None)], '[0].token: *** is not text; write "<raw token>"'),
    ([client(mark=100)], '[0].mark: 100 is a number, not an object; write {"value": 100, "table": 100, ...}'),
    ([client(tls=True)], '[0].tls: true is not an object; write {"ca_file": "/etc/ssl/corp.pem", '
     '"cert_file": "/etc/tapotun/client.pem", "key_file": "/etc/tapotun/client.key", "server_name": "vpn.example.com", '
     '"min_version": "1.2", "insecure": false}'),
    ([client(server="https://h/", tls={"key_file": "/dev/null"})], '[0].tls.key_file: "/dev/null" is given without '
     '"cert_file"; add "cert_file"'),
    ([client(server="https://h/", tls={"cert_file": "/dev/null"})], '[0].tls.cert_file: "/dev/null" holds no private '
     'key in PEM; write the path of one as "key_file"'),
    ([client(server="https://h/", tls={"min_version": "1.1"})], '[0].tls.min_version: "1.1" is not one of the choices; '
     'write "1.2" or "1.3"'),
    *(([client(server="https://h/", tls={"server_name": name})], f'[0].tls.server_name: "{name}" is not a host name or '
       'address; write one such as "vpn.example.com", without a scheme or a port')
      for name in ("", "a b", "https://h/", "h:443", "10.1")),
    ([client(server="https://h/", tls={"insecure": 1})], "[0].tls.insecure: 1 is a number, not true or false; "
     "write true or false, without quotes"),
    ([server(install_routes="yes")], '[0].install_routes: "yes" is text, not true or false; write true or false, '
     "without quotes"),
    ([server(source_check="strickt")], '[0].source_check: "strickt" is not one of the choices; write "loose", "off" '
     'or "strict"'),
    ([server(source_check=1)], '[0].source_check: 1 is not one of the choices; write "loose", "off" or "strict"'),
    ([server(peers="2")], '[0].peers: "2" is text, not a number; write 1 or 2, without quotes'),
    *(
        ([server(peers=value)], f"[0].peers: {shown} is not one of the choices; write 1 or 2")
        for value, shown in ((0, "0"), (3, "3"), (True, "true"), (1.0, "1.0"), (None, "null"), ("", '""'),
                             ([1, 2], "[...]"), (10**90, f"1{'0' * 78}…"), (10**4000, f"1{'0' * 78}…"))
    ),
    ([server(keepalive="10")], '[0].keepalive: "10" is text, not a number; write a number from 1 to 50, without '
     "quotes"),
    ([server(keepalive="2.5")], '[0].keepalive: "2.5" is text, not a number; write a number from 1 to 50, without '
     "quotes"),
    ([server(keepalive="10s")], '[0].keepalive: "10s" is text, not a number; write a number from 1 to 50'),
    ([server(keepalive=True)], "[0].keepalive: true is not a number; write a number from 1 to 50"),
    ([server(keepalive=None)], "[0].keepalive: null is not a number; write a number from 1 to 50"),
    ([server(keepalive=[10])], "[0].keepalive: [...] is a list, not a number; write a number from 1 to 50"),
    ([server(keepalive=float("nan"))], "[0].keepalive: NaN is not a finite number; write a number from 1 to 50"),
    ([server(keepalive=float("-inf"))], "[0].keepalive: -Infinity is not a finite number; write a number from 1 to 50"),
    ([server(push_routes="10.60.0.0/24")], '[0].push_routes: "10.60.0.0/24" is text, not a list; '
     'write ["10.60.0.0/24"]'),
    ([server(push_routes=[10])], '[0].push_routes[0]: 10 is a number, not text; write "10.60.0.0/24"'),
    ([client(auth_header="bearer")], '[0].auth_header: "bearer" is not one of the choices; '
     'write "authorization", "both" or "x-api-key"'),
    ([client(transport="ws")], '[0].transport: "ws" is not one of the choices; write "auto", "http" or "websocket"'),
    ([client(rotate_s=600)], "[0].rotate_s: 600 is a number, not a list; write [420, 900]"),
    ([client(rotate_s={"min": 1})], "[0].rotate_s: {...} is an object, not a list; write [420, 900]"),
    ([client(rotate_s=None)], "[0].rotate_s: null is not a list; write [420, 900]"),
    ([client(rotate_s=[])], "[0].rotate_s: [] has 0 elements; write 2, such as [420, 900]"),
    ([client(rotate_s=[420])], "[0].rotate_s: [...] has 1 element; write 2, such as [420, 900]"),
    ([client(rotate_s=[900, 420, 1])], "[0].rotate_s: [...] has 3 elements; write 2, such as [420, 900]"),
    ([client(rotate_s=["420", 900])], '[0].rotate_s[0]: "420" is text, not a number; '
     "write a number from 0.1 to 86400, without quotes"),
    ([client(rotate_s=[420, True])], "[0].rotate_s[1]: true is not a number; write a number from 0.1 to 86400"),
    ([client(rotate_s=[[420, 900], 900])], "[0].rotate_s[0]: [...] is a list, not a number; "
     "write a number from 0.1 to 86400"),
    ([client(transport_mark=51.0)], "[0].transport_mark: 51.0 is not a whole number; "
     "write a whole number from 1 to 4294967295"),
    ([client(transport_mark="0x33")], '[0].transport_mark: "0x33" is text, not a number; '
     "write a whole number from 1 to 4294967295"),
    ([client(transport_mark=True)], "[0].transport_mark: true is not a number; "
     "write a whole number from 1 to 4294967295"),
    ([client(transport_mark={"value": 1, "table": 2})], "[0].transport_mark: {...} is an object, not a number; "
     "write a whole number from 1 to 4294967295"),
    ([server(listen=1)], '[0].listen: 1 is a number, not text; write "127.0.0.1"'),
    ([server(name="\ud800")], '[0].name: "\\ud800" holds half of a surrogate pair; write the character itself '
     "instead of its \\u escape"),
    ([server(port="\ud800")], '[0].port: "\\ud800" is text, not a number; write a whole number from 1 to 65535'),
    # --- ranges ---
    ([server(port=0)], "[0].port: 0 is out of range; write a whole number from 1 to 65535"),
    ([server(port=65536)], "[0].port: 65536 is out of range; write a whole number from 1 to 65535"),
    ([server(port=-1)], "[0].port: -1 is out of range; write a whole number from 1 to 65535"),
    ([server(mtu=67)], "[0].mtu: 67 is out of range; write a whole number from 68 to 65535"),
    ([server(mtu=65536)], "[0].mtu: 65536 is out of range; write a whole number from 68 to 65535"),
    ([server(mtu=10**90)], f"[0].mtu: 1{'0' * 78}… is out of range; write a whole number from 68 to 65535"),
    ([server(mtu=10**4000)], f"[0].mtu: 1{'0' * 78}… is out of range; write a whole number from 68 to 65535"),
    ([server(**mark(2**32, 100))], "[0].mark.value: 4294967296 is out of range; write a whole number from 0 to "
     "4294967295"),
    ([server(**mark(1, -1))], "[0].mark.table: -1 is out of range; write a whole number from 0 to 4294967295"),
    *(
        ([server(keepalive=value)], f"[0].keepalive: {shown} is out of range; write a number from 1 to 50")
        for value, shown in ((0, "0"), (0.999, "0.999"), (50.001, "50.001"), (51, "51"), (-10, "-10"),
                             (10**90, f"1{'0' * 78}…"), (10**400, f"1{'0' * 78}…"))
    ),
    ([server(push_routes=["10.60.0.0/24"] + [f"10.61.{n}.0/24" for n in range(255)])],
     "[0].push_routes: [...] has 256 IPv4 networks; write at most 255 of each family"),
    ([server(net=["10.10.0.1/24", "fd00::1/64"], push_routes=[f"fd01:{n:x}::/32" for n in range(256)])],
     "[0].push_routes: [...] has 256 IPv6 networks; write at most 255 of each family"),
    ([server(push_routes=[f"10.{60 + n // 256}.{n % 256}.0/24" for n in range(511)])],
     "[0].push_routes: [...] has 511 IPv4 networks; write at most 255 of each family"),
    ([server(push_dns=[f"10.10.0.{n}" for n in range(2, 11)])], "[0].push_dns: [...] has 9 elements; write at most 8"),
    ([client(rotate_s=[0.09, 900])], "[0].rotate_s[0]: 0.09 is out of range; write a number from 0.1 to 86400"),
    ([client(rotate_s=[420, 86400.5])], "[0].rotate_s[1]: 86400.5 is out of range; write a number from 0.1 to 86400"),
    ([client(rotate_s=[10**400, 900])], f"[0].rotate_s[0]: 1{'0' * 78}… is out of range; "
     "write a number from 0.1 to 86400"),
    ([client(rotate_s=[900, 420])], "[0].rotate_s[1]: 420 is less than the 900 before it; write the lesser first"),
    ([client(rotate_s=[0.3, 0.25])], "[0].rotate_s[1]: 0.25 is less than the 0.3 before it; write the lesser first"),
    *(
        ([client(transport_mark=value)], f"[0].transport_mark: {shown} is out of range; "
         "write a whole number from 1 to 4294967295")
        for value, shown in ((0, "0"), (-1, "-1"), (2**32, "4294967296"), (10**4000, f"1{'0' * 78}…"))
    ),
    # --- names ---
    ([server(name="")], '[0].name: "" is empty; write a name such as "tun0"'),
    ([server(name="1234567890123456")], '[0].name: "1234567890123456" has 16 bytes; choose a name of at most 15 bytes'),
    ([server(name="ääääääää")], '[0].name: "ääääääää" has 16 bytes; choose a name of at most 15 bytes'),
    ([server(name="tun 0")], '[0].name: "tun 0" has white space in it; use letters, digits, - and _ only'),
    ([server(name="tun0\n")], '[0].name: "tun0\\n" has white space in it; use letters, digits, - and _ only'),
    ([server(name="tun\0")], '[0].name: "tun\\u0000" has "\\u0000" in it; use letters, digits, - and _ only'),
    ([server(name="\x9b31m")], '[0].name: "\\u009b31m" has "\\u009b" in it; use letters, digits, - and _ only'),
    ([server(name="a/b")], '[0].name: "a/b" has "/" in it; use letters, digits, - and _ only'),
    ([server(name="eth0:1")], '[0].name: "eth0:1" has ":" in it; use letters, digits, - and _ only'),
    ([server(name="tun%d")], '[0].name: "tun%d" has "%" in it; use letters, digits, - and _ only'),
    ([server(name="à")], '[0].name: "à" has a character that the kernel refuses; use letters a to z, digits, - and _'),
    *(
        ([server(name=name)], f'[0].name: "{name}" is a name that Linux reserves; choose another, such as '
         '"tun0"')
        for name in (".", "..", "lo", "all", "default")
    ),
    ([server(), other(name="tun0")], '[1].name: "tun0" is already used at [0].name; choose another'),
    ([server(), client(name="tun0")], '[1].name: "tun0" is already used at [0].name; choose another'),
    # --- net ---
    ([server(net="10.10.0.1")], '[0].net: "10.10.0.1" has no prefix length; write it, as in "10.10.0.1/24"'),
    ([server(net="10.10.0.255/24")], '[0].net: "10.10.0.255/24" is the broadcast address of 10.10.0.0/24; '
     'write the server\'s own address, such as "10.10.0.1/24"'),
    ([server(net="10.10.0.1/255.255.255.0")], '[0].net: "10.10.0.1/255.255.255.0" has a netmask; '
     'write its prefix length: "10.10.0.1/24"'),
    *(
        ([server(net=net)], f'[0].net: "{net}" has no prefix length from 0 to 32; write one such as "10.10.0.1/24"')
        for net in ("10.10.0.1/33", "10.10.0.1/", "10.10.0.1/-1", "10.10.0.1/ 24", "10.10.0.1/024", "10.10.0.1/٢٤",
                    "10.10.0.1/255.0.255.0")
    ),
    *(
        ([server(net=net)], f'[0].net: "{net}" is not an address with prefix length; write one such as "10.10.0.1/24" '
         'or "fd00:10::1/64"')
        for net in ("", "x", "10.10.0/24", "10.10.0.256/24", "010.10.0.1/24", "10.10.0.1/24/24", "/24")
    ),
    ([server(net="10.10.0.1/0")], '[0].net: "10.10.0.1/0" would send all traffic of this machine into the tunnel; '
     'write the prefix length of the tunnel\'s network, such as "10.10.0.1/24"'),
    ([server(net="127.0.0.2/8")], '[0].net: "127.0.0.2/8" is a loopback address; '
     "choose a unicast address such as 10.10.0.2"),
    # --- addresses ---
    ([two(ip="10.10.0.255")], '[0].clients[1].ip: "10.10.0.255" is the broadcast address of 10.10.0.0/24; '
     "choose another address"),
    ([server(ips=["10.10.0.255"])], '[0].ips[0]: "10.10.0.255" is the broadcast address of 10.10.0.0/24; '
     "choose another address"),
    ([two(ip="10.10.0")], '[0].clients[1].ip: "10.10.0" is not an IP address; '
     'write one such as "10.10.0.2" or "fd00:10::2"'),
    ([two(ip="")], '[0].clients[1].ip: "" is not an IP address; '
     'write one such as "10.10.0.2" or "fd00:10::2"'),
    ([two(ip="10.10.0.3\u202e")], '[0].clients[1].ip: "10.10.0.3\\u202e" is not an IP address; '
     'write one such as "10.10.0.2" or "fd00:10::2"'),
    ([two(ip="x" * 500)], f'[0].clients[1].ip: "{"x" * 79}…" is not an IP address; '
     'write one such as "10.10.0.2" or "fd00:10::2"'),
    ([two(sources=["224.0.0.1"])], '[0].clients[1].sources[0]: "224.0.0.1" is a multicast address; '
     "choose a unicast address such as 10.10.0.2"),
    ([two(sources=["0.0.0.0"])], '[0].clients[1].sources[0]: "0.0.0.0" is in 0.0.0.0/8, which no host may use; '
     "choose a unicast address such as 10.10.0.2"),
    ([two(sources=["255.255.255.255"])], '[0].clients[1].sources[0]: "255.255.255.255" is the broadcast address; '
     "choose a unicast address such as 10.10.0.2"),
    # --- networks ---
    ([two(routes=["10.60.0.0/"])], '[0].clients[1].routes[0]: "10.60.0.0/" has no prefix length from 0 to 32; '
     'write one such as "10.60.0.0/24"'),
    ([two(routes=["default"])], '[0].clients[1].routes[0]: "default" is not a network; write one such as '
     '"10.60.0.0/24" or "fd00:60::/64"'),
    # --- clients ---
    ([two(name="")], '[0].clients[1].name: "" is empty; write a name, or leave it out to use the address'),
    ([two(name="x" * 65)], f'[0].clients[1].name: "{"x" * 65}" has 65 characters; choose a name of at most 64'),
    ([two(name="\u3164")], f'[0].clients[1].name: "\\u3164" {UNSEEN}'),
    ([two(name="a\u0301\u0301\u0301")], f'[0].clients[1].name: "a\u0301\u0301\\u0301" {UNSEEN}'),
    ([two(name="a \u0301")], f'[0].clients[1].name: "a \\u0301" {UNSEEN}'),
    ([server(name="\u3164")], f'[0].name: "\\u3164" {UNSEEN}'),
    ([two(name="a\tb")], '[0].clients[1].name: "a\\tb" has control characters, or spaces at its ends; '
     "write one line of printable text"),
    ([two(name="a ")], '[0].clients[1].name: "a " has control characters, or spaces at its ends; '
     "write one line of printable text"),
    ([server(clients=[allowed(name="a"), allowed(token=B, ip="10.10.0.3", name="a")])],
     '[0].clients[1].name: "a" already names the client of [0].clients[0].name; choose another'),
    *(
        ([server(push_routes=[net])], f'[0].push_routes[0]: "{net}" is {kind}, where no packet is ever routed, and '
         "clients refuse it; remove it")
        for net, kind in {
            "127.0.0.0/8": "in the loopback network (127.0.0.0/8)",
            "127.0.0.1/32": "in the loopback network (127.0.0.0/8)",
            "0.0.0.0/8": 'in "this network" (0.0.0.0/8)',
            "224.0.0.0/4": "multicast (224.0.0.0/4)",
            "224.0.0.0/3": "multicast and reserved (224.0.0.0/3)",
            "240.0.0.0/8": "reserved (240.0.0.0/4)",
            "255.255.255.255/32": "the broadcast address",
        }.items()
    ),
    *(
        ([two(routes=[net])], f'[0].clients[1].routes[0]: "{net}" is {kind}, where no host can be; remove it')
        for net, kind in {
            "127.0.0.0/8": "in the loopback network (127.0.0.0/8)",
            "0.0.0.0/32": 'in "this network" (0.0.0.0/8)',
            "255.255.255.255/32": "the broadcast address",
        }.items()
    ),
    # --- warnings ---
    ([two(routes=["224.0.0.0/4"])], 'warning: [0].clients[1].routes[0]: "224.0.0.0/4" is multicast: of all packets, '
     "this client gets only those that this machine itself sends there; remove it, unless this is intended"),
    ([server(clients=...)], "warning: [0].clients: lists no client, so none can connect; add one"),
    ([server(clients=[])], "warning: [0].clients: [] lists no client, so none can connect; add one"),
    ([server(listen="unix:/a")], 'warning: [0].port: 8080 is not used, because "listen" names Unix sockets only; '
     "remove it, or listen on an address too"),
    ([server(listen=["127.0.0.1", "203.0.113.10"], push_routes=["10.60.0.0/24", "203.0.113.0/24"], peers=2)],
     'warning: [0].push_routes[1]: "203.0.113.0/24" covers 203.0.113.10, on which this server listens: it routes '
     "the clients' own connections into the tunnel; write only networks without it; extended clients add a host route "
     "around the tunnel, base clients lose their connection"),
    ([server(push_routes=["0.0.0.0/0"], peers=2)], 'warning: [0].push_routes[0]: "0.0.0.0/0" routes the base clients\' '
     "own connections to this server into the tunnel too; write only the networks that are behind this server, or, if "
     'there are no base clients, "peers": 1'),
    ([two(routes=["0.0.0.0/0"])], 'warning: [0].clients[1].routes[0]: "0.0.0.0/0" sends the traffic of this machine '
     'itself to this client too; set "install_routes": false to forward only what comes through the tunnel'),
    ([server(**mark(100, 100)), client(**mark(100, 100))], "warning: [1].mark.table: 100 is the table of [0].mark too, "
     "and a table has room for one default route; give each interface a table of its own"),
    ([client(tls={"insecure": True})], 'warning: [0].tls: has no effect on an http URL; write "https://..." or remove '
     "it"),
    ([client(server="https://h/", tls={"insecure": True, "ca_file": "/dev/null"})], 'warning: [0].tls.ca_file: '
     '"/dev/null" has no effect together with "insecure": true; remove one of them'),
]  # fmt: skip

# The same with addresses of either family (`tests.twins`).
IN_BOTH_FAMILIES: Final[list[tuple[Sequence[object], str]]] = [
    ([server(net="10.10.0.0/24")], '[0].net: "10.10.0.0/24" is the network address of 10.10.0.0/24; '
     'write the server\'s own address, such as "10.10.0.1/24"'),
    ([server(net=" 10.10.0.1/24")], '[0].net: " 10.10.0.1/24" has white space at its ends; write "10.10.0.1/24"'),
    ([two(ip="10.10.1.9")], '[0].clients[1].ip: "10.10.1.9" is outside net 10.10.0.0/24; choose an address in it'),
    ([two(ip="10.10.0.0")], '[0].clients[1].ip: "10.10.0.0" is the network address of 10.10.0.0/24; '
     "choose another address"),
    ([two(ip="10.10.0.2")], '[0].clients[1].ip: "10.10.0.2" is already used at [0].clients[0].ip; '
     "choose another address"),
    ([two(ip="10.10.0.1")], '[0].clients[1].ip: "10.10.0.1" is already used at [0].net; choose another address'),
    ([server(ips=["10.10.0.2"])], '[0].clients[0].ip: "10.10.0.2" is already used at [0].ips[0]; '
     "choose another address"),
    ([server(ips=["10.10.0.1"])], '[0].ips[0]: "10.10.0.1" is already used at [0].net; choose another address'),
    ([server(ips=["10.10.0.9", "10.10.0.9"])], '[0].ips[1]: "10.10.0.9" is already used at [0].ips[0]; '
     "choose another address"),
    ([server(), other(net="10.10.0.1/16", clients=[allowed(ip="10.10.1.2")])], '[1].net: "10.10.0.1" is already used '
     "at [0].net; choose another address"),
    ([two(ip="10.10.0.3/24")], '[0].clients[1].ip: "10.10.0.3/24" has a prefix length where an address belongs; '
     'write "10.10.0.3"'),
    ([two(sources=["10.0.0.0/8"])], '[0].clients[1].sources[0]: "10.0.0.0/8" has a prefix length where an address '
     'belongs; write "10.0.0.0"'),
    ([server(routes=["172.20.1.0/16"])], '[0].routes[0]: "172.20.1.0/16" has host bits set beyond /16; '
     'write "172.20.0.0/16" for the network, or "172.20.1.0/32" for this one address'),
    ([server(push_routes=["10.60.0.0/24", "172.20.1.0/16"])], '[0].push_routes[1]: "172.20.1.0/16" has host bits set '
     'beyond /16; write "172.20.0.0/16" for the network, or "172.20.1.0/32" for this one address'),
    ([server(push_routes=["10.60.0.0"])], '[0].push_routes[0]: "10.60.0.0" has no prefix length; write it, as in '
     '"10.60.0.0/32"'),
    ([two(routes=["10.60.0.0/24", "10.61.0.9/24"])], '[0].clients[1].routes[1]: "10.61.0.9/24" has host bits set '
     'beyond /24; write "10.61.0.0/24" for the network, or "10.61.0.9/32" for this one address'),
    ([two(routes=["10.60.0.0"])], '[0].clients[1].routes[0]: "10.60.0.0" has no prefix length; write it, as in '
     '"10.60.0.0/32"'),
    (
        [server(clients=[allowed(routes=["10.60.0.0/24"]), allowed(token=B, ip="10.10.0.3", routes=["10.60.0.0/24"])])],
        '[0].clients[1].routes[0]: "10.60.0.0/24" is already used at [0].clients[0].routes[0]; leave it with one',
    ),
    ([two(routes=["10.10.0.2/32"])], '[0].clients[1].routes[0]: "10.10.0.2/32" is already used at [0].clients[0].ip; '
     "leave it with one"),
    ([server(clients=[allowed(routes=["10.10.0.3/32"]), allowed(token=B, ip="10.10.0.3")])],
     '[0].clients[0].routes[0]: "10.10.0.3/32" is already used at [0].clients[1].ip; leave it with one'),
    ([two(routes=["10.10.0.1/32"])], '[0].clients[1].routes[0]: "10.10.0.1/32" is already used at [0].net; '
     "leave it with one"),
    (
        [two(routes=["10.60.0.0/24"]), other(clients=[allowed(ip="10.11.0.2", routes=["10.60.0.0/24"])])],
        '[1].clients[0].routes[0]: "10.60.0.0/24" is already used at [0].clients[1].routes[0], and this machine can '
        'route it to one of them only; leave it with one, or set "install_routes": false',
    ),
    (
        [server(clients=[allowed(sources=["1.1.1.1"]), allowed(token=B, ip="10.10.0.3", sources=["1.1.1.1"])])],
        '[0].clients[1].sources[0]: "1.1.1.1" is already used at [0].clients[0].sources[0]; leave it with one',
    ),
    ([server(), other(net="10.10.0.9/24", clients=[allowed(ip="10.10.0.3")])], '[1].net: "10.10.0.0/24" overlaps the '
     "network 10.10.0.0/24 of [0].net; give each server a network of its own"),
    ([two(name="10.10.0.2")], '[0].clients[1].name: "10.10.0.2" already names the client of [0].clients[0].ip; '
     "choose another"),
    ([server(ips=["192.168.7.1"])], 'warning: [0].ips[0]: "192.168.7.1" is outside net 10.10.0.0/24, and clients are '
     "given no route to it; choose an address in it, or route it on the clients"),
    ([server(push_routes=["10.60.0.0/24", "10.60.0.0/24"])], 'warning: [0].push_routes[1]: "10.60.0.0/24" is already '
     "used at [0].push_routes[0]; remove one"),
    *(
        ([server(push_routes=[net])], f'warning: [0].push_routes[0]: "{net}" is in net 10.10.0.0/24, to which clients '
         "have a route anyway; remove it")
        for net in ("10.10.0.0/24", "10.10.0.128/25")
    ),
    ([server(listen="203.0.113.10", net="203.0.113.1/24",
             clients=[{"token": "0" * 40, "ip": "203.0.113.2"}])], 'warning: [0].net: "203.0.113.1/24" covers '
     "203.0.113.10, on which this server listens: it routes the clients' own connections into the tunnel; write only "
     "networks without it; extended clients add a host route around the tunnel, base clients lose their connection"),
    ([two(routes=["10.60.0.0/24", "10.60.0.0/24"])], 'warning: [0].clients[1].routes[1]: "10.60.0.0/24" is already '
     "used at [0].clients[1].routes[0]; remove one"),
    ([two(sources=["1.1.1.1", "1.1.1.1"])], 'warning: [0].clients[1].sources[1]: "1.1.1.1" is already used at '
     "[0].clients[1].sources[0]; remove one"),
    ([two(sources=["10.10.0.3"])], 'warning: [0].clients[1].sources[0]: "10.10.0.3" is this client\'s own address, '
     "so its packets would come back to it; remove it"),
    ([server(), other(net="10.10.1.1/16", clients=[allowed(ip="10.10.1.2")])], 'warning: [0].net: "10.10.0.0/24" '
     "overlaps the network 10.10.0.0/16 of [1].net; give each server a network of its own"),
]  # fmt: skip


def in_ipv6(line: str) -> str:
    """The finding about the IPv6 twin. IPv6 has no network address; its lowest one is the routers' anycast address."""
    return str(as_ipv6(line)).replace("is the network address", "is the subnet-router anycast address")


ALL_FINDINGS: Final = [
    *ONE_FINDING,
    *IN_BOTH_FAMILIES,
    *((as_ipv6(entries), in_ipv6(line)) for entries, line in IN_BOTH_FAMILIES),
]


@pytest.mark.parametrize(("entries", "line"), ALL_FINDINGS, ids=[line[:60] for _, line in ALL_FINDINGS])
def test_one_finding(entries: Sequence[object], line: str) -> None:
    config, texts = load_entries(*entries)
    assert texts == [f"F: {line}"]
    assert (config is None) == (not line.startswith("warning: "))


def test_an_overflow_is_out_of_range() -> None:
    """Python reads 1e999 as infinity."""
    text = json.dumps([server(keepalive=5)]).replace('"keepalive": 5', '"keepalive": 1e999')
    _, findings = check_content(text.encode(), "F")
    assert [f.text("F") for f in findings] == [
        "F: [0].keepalive: Infinity is out of range; write a number from 1 to 50 (line 1)"
    ]


def test_the_elements_of_a_list_of_the_wrong_length_are_checked() -> None:
    pushed = ["10.60.0.1/24", 5] + [f"10.60.0.{n}" for n in range(7)]
    assert load_entries(server(push_dns=pushed), client(name="b", rotate_s=[900, "x", 0]))[1] == [
        "F: [0].push_dns: [...] has 9 elements; write at most 8",
        'F: [0].push_dns[0]: "10.60.0.1/24" has a prefix length where an address belongs; write "10.60.0.1"',
        'F: [0].push_dns[1]: 5 is a number, not text; write "10.10.0.2"',
        "F: [1].rotate_s: [...] has 3 elements; write 2, such as [420, 900]",
        'F: [1].rotate_s[1]: "x" is text, not a number; write a number from 0.1 to 86400',
        "F: [1].rotate_s[2]: 0 is out of range; write a number from 0.1 to 86400",
    ]


def test_a_warning_does_not_stop_a_start() -> None:
    config, texts = load_entries(server(clients=[]))
    assert config is not None
    assert list(config.warnings) == [f"{text} (line 1)" for text in texts]


def test_a_key_given_twice() -> None:
    _, findings = check_content(b'[{"name": "a", "name": "b",\n"port": 1, "net": "10.0.0.1/24", "port": 2}]', "F")
    assert [f.text("F") for f in findings if f.severity == "error"] == [
        'F: [0].name: "name" is more than once in this object; keep one (line 1)',
        'F: [0].port: "port" is more than once in this object; keep one (line 2)',
    ]


ALL_AT_ONCE: Final = """[
  {
    "name": "corp0-much-too-long",
    "port": "8080",
    "net": "10.10.0.1/24",
    "mtuu": 1400,
    "mark": {"value": 7},
    "clients": [
      {"token": "s3cret", "ip": "10.10.1.2"},
      {"token": "0123456789012345678901234567890123456789", "ip": "10.10.0.2", "routes": ["10.0.0.1/8", 5]},
      {"token": "0123456789012345678901234567890123456789", "ip": "10.10.0.2"}
    ]
  },
  {
    "server": "htp://h",
    "token": "0123456789012345678901234567890123456789"
  },
  {"nam": "x"},
  {"name": "tun0", "port": 0, "net": "10.10.0.1/24", "listen": ["::1", "localhost"]}
]"""


def test_every_error_of_a_file_is_reported_in_its_order() -> None:
    config, findings = check_content(ALL_AT_ONCE.encode(), "F")
    assert config is None
    assert [(f.line, f.path, f.severity) for f in findings] == [
        (3, "[0].name", "error"),
        (4, "[0].port", "error"),
        (6, "[0].mtuu", "error"),
        (7, "[0].mark.table", "error"),
        (9, "[0].clients[0].token", "error"),
        (9, "[0].clients[0].ip", "error"),
        (10, "[0].clients[1].routes[0]", "error"),
        (10, "[0].clients[1].routes[1]", "error"),
        (11, "[0].clients[2].token", "error"),
        (11, "[0].clients[2].ip", "error"),
        (14, "[1].name", "error"),
        (15, "[1].server", "error"),
        (16, "[1].token", "error"),
        (18, "[2]", "error"),
        (18, "[2].name", "error"),
        (18, "[2].nam", "error"),
        (19, "[3].clients", "warning"),
        (19, "[3].port", "error"),
        (19, "[3].net", "error"),
        (19, "[3].listen[1]", "error"),
    ]


@pytest.mark.parametrize("name", ["server", "client"])
def test_both_kinds_are_checked_alike_for_name_and_mark(name: str) -> None:
    make = {"server": server, "client": client}[name]
    _, texts = load_entries(make(name="a b", mark={"value": 0, "table": 254}))
    assert [text.split(":")[1].strip() for text in texts] == ["[0].name", "[0].mark.value", "[0].mark.table"]


def test_an_entry_of_no_kind_is_checked_for_what_both_kinds_have() -> None:
    entry = {"name": "a b", "mark": {"value": 1}, "clients": "not looked at", "sever": "http://h/"}
    assert load_entries(entry)[1] == [
        'F: [0]: is neither a server nor a client; add "port" and "net" to make it a server, or "server" to make it '
        "a client",
        'F: [0].name: "a b" has white space in it; use letters, digits, - and _ only',
        'F: [0].mark.table: is missing; add "table": 100',
        'F: [0].sever: "sever" is an unknown field in an interface definition; did you mean "server"?',
    ]


def test_a_definition_with_errors_still_claims_what_is_its() -> None:
    _, texts = load_entries(server(mtu=1), other(name="tun0", port=8080, net="10.10.0.1/24", clients=[]))
    assert [text.split(":")[1].strip() for text in texts if "warning" not in text] == [
        "[0].mtu",
        "[1].name",
        "[1].port",
        "[1].net",
    ]


def test_lines_and_columns_are_those_of_the_value() -> None:
    _, findings = check_content(json.dumps([server(mtu=1)], indent=2).encode(), "F")
    (finding,) = findings
    assert (finding.line, finding.column) == (12, 12)
