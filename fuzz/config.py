"""The config loader: any file is a config or a list of findings, and no finding shows a token."""

from __future__ import annotations

import json
from typing import Final

from tapotun_trio.config.load import check_content

_TOKEN: Final = "S3CR3T-t0k3n"
_SERVER: Final = {
    "name": "hub",
    "net": "10.10.0.1/24",
    "port": 8080,
    "mtu": 1400,
    "routes": ["10.0.0.0/8"],
    "clients": [{"name": "a", "token": "a94a8fe5ccb19ba61c4c0873d391e987982fbbd3", "ip": "10.10.0.2", "routes": []}],
}
_DUAL: Final = {
    **_SERVER,
    "net": ["10.10.0.1/24", "fd00:10::1/64"],
    "listen": ["192.0.2.1", "2001:db8::1"],
    "ips": ["fd00:10::9"],
    "push_routes": ["fd00:20::/64", "172.20.0.0/16"],
    "push_dns": ["fd00:10::1"],
    "clients": [
        {
            "token": "a94a8fe5ccb19ba61c4c0873d391e987982fbbd3",
            "ip": ["10.10.0.2", "fd00:10::2"],
            "routes": ["fd00:60::/64", "::/0"],
            "sources": ["2001:db8::5"],
        }
    ],
}
_CLIENT: Final = {"name": "c", "server": "https://h/ip", "token": _TOKEN, "rotate_s": [420, 900]}

_TAP: Final = {
    "name": "t",
    "port": 8081,
    "device": "tap",
    "net": "10.11.0.1/24",
    "bridge": {"name": "br0", "create": True, "isolated": False, "learning": True, "bpdu_guard": True},
    "mac": "02:00:5e:10:00:01",
    "isolate": True,
    "arp_guard": True,
    "bpdu": "forward",
    "storm_limit": 100,
    "clients": [{"token": "a94a8fe5ccb19ba61c4c0873d391e987982fbbd3", "macs": ["02:00:5e:10:00:02"]}],
}

SEEDS: Final = [
    json.dumps([_SERVER, _CLIENT]).encode(),
    json.dumps([{**_SERVER, "source_check": "strict", "peers": 2, "mark": 1, "listen": ["127.0.0.1"]}]).encode(),
    json.dumps([_DUAL]).encode(),
    json.dumps([{**_DUAL, "net": "fe80::1%eth0/64", "mtu": 576, "ips": ["::ffff:10.0.0.1", "ff02::1"]}]).encode(),
    json.dumps([{**_CLIENT, "transport_mark": 5, "tls": {"insecure": True}, "token": [_TOKEN]}]).encode(),
    json.dumps(
        {"interfaces": [_CLIENT], "admin": {"listen": 9090, "token": _TOKEN}, "log": {"level": "info"}}
    ).encode(),
    json.dumps({"interfaces": [_SERVER], "admin": {"listen": "[::]:9090", "token": _TOKEN}, "update": {}}).encode(),
    json.dumps([_TAP, {**_CLIENT, "device": "tap", "bridge": "br0", "mac": "ff-ff-ff-ff-ff-ff"}]).encode(),
    json.dumps([{**_TAP, "device": "tun", "routes": ["10.0.0.0/8"]}, {**_TAP, "mtu": 65535, "net": []}]).encode(),
    b'[{"token": ' + b"[" * 3000,
    b'// comment\n[{"a": 1, "a": 2,}]',
    b"\xff\xfe[\0]\0",
    b"[]",
]


def check(data: bytes) -> None:
    config, findings = check_content(data, "/nowhere/config.json", 0o644)
    errors = [finding for finding in findings if finding.severity == "error"]
    assert (config is None) == bool(errors)
    # Where the fuzzer has moved it out of its field, nobody can know that it is one.
    secret = _TOKEN.encode() not in data.replace(b'"token": "%b"' % _TOKEN.encode(), b"")
    for finding in findings:
        text = finding.text("config.json")
        assert text
        assert not secret or _TOKEN not in text, "a token is shown"
