"""What is checked before anything is changed."""

from __future__ import annotations

import errno
import os
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tapotun_trio.config.model import AdminConfig, Config, TcpAddress, UnixAddress, UpdateConfig, Url
from tapotun_trio.errors import HostError
from tapotun_trio.host.process import privileges
from tapotun_trio.host.process.privileges import (
    CAP_DAC_OVERRIDE,
    CAP_DAC_READ_SEARCH,
    CAP_KILL,
    CAP_NET_ADMIN,
    CAP_NET_BIND_SERVICE,
    CAP_SETGID,
    CAP_SETUID,
    effective_capabilities,
    needed_capabilities,
    open_tun_node,
    raise_fd_limit,
)

from .support import client_config, server_config

STATUS = "Name:\tx\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000000\nCapEff:\t{}\nCapBnd:\t0\n"


@pytest.mark.parametrize(
    ("mask", "has"), [("0000000000001000", True), ("000001ffffffffff", True), ("000001ffffffefff", False)]
)
def test_effective_capabilities(mask: str, has: bool) -> None:
    assert bool(effective_capabilities(STATUS.format(mask)) >> CAP_NET_ADMIN & 1) is has


SERVER = server_config(8080)
UPDATE = UpdateConfig(Url("https", "updates.example.com", 443, "/"))


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (Config((SERVER, client_config("tun0", 443))), set()),
        (Config((server_config(443),)), {CAP_NET_BIND_SERVICE}),
        (Config((replace(SERVER, listen=(UnixAddress("/run/x"),)),)), {CAP_DAC_OVERRIDE}),
        (Config((SERVER,), admin=AdminConfig(TcpAddress("127.0.0.1", 9090))), set()),
        (Config((SERVER,), admin=AdminConfig(TcpAddress("127.0.0.1", 443))), {CAP_NET_BIND_SERVICE}),
        (Config((SERVER,), admin=AdminConfig(UnixAddress("/run/x"))), {CAP_DAC_OVERRIDE}),
        (Config((SERVER,), update=UPDATE), {CAP_SETUID, CAP_SETGID, CAP_KILL}),
    ],
)
def test_what_is_kept(config: Config, more: set[int]) -> None:
    kept = needed_capabilities(config)
    assert {number for number in range(64) if kept >> number & 1} == {CAP_NET_ADMIN, CAP_DAC_READ_SEARCH} | more


def test_what_may_be_kept_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text(encoding="utf-8")
    section = page.partition("\n### Privileges\n")[2].partition("\n### ")[0]
    names = {name for name in vars(privileges) if name.startswith("CAP_")}
    assert {name for name in names if name not in section} == set()


@pytest.mark.parametrize(
    ("config", "more"),
    [
        (Config((SERVER,), user="tapotun"), set()),
        (Config((SERVER,), user="tapotun", update=UPDATE), set()),
        (Config((server_config(443),), user="tapotun"), {CAP_NET_BIND_SERVICE}),
        (Config((replace(SERVER, listen=(UnixAddress("/run/x"),)),), user="tapotun"), set()),
    ],
)
def test_an_ordinary_user_keeps_nothing_that_opens_files(config: Config, more: set[int]) -> None:
    kept = needed_capabilities(config)
    assert {number for number in range(64) if kept >> number & 1} == {CAP_NET_ADMIN} | more


def test_a_status_without_capabilities() -> None:
    with pytest.raises(ValueError, match="CapEff"):
        effective_capabilities("Name:\tx\n")


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.ENOENT, "modprobe tun"),
        (errno.ENOENT, "--device=/dev/net/tun"),
        (errno.ENODEV, "modprobe tun"),
        (errno.EACCES, "readable and writable"),
        (errno.EPERM, "DeviceAllow"),
        (errno.EMFILE, "LimitNOFILE="),
        (errno.ENFILE, "fs.file-max"),
    ],
)
def test_a_missing_tun_node_has_a_remedy(monkeypatch: pytest.MonkeyPatch, code: int, remedy: str) -> None:
    def refuse(*_: Any) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(HostError, match=remedy) as info:
        open_tun_node()
    assert str(info.value).startswith(f"/dev/net/tun: {os.strerror(code)}; ")
    assert "\n" not in str(info.value)


def test_a_refused_descriptor_limit_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_fd_limit() == 1024
