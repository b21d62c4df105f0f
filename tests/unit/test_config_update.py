"""The root object's ``update``: what it accepts, each of its errors, and what a reload tells of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tapotun_trio.config.diff import process_lines
from tapotun_trio.config.load import check, check_content
from tapotun_trio.config.model import NO_PROXY, Config, Proxy, Secret, TlsConfig, UpdateConfig, Url

from .test_config_load import Json, server

URL: Final = "https://updates.example.com/tapotun"
ROOT: Final = b'{"signatures": [], "signed": {"_type": "root"}}'


@pytest.fixture(autouse=True)
def root_file(tmp_path: Path) -> Path:
    file = tmp_path / "root.json"
    file.write_bytes(ROOT)
    return file


def content(**update: Any) -> bytes:
    whole = {"url": URL, "root_file": "root.json", **update}
    given = {name: value for name, value in whole.items() if value is not ...}
    return json.dumps({"interfaces": [server()], "update": given}).encode()


def load(directory: Path, **update: Any) -> Config:
    config, findings = check_content(content(**update), str(directory / "F"))
    assert [finding.text("F") for finding in findings] == []
    assert config is not None
    return config


def lines(directory: Path, **update: Any) -> list[str]:
    _, findings = check_content(content(**update), str(directory / "F"))
    return [finding.text("F").removeprefix("F: ").partition(" (line")[0] for finding in findings]


def test_the_defaults(tmp_path: Path) -> None:
    config = load(tmp_path)
    assert config.update == UpdateConfig(
        Url("https", "updates.example.com", 443, "/tapotun/"),
        None,
        "check",
        "stable",
        24 * 3600,
        6 * 3600,
        str(tmp_path / "root.json"),
        None,
        TlsConfig(),
    )
    assert str(tmp_path / "root.json") in config.files, "a process that becomes another user checks that it may read it"


def test_every_field(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("any")
    found = load(
        tmp_path,
        url="http://me:secret@[::1]:8080/",
        mode="apply",
        channel="beta-1.x",
        every="90m",
        spread="0s",
        proxy="none",
    ).update
    assert found is not None
    assert (found.url, found.login) == (Url("http", "::1", 8080, "/"), Secret("me:secret"))
    assert (found.mode, found.channel, found.every_s, found.spread_s) == ("apply", "beta-1.x", 5400, 0)
    assert found.proxy is NO_PROXY
    assert "secret" not in repr(found)
    found = load(tmp_path, tls={"ca_file": "ca.pem", "min_version": "1.3"}, proxy="http://p:3128").update
    assert found is not None
    assert found.tls == TlsConfig(ca_file=str(tmp_path / "ca.pem"), min_version="1.3")
    assert found.proxy == Proxy("p", 3128)


DURATION: Final = 'is not a duration; write one such as "30m", "12h" or "1d"'

ONE_FINDING: Final[list[tuple[Json, str]]] = [
    ({"url": ...}, 'update.url: is missing; add "url": "https://updates.example.com/tapotun/"'),
    ({"url": "u"}, 'update.url: "u" has no scheme; write "http://..." or "https://...", such as'),
    ({"url": f"{URL}?key=s3cr3t"}, 'update.url: "https://updates.example.com/tapotun?***" has a query; write the URL'),
    ({"url": "https://me:s3cr3t@/x"}, 'update.url: "https://***@/x" has no host'),
    ({"mode": "install"}, 'update.mode: "install" is not one of the choices; write "apply", "check" or "download"'),
    ({"channel": ""}, 'update.channel: "" is not the name of a channel; write one such as "stable"'),
    ({"channel": "../x"}, 'update.channel: "../x" is not the name of a channel; write one such as "stable"'),
    ({"channel": "a/b"}, 'update.channel: "a/b" is not the name of a channel; write one such as "stable"'),
    ({"every": "1 d"}, f'update.every: "1 d" {DURATION}'),
    ({"every": "1w"}, f'update.every: "1w" {DURATION}'),
    ({"every": "\u0661d"}, f'update.every: "\u0661d" {DURATION}'),
    ({"every": 3600}, 'update.every: 3600 is a number, not text; write "1d"'),
    ({"every": "59s"}, 'update.every: "59s" is out of range; write one from "1m" to "30d"'),
    ({"spread": "31d"}, 'update.spread: "31d" is out of range; write one from "0s" to "30d"'),
    ({"root_file": "none.json"}, 'update.root_file: "none.json" cannot be read: No such file or directory'),
    ({"proxy": "socks5://me:s3cr3t@p:1"}, 'update.proxy: "socks5://***@p:1" has the scheme socks5'),
    ({"tls": {"key_file": "k.pem"}}, 'update.tls.key_file: "k.pem" is given without "cert_file"'),
    ({"tls": {"insecure": True}}, "warning: update.tls.insecure: true leaves the repository unverified: what it"),
    ({"url": "http://u/", "tls": {}}, "warning: update.tls: has no effect on an http URL"),
    ({"token": "x"}, 'update.token: "token" is an unknown field in "update"'),
]


@pytest.mark.parametrize(("update", "line"), ONE_FINDING, ids=[line[:50] for _, line in ONE_FINDING])
def test_one_finding(tmp_path: Path, update: Json, line: str) -> None:
    found = lines(tmp_path, **update)
    assert len(found) == 1
    assert found[0].startswith(line)
    assert "s3cr3t" not in found[0]


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b'{"signed": {"_type": "targets"}}', b"\xff", b"[" * 100_000, b'{"signed": 1}']
)
def test_a_root_file_that_is_none(tmp_path: Path, root_file: Path, data: bytes) -> None:
    root_file.write_bytes(data)
    assert lines(tmp_path) == [
        'update.root_file: "root.json" holds no root metadata of a TUF repository; write the path of its root.json'
    ]


def test_a_login_in_a_public_file_causes_a_warning(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    for update, warned in (
        ({}, []),
        ({"url": "https://a:b@c/"}, ["update.url"]),
        ({"proxy": "http://a:b@c:1"}, ["update.proxy"]),
    ):
        file.write_bytes(content(**update))
        file.chmod(0o644)
        assert [finding.path for finding in check(file)[1]] == warned


def test_what_a_reload_tells(tmp_path: Path) -> None:
    none, _ = check_content(json.dumps([server()]).encode(), "F")
    assert none is not None
    one, other = load(tmp_path), load(tmp_path, url="https://a:b@c/", every="2d", mode="apply")
    assert process_lines(none, one) == ["update: added"]
    assert process_lines(one, none) == ["update: removed"]
    assert process_lines(one, other) == ["update: url, mode, every changed"]
    assert process_lines(one, one) == []
