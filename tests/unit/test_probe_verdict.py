"""probe.verdict, probe.remedies, probe.identify and probe.report: from what was measured to what a person reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields
from typing import Final, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.config.model import DeviceKind
from tapotun_trio.probe.identify import identify
from tapotun_trio.probe.measured import (
    Ages,
    Direction,
    Dns,
    Http,
    Idle,
    Kind,
    Measured,
    PathMtu,
    Rtt,
    Tcp,
    Throughput,
    Tls,
    WebSocket,
)
from tapotun_trio.probe.remedies import NAMES, Fault, lines
from tapotun_trio.probe.report import VERSION, report_json, report_text
from tapotun_trio.probe.verdict import Verdict, judge, may_replace_get

from ..tables import table

KINDS: Final[tuple[Kind, ...]] = get_args(Kind)
FAULTS: Final[tuple[Fault, ...]] = get_args(Fault)


def good(kind: Kind = "nginx") -> Measured:
    """Everything was measured, and nothing is wrong."""
    return Measured(
        "https://vpn.example.com/ip",
        dns=Dns("vpn.example.com", 1.0, ["192.0.2.1"]),
        tcp=Tcp(2.0, "192.0.2.1"),
        tls=Tls(5.0, "TLSv1.3", ["TLSv1.2", "TLSv1.3"], 60.0, "an authority"),
        http=Http(3.0, 200, "extended", kind, keepalive_s=10.0),
        download=Direction("streams"),
        upload=Direction("streams", held_ms=0.5),
        rtt=Rtt(10, 2.0, 2.5, 4.0),
        throughput=Throughput(120.0, 80.0, 2_000_000),
        websocket=WebSocket(True, 101),
        idle=Idle(20.0, 20.0, 20.0),
    )


def judged(change: Callable[[Measured], object], kind: Kind = "nginx") -> tuple[Verdict, Measured]:
    it = good(kind)
    change(it)
    return judge(it), it


def changes(verdict: Verdict) -> str:
    return "\n".join(line for finding in verdict.findings for line in finding.change)


@pytest.mark.parametrize("kind", KINDS)
def test_good(kind: Kind) -> None:
    verdict, it = judged(lambda it: None, kind)
    assert (verdict.usable, verdict.selector, verdict.findings) == (True, "http", [])
    assert report_text(it, verdict).endswith("\nverdict: usable")


def _http(status: int | None, **named: object) -> Callable[[Measured], object]:
    def change(it: Measured) -> None:
        assert it.http is not None
        it.http.status = status
        it.http.error = f"answered {status}"
        for name, value in named.items():
            setattr(it.http, name, value)
        it.download, it.upload, it.rtt, it.idle = Direction(), Direction(), None, None
        it.websocket = WebSocket()

    return change


@table(
    "change code words",
    ("dns", lambda it: setattr(it, "dns", Dns("x", error="x does not resolve")), "dns", ""),
    ("tcp", lambda it: setattr(it, "tcp", Tcp(error="cannot connect")), "tcp", ""),
    ("tls", lambda it: setattr(it, "tls", Tls(error="has expired")), "tls", ""),
    ("no answer", _http(None), "no-answer", ""),
    ("our server's 403", _http(403, own=True), "http-403", "clients[].token"),
    ("the proxy's 403", _http(403), "http-403", "no deny"),
    ("401", _http(401), "http-401", "auth_basic"),
    ("405", _http(405), "http-405", "auth_basic"),
    ("our server's 404", _http(404, own=True), "http-404", '"path": "/ip"'),
    ("the proxy's 404", _http(404), "http-404", "location = /ip { proxy_pass ... }"),
    ("413 to a GET", _http(413), "http-413", "client_max_body_size 0"),
    ("502", _http(502), "http-502", "proxy_pass"),
    ("503", _http(503), "http-503", "proxy_pass"),
    ("504", _http(504), "http-504", "proxy_pass"),
    ("moved", _http(301), "http-301", ""),
    ("a web page", _http(200), "not-tapotun", ""),
    (
        "download broken",
        lambda it: setattr(it, "download", Direction("broken", error="closed")),
        "download-broken",
        "",
    ),
    (
        "ended while it carried data",
        lambda it: setattr(it, "upload", Direction("streams", ended_after_s=3.0, error="closed")),
        "upload-cut",
        "client_body_timeout 5m;",
    ),
    (
        "idle download",
        lambda it: setattr(it, "idle", Idle(20, 5, 20, download_s=5.0)),
        "idle-download",
        "proxy_read_timeout 5m;",
    ),
    (
        "idle upload",
        lambda it: setattr(it, "idle", Idle(20, 20, 11.9, upload_s=11.9)),
        "idle-upload",
        "client_body_timeout 5m;",
    ),
    (
        "dead, and nobody said so",
        lambda it: setattr(it, "idle", Idle(20, 20, 20, upload_s=20.0, upload_late=True)),
        "idle-upload",
        "client_body_timeout 5m;",
    ),
)
def test_not_usable(change: Callable[[Measured], object], code: str, words: str) -> None:
    verdict, it = judged(change)
    assert (verdict.usable, verdict.selector) == (False, None)
    assert [finding.code for finding in verdict.findings if finding.severity == "fault"] == [code]
    assert words in changes(verdict)
    assert verdict.text.startswith("not usable: ")
    assert report_text(it, verdict).splitlines()[-1].startswith("verdict: not usable: ")


@table(
    "change code words",
    ("ends soon", lambda it: setattr(it.tls, "days_left", 3.0), "certificate-ends-soon", ""),
    ("an address that is dead", lambda it: it.tcp.unreachable.update({"::1": "no route"}), "address-unreachable", ""),
    ("late", lambda it: setattr(it.upload, "held_ms", 900.0), "upload-late", "proxy_request_buffering"),
    ("small packets wait", lambda it: setattr(it, "rtt", Rtt(10, 90, 113.0, 200)), "delay", "tcp_nodelay"),
    (
        "timeouts that do for this keepalive",
        lambda it: setattr(it, "idle", Idle(40, 40, 30, upload_s=30.0)),
        "idle-upload",
        "client_body_timeout",
    ),
)
def test_usable_with_a_warning(change: Callable[[Measured], object], code: str, words: str) -> None:
    verdict, _ = judged(change)
    assert (verdict.usable, verdict.selector, verdict.text) == (True, "http", "usable, with warnings")
    assert [(it.severity, it.code) for it in verdict.findings] == [("warning", code)]
    assert words in changes(verdict)


def test_an_address_to_which_this_machine_has_no_route_is_not_called_dead() -> None:
    """A machine without IPv6, and a name with both families."""
    verdict, _ = judged(lambda it: setattr(it.tcp, "no_route", ["2001:db8::1"]))
    assert (verdict.usable, verdict.text) == (True, "usable")
    assert [(it.severity, it.code) for it in verdict.findings] == [("note", "address-not-tried")]
    assert "no route to 2001:db8::1" in verdict.findings[0].text


def test_notes_change_nothing() -> None:
    def change(it: Measured) -> None:
        assert it.tls is not None
        assert it.http is not None
        it.tls.offered = ["TLSv1", "TLSv1.2"]
        it.http.server, it.http.keepalive_s = "base", None
        it.websocket = WebSocket(False, 426, "426")

    verdict, _ = judged(change)
    assert (verdict.usable, verdict.text) == (True, "usable")
    assert [(it.severity, it.code) for it in verdict.findings] == [
        ("note", "old-tls"),
        ("note", "base-server"),
        ("note", "websocket"),
    ]


def test_a_base_server_needs_more_of_timeouts() -> None:
    def change(it: Measured) -> None:
        assert it.http is not None
        it.http.server, it.http.keepalive_s = "base", None
        it.idle = Idle(60, 54, 50, upload_s=50.0)

    verdict, _ = judged(change)
    assert not verdict.usable
    assert "55 s" in verdict.text


# ------------------------------------------------------------------ WebSockets


def _held(it: Measured) -> None:
    it.upload = Direction("held-back", held_until_end=True)


@pytest.mark.parametrize("transport", ["auto", "http", "websocket"])
@pytest.mark.parametrize("passes", [True, False, None])
def test_an_upload_that_is_held_back(transport: str, passes: bool | None) -> None:
    """By default the client goes on over a WebSocket; with `transport: http` it may not."""
    it = good()
    _held(it)
    it.transport = transport  # type: ignore[assignment]
    it.websocket = WebSocket(passes, error=None if passes else "426")
    verdict = judge(it)
    assert "proxy_request_buffering off;" in changes(verdict)
    # HTTP/1.0 to the upstream is the other cause, and lets no WebSocket pass.
    assert ("proxy_http_version 1.1;" in changes(verdict)) is (passes is not True)
    usable = passes is True and transport != "http"
    assert (verdict.usable, verdict.selector) == (usable, "websocket" if usable else None)
    assert verdict.text.startswith("usable, over a WebSocket" if usable else "not usable: ")


@table(
    "change code",
    ("the download is held back", lambda it: setattr(it, "download", Direction("held-back")), "download-held"),
    ("uploads are refused", lambda it: setattr(it, "upload", Direction("broken", status=405)), "upload-broken"),
    (
        "held back, and limited: what nginx does by itself",
        lambda it: setattr(it, "upload", Direction("held-back", status=413, ended_after_bytes=1 << 20)),
        "upload-held",
    ),
    (
        "uploads stream up to a limit of their size",
        lambda it: setattr(it, "upload", Direction("streams", status=413, ended_after_bytes=1 << 20)),
        "upload-limit",
    ),
    ("a GET is refused by a proxy", _http(404), "http-404"),
    ("a GET is refused by a firewall", _http(403), "http-403"),
    ("a GET is not answered", _http(None), "no-answer"),
    ("a web page", _http(200), "not-tapotun"),
)
def test_what_a_client_replaces_by_a_websocket(change: Callable[[Measured], object], code: str) -> None:
    for transport, passes in (("auto", True), ("auto", False), ("http", True)):
        it = good()
        change(it)
        it.transport, it.websocket = transport, WebSocket(passes)  # type: ignore[assignment]
        verdict = judge(it)
        usable = transport == "auto" and passes
        assert (verdict.usable, verdict.selector) == (usable, "websocket" if usable else None)
        assert code in [finding.code for finding in verdict.findings if finding.severity == "fault"]


@pytest.mark.parametrize("status", [401, 429, 500, 502, 503, 504, 511])
def test_answers_of_a_server_that_is_away_are_no_matter_of_the_transport(status: int) -> None:
    assert not may_replace_get(Http(status=status, error="x"))
    assert not may_replace_get(Http(status=404, own=True, error="x"))
    assert may_replace_get(Http(status=404, error="x"))


def test_large_packets_are_lost() -> None:
    """A client finds a smaller size, if there is one."""

    def change(it: Measured) -> None:
        it.path_mtu = PathMtu(False, 1448, 1220, "192.0.2.1")

    verdict, it = judged(change)
    assert (verdict.usable, verdict.selector) == (True, "http")
    assert [(it.severity, it.code) for it in verdict.findings] == [("fault", "path-mtu")]
    assert "segments of at most 1220 bytes" in verdict.text
    assert "ICMP type 3 code 4" in changes(verdict)
    assert "large packets are lost (segments of 1448 bytes); segments of 1220 bytes pass" in report_text(it, verdict)
    it.path_mtu.passing_bytes = None
    it.download = it.upload = Direction()
    verdict = judge(it)
    assert not verdict.usable
    assert "smaller ones do not help" in verdict.text


@pytest.mark.parametrize("ok", [True, False])
def test_nothing_but_a_websocket(ok: bool) -> None:
    it = good()
    it.transport, it.websocket = "websocket", WebSocket(ok, error=None if ok else "426")
    verdict = judge(it)
    assert (verdict.usable, verdict.selector) == (ok, "websocket" if ok else None)


def test_a_websocket_as_a_way_out() -> None:
    """The client does not find it by itself where uploads are ended now and then."""
    verdict, _ = judged(lambda it: setattr(it, "upload", Direction("streams", ended_after_s=3.0, error="closed")))
    assert not verdict.usable
    assert verdict.findings[-1].change == ('"transport": "websocket"',)
    verdict, _ = judged(lambda it: setattr(it, "idle", Idle(20, 3, 20, download_s=3.0)))
    assert "websocket-passes" not in [it.code for it in verdict.findings]  # it would be silent as long


# ------------------------------------------------------------------ a token in use


def test_a_token_in_use() -> None:
    it = good()
    _http(409)(it)
    it.token_in_use = True
    verdict = judge(it)
    assert verdict.usable
    assert "in use by a running client" in verdict.text
    it.upload = Direction()
    assert judge(it).usable
    _held(it)
    verdict = judge(it)
    assert (verdict.usable, verdict.selector) == (True, "websocket")
    it.transport = "http"
    verdict = judge(it)
    assert not verdict.usable
    assert "held back" in verdict.text


def test_nothing_was_reached() -> None:
    it = Measured("https://vpn.example.com/ip")
    verdict = judge(it)
    assert not verdict.usable
    assert report_text(it, verdict)
    assert json.loads(report_json(it, verdict))["http"] is None


# ------------------------------------------------------------------ remedies and who is who


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_proxy_and_every_fault_has_a_line(kind: Kind, fault: Fault) -> None:
    found = lines(kind, fault, "/some/path")
    assert found
    assert all(line and "{path}" not in line and "{{" not in line for line in found)
    assert NAMES[kind]


@table(
    "headers names kind",
    ("nginx", {"server": "nginx/1.22.1"}, ["Server"], "nginx"),
    ("OpenResty", {"server": "openresty"}, ["Server"], "nginx"),
    ("Caddy", {"server": "Caddy"}, ["Server"], "caddy"),
    ("Caddy, newer", {"via": "1.1 Caddy"}, ["Via"], "caddy"),
    ("Apache", {"server": "Apache/2.4.68 (Debian)"}, ["Server"], "apache"),
    ("HAProxy, which writes lower case", {"content-type": "a"}, ["content-type", "x-tun-conf"], "haproxy"),
    ("our server", {"content-type": "a"}, ["Content-Type", "x-tun-conf"], "none"),
    ("Cloudflare", {"server": "cloudflare", "cf-ray": "1"}, ["Server", "CF-RAY"], "cloudflare"),
    ("CloudFront", {"via": "1.1 abc.cloudfront.net (CloudFront)"}, ["Via"], "cloudfront"),
    ("Fastly", {"x-served-by": "cache-fra-1"}, ["X-Served-By"], "fastly"),
    ("Varnish", {"via": "1.1 v1 (Varnish/7.1)", "x-varnish": "5"}, ["Via", "X-Varnish"], "varnish"),
    ("Varnish, older", {"via": "1.1 varnish"}, ["Via"], "varnish"),
    ("Squid, on a host called nginx", {"via": "1.1 nginx (squid/5.7)"}, ["Via"], "squid"),
    ("Traffic Server", {"server": "ATS/9.2.5"}, ["Server"], "trafficserver"),
    ("Traffic Server", {"via": "http/1.1 a (ApacheTrafficServer/9.2.5 [cMsSfW])"}, ["Via"], "trafficserver"),
    ("lighttpd", {"server": "lighttpd/1.4.69"}, ["Server"], "lighttpd"),
    ("Envoy", {"server": "envoy"}, ["server"], "envoy"),
    ("Envoy that forwards Server", {"x-envoy-upstream-service-time": "1"}, ["x"], "envoy"),
    ("Node", {"date": "x", "keep-alive": "timeout=5"}, ["content-type", "Date", "Keep-Alive"], "node"),
    ("Express", {"x-powered-by": "Express"}, ["X-Powered-By"], "node"),
    (
        "Go",
        {"date": "x", "content-type": "a"},
        ["Cache-Control", "Content-Type", "X-Tun-Conf", "Date", "Transfer-Encoding"],
        "traefik",
    ),
    ("something else", {"server": "gunicorn"}, ["Server"], "unknown"),
    ("a date alone", {"date": "x"}, ["Date", "Content-Type"], "unknown"),
    ("no headers", {}, [], "unknown"),
)
def test_who_it_is(headers: dict[str, str], names: list[str], kind: Kind) -> None:
    assert identify(headers, names) == [kind]


def test_several_proxies() -> None:
    """The last in Via is the nearest; who sends Server cannot be placed."""
    headers = {"via": "1.1 a (Varnish/7.1), 1.1 b (squid/5.7)", "server": "nginx/1.22.1"}
    assert identify(headers, ["Via", "Server"]) == ["squid", "varnish", "nginx"]
    assert identify({"server": "nginx", "cf-ray": "1"}, ["Server", "CF-RAY"]) == ["cloudflare", "nginx"]
    it = good("squid")
    assert it.http is not None
    it.http.proxies, it.http.server_header, it.http.via = ["squid", "nginx"], "nginx", "1.1 b (squid/5.7)"
    _held(it)
    verdict = judge(it)
    assert "nginx: proxy_request_buffering off;" in changes(verdict)
    assert "the config of Squid or nginx" in [finding.where for finding in verdict.findings]
    assert "Squid and nginx (Server: nginx; Via: 1.1 b (squid/5.7))" in report_text(it, verdict)


def test_something_ends_tls() -> None:
    """Our server does not, so there is a proxy, also if it adds nothing."""
    names = ["Content-Type", "x-tun-conf"]
    assert identify({"content-type": "a"}, names) == ["none"]
    assert identify({"content-type": "a"}, names, https=True) == ["unknown"]
    assert identify({"content-type": "a"}, names, https=True, issuer="TRAEFIK DEFAULT CERT") == ["traefik"]


@given(st.dictionaries(st.text(), st.text()), st.lists(st.text()), st.booleans())
def test_any_headers(headers: dict[str, str], names: list[str], https: bool) -> None:
    found = identify(headers, names, https=https)
    assert found
    assert set(found) <= set(KINDS)
    assert not (https and "none" in found)


@pytest.mark.parametrize(
    ("wanted", "found", "words"),
    [
        (None, "tun", None),
        (None, "tap", None),
        ("tun", "tun", None),
        ("tap", "tap", None),
        ("tap", None, None),
        ("tap", "tun", 'carries IP packets, and this client\'s config says "device": "tap"'),
        ("tun", "tap", 'carries Ethernet frames, and this client\'s config says "device": "tun"'),
    ],
)
def test_the_kind_of_the_interface(wanted: DeviceKind | None, found: DeviceKind | None, words: str | None) -> None:
    def change(it: Measured) -> None:
        assert it.http is not None
        it.device, it.http.device = wanted, found

    verdict, it = judged(change)
    assert ("carries Ethernet frames" in report_text(it, verdict).split("\n\n")[0]) == (found == "tap")
    if words is None:
        assert (verdict.usable, verdict.findings) == (True, [])
        return
    (finding,) = verdict.findings
    assert not verdict.usable
    assert words in finding.text
    assert words in verdict.text
    assert (finding.code, finding.where, finding.change) == (
        "wrong-device",
        "the client's config",
        (f'"device": "{found}"',),
    )


# ------------------------------------------------------------------ the report


def test_the_report_for_programs() -> None:
    it = good()
    _held(it)
    report = json.loads(report_json(it, judge(it)))
    assert report["version"] == VERSION == 1
    assert set(report) == {"version", "usable", "carrier", "verdict", "findings"} | {it.name for it in fields(Measured)}
    assert report["upload"]["state"] == "held-back"
    assert set(report["findings"][0]) == {"severity", "code", "text", "where", "change"}


def test_the_report_for_a_person() -> None:
    it = good()
    it.outgoing_proxy = "proxy.example.com:3128"
    it.not_tested = ["something: because"]
    it.upload = Direction("held-back", held_bytes=16384)
    it.idle = Idle(20, 5, 20, download_s=5.0, upload_s=20.0, upload_late=True)
    text = report_text(it, judge(it))
    for words in (
        "through proxy.example.com:3128",
        "TLSv1.3; offers TLSv1.2, TLSv1.3; the certificate (from an authority) has 60 days left",
        "200 after 3.0 ms; nginx; tapotun, extended protocol, keepalive 10 s",
        "held back until about 16384 bytes have arrived",
        "2.0 ms min, 2.5 ms median, 4.0 ms max",
        "up 120 Mbit/s, down at least 80.0 Mbit/s",
        "download ended after 5.0 s of silence, upload dead after at most 20.0 s of silence",
        "not tested  something: because",
        "what to change in the config of nginx:\n    proxy_request_buffering off;",
        "docs/deploy.md",
    ):
        assert words in text


def test_nothing_of_a_terminal_s_own() -> None:
    """What the far end says of itself cannot act on whoever reads it."""
    it = good("unknown")
    assert it.http is not None
    it.http.server_header = "evil\x1b[2J\r\nverdict: usable"
    text = report_text(it, judge(it))
    assert "\x1b" not in text
    assert len([line for line in text.splitlines() if line.startswith("verdict")]) == 1


def test_a_limit_of_age_is_what_the_client_copes_with() -> None:
    """Not a fault, also where the streams of other steps met it, and a silent stream."""

    def change(it: Measured) -> None:
        it.ages = Ages(6.0, 3.1, 6.0, download_s=3.0)
        it.download = Direction("broken", ended_after_s=3.05, error="connection closed inside a chunked body")
        it.idle = Idle(20, 3.2, 20, download_s=3.2)

    verdict, it = judged(change, "caddy")
    assert verdict.usable
    assert [(finding.severity, finding.code) for finding in verdict.findings] == [("warning", "age-download")]
    assert "no servers timeouts write" in changes(verdict)
    assert "replaces each after 1.8 to 2.4 s" in verdict.findings[0].text
    assert "download ended at 3.0 s, upload survives 6 s" in report_text(it, verdict)


def test_a_silent_stream_that_ends_before_that_age_is_a_fault() -> None:
    def change(it: Measured) -> None:
        it.ages = Ages(60.0, 30.0, 60.0, download_s=30.0)
        it.idle = Idle(20, 5, 20, download_s=5.0)

    verdict, _ = judged(change)
    assert {finding.code for finding in verdict.findings} == {"idle-download", "age-download"}
    assert not verdict.usable


def test_an_upload_that_is_cut_at_its_age() -> None:
    def change(it: Measured) -> None:
        it.upload.ended_after_s, it.upload.error = 3.0, "closed"
        it.ages = Ages(5.0, 5.0, 3.0, upload_s=3.0)

    verdict, _ = judged(change)
    assert verdict.usable
    assert [finding.code for finding in verdict.findings] == ["age-upload"]
