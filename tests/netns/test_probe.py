"""`tapotun probe` through real proxies, good and misconfigured: it names the cause, and says usable of the good ones.

What is slow about a probe is waiting, so the cases of a test run beside each other, each between hosts of its own.
"""

from __future__ import annotations

import json
import re
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

from tests.harness import Host, Lab, Process, command, ping, wait_until
from tests.harness.recipes import NAME, RECIPES, Proxy

from .topologies import CLIENT, SERVER, TUNNEL_SERVER, UPLOADING, Config, client_config, running, server_config, token

pytestmark = pytest.mark.netns

WITHOUT_CAPABILITIES: Final = ("setpriv", "--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all")
WAIT_S: Final = 100.0
CADDY_SERVERS: Final = "{\n\tlog"


@pytest.fixture(autouse=True)
def _unmeasured(monkeypatch: pytest.MonkeyPatch) -> None:
    """At their own speed."""
    monkeypatch.delenv("TAPOTUN_COVERAGE", raising=False)


@dataclass
class Case:
    """A proxy, how it differs from its recipe, and what the probe has to say of that."""

    kind: str
    replace: dict[str, str]
    codes: set[str]  # of the findings that are faults or warnings
    change: tuple[str, ...] = ()  # among the lines to change
    usable: bool = False
    server: Config = field(default_factory=dict)
    options: tuple[str, ...] = ("--idle-limit", "0")
    path: str = "/ip"
    who: str = "laptop"
    running: bool = True


def token_file(host: Host, who: str = "laptop") -> str:
    """A file with the token of ``who``, for its owner only."""
    file = host.tmp / f"{who}.token"
    file.touch(mode=0o600)
    file.write_text(token(who) + "\n", encoding="ascii")
    return str(file)


def probe(host: Host, url: str, *options: str, who: str = "laptop", prefix: tuple[str, ...] = ()) -> Process:
    """Started, with its report as JSON on its standard output."""
    argv = [*prefix, *command(), "probe", url, "--token-file", token_file(host, who), "--json", *options]
    return host.start(argv, name="tapotun-probe")


def report(process: Process, timeout: float = WAIT_S) -> dict[str, Any]:
    """What it printed, and its exit code as ``exit``."""
    code = process.wait(timeout)
    try:
        return {"exit": code, **json.loads(process.log)}
    except ValueError:
        pytest.fail(process.tail(60))


def serious(found: dict[str, Any]) -> set[str]:
    return {it["code"] for it in found["findings"] if it["severity"] != "note"}


def faults(found: dict[str, Any]) -> set[str]:
    """Without warnings: a machine that is busy may cause some."""
    return {it["code"] for it in found["findings"] if it["severity"] == "fault"}


@contextmanager
def pair(lab: Lab, name: str) -> Iterator[tuple[Host, Host]]:
    server, client = lab.host(f"server-{name}"), lab.host(f"client-{name}")
    lab.link(server, f"{SERVER}/24", client, f"{CLIENT}/24")
    client.hosts({NAME: SERVER})
    yield server, client


def start(lab: Lab, stack: ExitStack, number: int, case: Case) -> tuple[Proxy, Process]:
    server, client = stack.enter_context(pair(lab, f"{number}-{case.kind}"))
    if case.running:
        config = server_config(**case.server)
        del config["listen"]
        stack.enter_context(running(server, config))
    proxy = stack.enter_context(RECIPES[case.kind](server, replace=case.replace))
    options = ("--ca-file", str(proxy.ca_file), *case.options)
    url = f"https://{NAME}{case.path}"
    return proxy, probe(client, url, *options, who=case.who, prefix=WITHOUT_CAPABILITIES)


def check_all(lab: Lab, *cases: Case) -> list[dict[str, Any]]:
    """Every case at once; each with the verdict that it is to have."""
    with ExitStack() as stack:
        probes = [start(lab, stack, number, case) for number, case in enumerate(cases)]
        reports = [report(process) for _, process in probes]
        for proxy, _ in probes:
            proxy.process.kill()  # a stop takes Caddy seconds
    for case, found in zip(cases, reports, strict=True):
        print(case.kind, case.replace, found["verdict"], f"{found['seconds']:.1f} s")
    for case, found in zip(cases, reports, strict=True):
        text = json.dumps(found, indent=1)
        assert serious(found) == case.codes, text
        assert (found["usable"], found["exit"]) == (case.usable, 0 if case.usable else 1), text
        assert found["http"] is None or found["http"]["proxy"] == case.kind, text
        lines = [line for finding in found["findings"] for line in finding["change"]]
        for words in case.change:
            assert any(words in line for line in lines), text
    return reports


def test_the_recipes_are_good(lab: Lab) -> None:
    cases = [Case(kind, {}, set(), usable=True, options=("--idle-limit", "2")) for kind in RECIPES]
    for found in check_all(lab, *cases):
        assert found["carrier"] == "http"
        assert (found["download"]["state"], found["upload"]["state"]) == ("streams", "streams")
        assert found["websocket"]["ok"] is True
        assert found["http"]["server"] == "extended"
        assert found["tls"]["version"] == "TLSv1.3"
        assert {"TLSv1.2", "TLSv1.3"} <= set(found["tls"]["offered"])
        assert found["tls"]["days_left"] > 100
        assert found["rtt"]["samples"] == 10
        assert found["throughput"]["up_mbit_s"] > 1
        assert found["throughput"]["down_mbit_s"] > 1
        assert found["idle"]["upload_s"] is None
        assert found["idle"]["download_tested_s"] > 1.5


def test_uploads_that_are_held_back(lab: Lab) -> None:
    """All recipes but nginx' with HTTP/1.0 let a WebSocket pass, so the client's daemon has a way out."""
    held = {"upload-held"}
    reports = check_all(
        lab,
        Case("nginx", {"proxy_request_buffering off;": ""}, held, ("proxy_request_buffering off",), usable=True),
        Case(
            "nginx",
            {"proxy_http_version 1.1;": "proxy_http_version 1.0;"},
            held | {"websocket"},
            ("proxy_http_version 1.1",),
        ),
        Case("caddy", {"header_up -Forwarded": "buffer_requests"}, held, ("buffer_requests",), usable=True),
        Case(
            "haproxy",
            {"option http-no-delay": "option http-no-delay\n    option http-buffer-request"},
            held,
            ("no option http-buffer-request",),
            usable=True,
        ),
        Case(
            "apache",
            {"SetEnv proxy-prefetch-nonblocking 1": ""},
            held,
            ("SetEnv proxy-prefetch-nonblocking 1",),
            usable=True,
        ),
        Case(
            "caddy",
            {"header_up -Forwarded": "buffer_requests"},
            held,
            ("buffer_requests",),
            options=("--idle-limit", "0", "--transport", "http"),
        ),
    )
    for found in reports[:1] + reports[2:5]:
        assert found["carrier"] == "websocket"
    for found in (reports[3], reports[4]):  # HAProxy's buffer and Apache's prefetch, 16 KiB both
        assert 8 * 1024 <= found["upload"]["held_bytes"] <= 32 * 1024
    for found in reports[:3]:
        assert found["upload"]["held_until_end"]


def test_downloads_that_are_held_back(lab: Lab) -> None:
    """HAProxy and Apache pass on what has come: neither has a line that makes it wait for more."""
    held = {"download-held"}
    reports = check_all(
        lab,
        Case(
            "nginx",
            {"proxy_buffering off;": "proxy_ignore_headers X-Accel-Buffering;"},
            held,
            ("proxy_buffering off", "X-Accel-Buffering"),
            usable=True,
        ),
        Case("caddy", {"header_up -Forwarded": "buffer_responses"}, held | {"websocket"}, ("buffer_responses",)),
    )
    assert [found["carrier"] for found in reports] == ["websocket", None]


def test_limits_and_delays_and_no_way_for_a_websocket(lab: Lab) -> None:
    limit = "handle /ip {\n\t\trequest_body {\n\t\t\tmax_size 1MB\n\t\t}"
    check_all(
        lab,
        Case("nginx", {"client_max_body_size 0;": ""}, {"upload-limit"}, ("client_max_body_size 0",), usable=True),
        Case("caddy", {"handle /ip {": limit}, {"upload-limit"}, ("request_body max_size",), usable=True),
        Case("haproxy", {"option http-no-delay": ""}, {"delay"}, ("option http-no-delay",), usable=True),
        Case(
            "nginx",
            {"proxy_set_header Upgrade $http_upgrade;": ""},
            {"websocket"},
            ("proxy_set_header Upgrade",),
            options=("--idle-limit", "0", "--transport", "websocket"),
        ),
        Case("apache", {" upgrade=websocket": ""}, set(), ("upgrade=websocket",), usable=True),
    )


def test_timeouts(lab: Lab) -> None:
    """3 s, below the server's keepalive; the silence after which they end a stream is found."""
    both = {"idle-download", "idle-upload"}
    keepalive: Config = {"keepalive": 30}
    idle = ("--idle-limit", "8")
    reports = check_all(
        lab,
        Case("nginx", {" 5m;": " 3s;"}, both, ("proxy_read_timeout", "client_body_timeout"), False, keepalive, idle),
        Case("haproxy", {" 5m": " 3s"}, both, ("timeout client 5m", "timeout server 5m"), False, keepalive, idle),
        Case("apache", {"=300": "=3", "Timeout 300": "Timeout 3"}, both, ("timeout=300",), False, keepalive, idle),
        Case(
            "caddy",
            {"header_up ": "transport http {\n\t\t\t\tread_timeout 3s\n\t\t\t}\n\t\t\theader_up "},
            both,
            ("read_timeout",),
            False,
            keepalive,
            idle,
        ),
        Case(
            "apache",
            {"minrate=500 body=0": "minrate=500 body=4,minrate=500"},
            {"idle-upload"},
            ("RequestReadTimeout body=0",),
            False,
            keepalive,
            idle,
        ),
    )
    for found in reports[:4]:
        assert 2.5 <= found["idle"]["download_s"] <= 8, found["idle"]
    for found in reports[:3]:
        assert 2.5 <= found["idle"]["upload_s"] <= 8, found["idle"]
    assert reports[3]["idle"]["upload_late"]


def test_limits_of_age(lab: Lab) -> None:
    """A client copes with them, so they are no fault: where other tests have met them, or when they are looked for."""
    timeouts = "{\n\tservers {\n\t\ttimeouts {\n\t\t\tread_body 4s\n\t\t\twrite 4s\n\t\t}\n\t}\n\tlog"
    both = {"age-download", "age-upload"}
    lines = ("no servers timeouts write", "no servers timeouts read_body")
    reports = check_all(
        lab,
        Case("caddy", {CADDY_SERVERS: timeouts}, both, lines, True, options=("--idle-limit", "8")),
        Case("caddy", {CADDY_SERVERS: timeouts}, both, lines, True, options=("--idle-limit", "0", "--age-limit", "8")),
        Case("nginx", {}, set(), (), True, options=("--idle-limit", "0", "--age-limit", "4")),
    )
    for found in reports[:2]:
        for name in ("download_s", "upload_s"):
            assert 3.5 <= found["ages"][name] <= 6, found["ages"]
    assert reports[2]["ages"]["download_s"] is None
    assert reports[2]["ages"]["upload_tested_s"] >= 3.5


def test_answers_that_are_none_of_a_tunnel(lab: Lab) -> None:
    """The wrong upstream, path and token; at each, what it says is the proxy's or the server's."""
    upstream = {"nginx": "http-502", "caddy": "http-502", "haproxy": "http-503", "apache": "http-503"}
    words = {"nginx": "proxy_pass", "caddy": "reverse_proxy", "haproxy": "server:", "apache": "ProxyPass"}
    check_all(
        lab,
        *(Case(kind, {}, {code}, (words[kind],), running=False) for kind, code in upstream.items()),
        Case("nginx", {}, {"http-404"}, ("location = /elsewhere",), path="/elsewhere"),
        Case("nginx", {}, {"http-403"}, ("clients[].token",), who="mallory"),
        Case("caddy", {}, {"http-404"}, ('"path": "/ip"',), server={"path": "/another"}),
        Case("haproxy", {}, {"http-403"}, ("clients[].token",), who="mallory"),
    )


def test_tls_and_addresses(lab: Lab) -> None:
    """Everything before HTTP, through one proxy; and a port that does not speak TLS."""
    with pair(lab, "a") as (server, client), ExitStack() as stack:
        config = server_config(listen=["127.0.0.1", SERVER])
        stack.enter_context(running(server, config))
        proxy = stack.enter_context(RECIPES["nginx"](server))
        known = ("--ca-file", str(proxy.ca_file), "--idle-limit", "0")
        probes = {
            "unknown authority": probe(client, f"https://{NAME}/ip", "--idle-limit", "0"),
            "plain http to the port of TLS": probe(client, f"http://{NAME}:443/ip", *known),
            "TLS to a port of HTTP": probe(client, f"https://{NAME}:8080/ip", *known),
            "nobody listens": probe(client, f"https://{NAME}:444/ip", *known),
            "no such name": probe(client, "https://no-such-name.invalid/ip", *known),
            "another name": probe(client, f"https://{SERVER}/ip", *known),
            "no proxy": probe(client, f"http://{SERVER}:8080/ip", "--idle-limit", "0"),
        }
        found = {name: report(process) for name, process in probes.items()}
        expected = {
            "unknown authority": ("tls", "authority"),
            "plain http to the port of TLS": ("http-400", "https://"),
            "TLS to a port of HTTP": ("tls", "plain HTTP|does not speak TLS"),
            "nobody listens": ("tcp", "refused"),
            "no such name": ("dns", "resolve"),
            "another name": ("tls", NAME),
        }
        for name, (code, words) in expected.items():
            text = json.dumps(found[name], indent=1)
            assert found[name]["exit"] == 1, text
            assert serious(found[name]) == {code}, text
            assert re.search(words, found[name]["findings"][0]["text"]), text
        assert found["unknown authority"]["tls"]["days_left"] > 100
        assert found["no proxy"]["usable"]
        assert found["no proxy"]["http"]["proxy"] == "none"
        # Certificates that end.
        authority = trustme.CA()
        authority.cert_pem.write_to_path(proxy.ca_file)
        for days, code, exit_code in ((-2, "tls", 1), (5, "certificate-ends-soon", 0)):
            leaf = authority.issue_cert(NAME, not_after=datetime.now(UTC) + timedelta(days=days))
            leaf.private_key_pem.write_to_path(proxy.directory / "privkey.pem")
            leaf.cert_chain_pems[0].write_to_path(proxy.directory / "fullchain.pem")
            proxy.restart() if days > 0 else _restart_expired(proxy)
            ended = report(probe(client, f"https://{NAME}/ip", *known))
            assert (serious(ended), ended["exit"]) == ({code}, exit_code), ended
            assert days - 1 < ended["tls"]["days_left"] <= days


def _restart_expired(proxy: Proxy) -> None:
    """It listens; nobody who checks its certificate gets an answer."""
    proxy.stop()
    proxy.process = proxy.host.start(proxy.argv(), name=proxy.name, env={"HOME": str(proxy.directory)})
    proxy.host.wait_for_listener(443, by=proxy.process)


def test_a_running_client_is_left_alone(lab: Lab) -> None:
    """Its streams go on, and not a packet is lost; the report says that the token is in use, and tests what it can."""
    with pair(lab, "a") as (server, client), ExitStack() as stack:
        config = server_config()
        del config["listen"]
        stack.enter_context(running(server, config))
        good = stack.enter_context(RECIPES["nginx"](server))
        entry = client_config(server=f"https://{NAME}/ip", tls={"ca_file": str(good.ca_file)})
        daemon = stack.enter_context(running(client, entry, "--log-level", "debug", until=UPLOADING))
        before = daemon.log_end
        started = probe(client, f"https://{NAME}/ip", "--ca-file", str(good.ca_file))
        pings = ping(client, TUNNEL_SERVER, count=100, interval=0.02)
        found = report(started)
        assert (found["exit"], found["usable"], found["token_in_use"]) == (0, True, True), found
        assert found["upload"]["state"] == "streams"
        assert "in use by a running client" in found["verdict"]
        assert any("token is in use" in it for it in found["not_tested"])
        assert pings.ok
        time.sleep(1)
        assert ping(client, TUNNEL_SERVER).ok
        assert "download" not in daemon.log[before:]
        assert "another machine" not in daemon.log


def catches_sigterm(process: Process) -> bool:
    """Whether it has a handler for SIGTERM, which Python itself does not install (proc_pid_status(5))."""
    lines = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
    mask = next(int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:"))
    return bool(mask >> (signal.SIGTERM - 1) & 1)


def test_ctrl_c_and_the_report_for_a_person(lab: Lab) -> None:
    with pair(lab, "a") as (server, client), running(server, server_config()):
        url, file = f"http://{SERVER}:8080/ip", token_file(client)
        for number in (signal.SIGINT, signal.SIGTERM):
            process = client.start([*command(), "probe", url, "--token-file", file], name="tapotun-probe")
            wait_until(lambda: catches_sigterm(process), 30, "the probe to take signals", process.tail)  # noqa: B023
            assert process.stop(with_signal=number) == 128 + number
            assert process.log.splitlines() == [f"tapotun probe: stopped by {number.name}, no verdict"]
        process = client.start(
            [*command(), "probe", url, "--token-file", file, "--idle-limit", "0"], name="tapotun-probe"
        )
        assert process.wait(30) == 0
        assert process.log.splitlines()[-1] == "verdict: usable"
