"""Judges the results: whether a client can use the path, and what to change. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, TypeAlias

from ..client.ages import SHARE, Limit, StreamKind, likely
from ..client.transport_choice import NOT_OF_THE_PATH
from ..config.model import DeviceKind
from ..host.net.segments import explain
from ..text import listed
from .ages import is_same_limit
from .measured import Direction, Http, Kind, Measured
from .remedies import NAMES, Fault, lines

Severity: TypeAlias = Literal["fault", "warning", "note"]
"""``fault``: the tunnel does not work well until it is changed; ``warning``: it works with limits; ``note``: a fact."""

EXPIRES_SOON_DAYS: Final = 14.0
OLD_TLS: Final = ("TLSv1", "TLSv1.1")
# A PING that takes this much longer than a whole request is delayed: HAProxy adds 100 to 200 ms, the kernel 40.
DELAY_MS: Final = 30.0
# An upload whose first bytes arrive, but with this delay, is late.
LATE_MS: Final = 500.0
# Deployed peers ping a stream after this time, so a proxy's timeouts must be longer.
BASE_PING_S: Final = 55.0
# A timeout must exceed the keepalive by this factor, because a keepalive may be late.
MARGIN: Final = 1.2
_PATH_MTU_LINES: Final = (
    "let ICMP type 3 code 4 (fragmentation needed) and ICMPv6 type 2 (packet too big) pass",
    "or, on the router of the link with the small MTU: "
    "nft add rule inet filter forward tcp flags syn tcp option maxseg size set rt mtu",
)
# Faults that may affect a WebSocket too.
_SILENCE: Final = frozenset({"idle-download", "idle-upload"})
PATH_MTU: Final = "path-mtu"
# _CHANGING: faults that make a client with transport "auto" try a WebSocket. _GET: prefixes of the codes for a GET that
# was not served.
_CHANGING: Final = frozenset({"upload-held", "upload-broken", "download-held"})
_GET: Final = ("http-", "no-answer", "not-tapotun")
RECIPES: Final = "complete files are in conf/proxies, the reasons in docs/deploy.md"


_AGES: Final[tuple[tuple[Literal["download", "upload"], StreamKind, Literal["age-download", "age-upload"]], ...]] = (
    ("download", StreamKind.DOWNLOAD, "age-download"),
    ("upload", StreamKind.UPLOAD, "age-upload"),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. ``code``: for programs, never changes; ``change``: lines for the config that ``where`` names."""

    severity: Severity
    code: str
    text: str
    where: str = ""
    change: tuple[str, ...] = ()


@dataclass(slots=True)
class Verdict:
    """``selector``: the transport that a client would use; None: none works. ``text``: the verdict as a line."""

    usable: bool = False
    selector: Literal["http", "websocket"] | None = None
    text: str = ""
    findings: list[Finding] = field(default_factory=list)


def judge(measured: Measured) -> Verdict:
    """The verdict. Findings come in the order of the path, faults first within a step."""
    verdict = Verdict()
    _Judge(measured, verdict.findings).judge()
    faults = {finding.code for finding in verdict.findings if finding.severity == "fault"}
    if measured.path_mtu.passing_bytes is not None:
        faults.discard(PATH_MTU)  # a client finds a passing size as the probe did
    reached = measured.http is not None and measured.http.status == 200
    # Faults of GET and PUT. A WebSocket may work in spite of them.
    http_only = {code for code in faults if code.startswith(("upload-", "download-", "idle-", *_GET))}
    websocket = measured.websocket.ok is True and not faults - http_only - {"websocket"}
    if measured.token_in_use:
        # Uploads that are held back leave only a WebSocket, which cannot be tested while the token is in use.
        moves = measured.transport == "auto" and faults == {"upload-held"}
        verdict.usable = not faults or moves
        verdict.selector = None if not verdict.usable else "websocket" if moves else "http"
    elif measured.transport != "websocket" and reached and not faults:
        verdict.usable, verdict.selector = True, "http"
    elif measured.transport == "websocket" or (
        measured.transport == "auto"
        and (_changes_to_websocket(http_only) or measured.upload.state == "broken" or measured.upload.status == 413)
        and not http_only & _SILENCE
    ):
        verdict.usable, verdict.selector = websocket, "websocket" if websocket else None
    if websocket and not verdict.usable and measured.transport == "auto" and http_only and not faults & _SILENCE:
        _suggest_websocket(verdict)
    verdict.text = _text(measured, verdict)
    return verdict


def may_replace_get(http: Http) -> bool:
    """Whether a client tries a WebSocket after such an answer to its GET.

    It does not if the server itself refused the GET. Nor does it if a proxy wants a login, limits the rate, or does not
    reach the server.
    """
    if http.status == 200:
        return http.error is not None
    return http.status is None or (not http.own and http.status not in NOT_OF_THE_PATH)


def _changes_to_websocket(faults: set[str]) -> bool:
    """Whether one of these faults makes a client replace GET and PUT by a WebSocket (`client.transport_choice`)."""
    return any(code in _CHANGING or code.startswith(_GET) for code in faults)


def _suggest_websocket(verdict: Verdict) -> None:
    text = "a WebSocket passes: until the proxy is changed, the client can use only that"
    verdict.findings.append(
        Finding("note", "websocket-passes", text, "the client's config", ('"transport": "websocket"',))
    )


def _text(measured: Measured, verdict: Verdict) -> str:
    size = measured.path_mtu.passing_bytes
    faults = [
        finding
        for finding in verdict.findings
        if finding.severity == "fault" and (size is None or finding.code != PATH_MTU)
    ]
    limited = "" if size is None else f", with segments of at most {size} bytes, since larger ones are lost (MTU)"
    if measured.token_in_use:
        if verdict.usable:
            over = ", over a WebSocket," if verdict.selector == "websocket" else ""
            return f"usable{limited}{over} as far as could be tested: this token is in use by a running client"
        return f"not usable: {faults[0].text}"
    if verdict.selector == "websocket":
        because = f"; GET and PUT are not ({faults[0].text})" if faults else ""
        return f"usable, over a WebSocket{limited}{because}"
    if verdict.usable:
        warned = any(finding.severity == "warning" for finding in verdict.findings)
        untested = " as far as could be tested" if measured.upload.state == "not-tested" else ""
        return f"usable{limited}{untested}{', with warnings' if warned else ''}"
    return f"not usable: {faults[0].text}" if faults else "not usable: not tested to the end"


class _Judge:
    """One pass over the measurements."""

    def __init__(self, measured: Measured, findings: list[Finding]) -> None:
        self._measured = measured
        self._findings = findings
        self._kind: Kind = measured.http.proxy if measured.http is not None else "unknown"
        self._kinds = [self._kind] if measured.http is None else measured.http.proxies or [self._kind]
        rest = measured.url.partition("://")[2]
        self._path = "/" + rest.partition("/")[2].partition("?")[0]

    def judge(self) -> None:
        self._path_mtu()
        if self._connection() and self._answer():
            self._download()
            self._upload()
            self._delay()
            self._websocket()
            self._idle()
            self._ages()

    def _add(self, severity: Severity, code: str, text: str, where: str = "", *change: str) -> None:
        self._findings.append(Finding(severity, code, text, where, change))

    def _blame(self, severity: Severity, code: str, text: str, fault: Fault) -> None:
        """Add a finding with the lines that the proxy's config needs. If there are several proxies, any of them may be
        the cause, so the lines for each are given."""
        kinds = self._kinds
        if kinds == ["none"]:
            where = "the device or proxy between this machine and the server"
        else:
            names = " or ".join(map(NAMES.__getitem__, kinds))
            where = f"the config of {names}"
        change = [
            line if len(kinds) == 1 else f"{NAMES[kind]}: {line}"
            for kind in kinds
            for line in lines(kind, fault, self._path)
        ]
        self._add(severity, code, text, where, *change)

    # -- up to the connection

    def _path_mtu(self) -> None:
        found = self._measured.path_mtu
        if found.ok is False and found.address is not None:
            text = explain(found.address, found.lost_bytes, found.passing_bytes)
            self._add("fault", PATH_MTU, text, "the firewalls and routers on the path", *_PATH_MTU_LINES)

    def _connection(self) -> bool:
        """Whether there was a connection, so that there may be a response."""
        measured = self._measured
        for code, step in (("dns", measured.dns), ("tcp", measured.tcp)):
            if step is not None and step.error is not None:
                self._add("fault", code, step.error)
                return False
        if measured.tcp is not None:
            for address, error in measured.tcp.unreachable.items():
                text = f"the name has the address {address}, which does not answer ({error}); serve it or remove it"
                self._add("warning", "address-unreachable", text)
            if measured.tcp.no_route:
                text = f"this machine has no route to {listed(measured.tcp.no_route)}, which other machines may use"
                self._add("note", "address-not-tried", f"{text}; nothing was found out about that")
        return self._tls()

    def _tls(self) -> bool:
        tls = self._measured.tls
        if tls is None:
            return self._measured.http is not None
        if tls.error is not None:
            self._add("fault", "tls", tls.error)
            return False
        if tls.days_left is not None and tls.days_left < EXPIRES_SOON_DAYS:
            text = f"the certificate expires in {tls.days_left:.1f} days; renew it"
            self._add("warning", "certificate-ends-soon", text)
        old = [version for version in tls.offered if version in OLD_TLS]
        if old:
            text = f"the server still offers {' and '.join(old)} (RFC 8996 forbids them); the tunnel does not use them"
            self._add("note", "old-tls", text)
        return self._measured.http is not None

    # -- the response

    def _answer(self) -> bool:
        """Whether streams were tested."""
        http, measured = self._measured.http, self._measured
        assert http is not None, "called only if there is one"
        if measured.token_in_use:
            text = "this token is in use by a running client, which was not disturbed: only tests that need no session "
            self._add("note", "token-in-use", f"{text}were made; for the others, stop the client or add a token")
        elif http.status is None:
            if measured.download.state == "held-back":
                return True
            self._add("fault", "no-answer", http.error or "there was no answer")
            return False
        elif http.status != 200:
            self._status(http, http.status)
            return False
        elif http.error is not None:
            self._add("fault", "not-tapotun", http.error)
            return False
        self._device(measured.device, http.device)
        self._families(http)
        if http.server == "base":
            text = "the server knows only the base protocol: round trip, throughput and WebSocket cannot be tested"
            text += "; the probe ended the download of any client that runs with this token, which then reconnected"
            self._add("note", "base-server", text)
        return True

    def _device(self, wanted: DeviceKind | None, found: DeviceKind | None) -> None:
        """A client refuses a server whose interface is not of the kind that its config asks for, or the server does."""
        if wanted is not None and found is not None and found != wanted:
            carries = "Ethernet frames" if found == "tap" else "IP packets"
            text = f'the server\'s interface carries {carries}, and this client\'s config says "device": "{wanted}"'
            self._add("fault", "wrong-device", text, "the client's config", f'"device": "{found}"')

    def _families(self, http: Http) -> None:
        """The probe offers IPv6 on any machine. A client does not offer what its machine lacks, and is refused by a
        server that has nothing else for it."""
        if self._measured.has_ipv6 or not http.ipv6:
            return
        lacking = "this machine has no IPv6, or it is switched off (disable_ipv6)"
        if http.ipv4:
            self._add("note", "no-ipv6", f"{lacking}: the tunnel carries IPv4 only, and the server offers IPv6 too")
            return
        text = f"the server has only IPv6 addresses for this client, and {lacking}"
        self._add("fault", "no-ipv6", text, "this machine", self._measured.ipv6_remedy)

    def _status(self, http: Http, status: int) -> None:
        text = http.error or f"the response is {status}"
        if status in (502, 503, 504):
            self._blame("fault", f"http-{status}", text, "upstream")
        elif status == 404 and http.own:
            text = f"{text}; the tapotun server was reached, and has a different path"
            self._add("fault", "http-404", text, "the server's config", f'"path": "{self._path}"')
        elif status == 404:
            self._blame("fault", "http-404", text, "path")
        elif status == 403 and http.own:
            hint = "the hash that `tapotun token` printed for this token, in clients[].token"
            self._add("fault", "http-403", text, "the server's config", hint)
        elif status == 401 and "Basic auth" in text:
            change = ('"user": "..."', '"password_file": "/etc/tapotun/password"')
            self._add("fault", "http-401", text, "the client's config", *change)
        elif status in (401, 403, 405):
            self._blame("fault", f"http-{status}", text, "forbidden")
        elif status == 413:
            self._blame("fault", "http-413", text, "upload-limit")
        else:
            self._add("fault", f"http-{status}", text)

    # -- the streams

    def _download(self) -> None:
        down = self._measured.download
        if down.state == "held-back":
            text = f"the download is held back: {_held(down, 'answered')}"
            self._blame("fault", "download-held", text, "download-held")
        elif down.state == "broken" and not is_same_limit(self._age_s("download"), down.ended_after_s or 0.0):
            self._add("fault", "download-broken", f"the download broke: {down.error}")

    def _upload(self) -> None:
        up = self._measured.upload
        if up.state == "held-back":
            self._blame("fault", "upload-held", f"the upload is held back: {_held(up, 'sent')}", "upload-held")
            # nginx with HTTP/1.0 to its upstream looks the same, but does not pass a WebSocket.
            if self._kind == "nginx" and self._measured.websocket.ok is not True:
                found = self._findings[-1]
                change = ("proxy_http_version 1.1;", *found.change)
                self._findings[-1] = Finding(found.severity, found.code, found.text, found.where, change)
        elif up.held_ms is not None and up.held_ms > LATE_MS:
            text = f"the first bytes of an upload arrive {up.held_ms:.0f} ms late"
            self._blame("warning", "upload-late", text, "upload-held")
        if up.status == 413:
            text = (
                f"the proxy ended an upload with 413 after about {_size(up.ended_after_bytes or 0)}: it limits the size"
            )
            self._blame("fault", "upload-limit", text, "upload-limit")
        elif up.ended_after_s is not None and not is_same_limit(self._age_s("upload"), up.ended_after_s):
            how = up.error or f"answered {up.status}"
            text = f"an upload was ended {up.ended_after_s:.1f} s after its beginning, while it carried data ({how})"
            self._blame("fault", "upload-cut", text, "idle-upload")
        elif up.state == "broken":
            what = "the upload broke" if up.status is None else "uploads are refused"
            self._add("fault", "upload-broken", f"{what}: {up.error or f'answered {up.status}'}")
        if self._measured.upload_refused is not None:
            text = f"a later upload was refused, although the first was not: {self._measured.upload_refused}"
            self._add("warning", "upload-refused", text)

    def _delay(self) -> None:
        rtt, http = self._measured.rtt, self._measured.http
        if rtt is None or http is None or http.ms is None:
            return
        delay_ms = rtt.median_ms - http.ms
        if delay_ms > DELAY_MS:
            compared = f"a whole request takes {http.ms:.0f} ms, a PING {rtt.median_ms:.0f} ms"
            self._blame(
                "warning", "delay", f"small packets are delayed by about {delay_ms:.0f} ms: {compared}", "delay"
            )

    def _websocket(self) -> None:
        websocket = self._measured.websocket
        if websocket.ok is False:
            held = "held-back" in (self._measured.download.state, self._measured.upload.state)
            needed = self._measured.transport == "websocket" or held or self._measured.upload.state == "broken"
            severity: Severity = "fault" if self._measured.transport == "websocket" else "warning" if needed else "note"
            tail = "" if needed else "; not needed while uploads stream"
            self._blame(severity, "websocket", f"a WebSocket does not pass ({websocket.error}){tail}", "websocket")

    def _age_s(self, name: Literal["download", "upload"]) -> float | None:
        """The age at which streams of this direction are ended; None: not known."""
        ages = self._measured.ages
        return None if ages is None else ages.download_s if name == "download" else ages.upload_s

    def _ages(self) -> None:
        """Report age limits, but not as faults: our client replaces its streams in time. A deployed one does not."""
        for name, kind, fault in _AGES:
            age_s = self._age_s(name)
            if age_s is None:
                continue
            least_s, most_s = (share * age_s for share in SHARE)
            text = (
                f"{name}s are ended at an age of {age_s:.1f} s, even while data flows, probably by "
                f"{likely(kind, Limit(age_s, None))}; a client notices that after two, then replaces each after "
                f"{least_s:.1f} to {most_s:.1f} s, and nothing is lost; a deployed client loses its streams each time"
            )
            self._blame("warning", fault, text, fault)

    def _idle(self) -> None:
        idle, http = self._measured.idle, self._measured.http
        if idle is None or http is None:
            return
        need_s = http.keepalive_s or BASE_PING_S
        # Measured with GET and PUT; a WebSocket may have other timeouts.
        severity: Severity = "warning" if self._measured.transport == "websocket" else "fault"
        found: tuple[
            tuple[Literal["download", "upload"], float | None, Literal["idle-download", "idle-upload"]], ...
        ] = (
            ("download", idle.download_s, "idle-download"),
            ("upload", idle.upload_s, "idle-upload"),
        )
        for name, found_s, fault in found:
            if found_s is None or is_same_limit(self._age_s(name), found_s):
                continue
            if name == "upload" and idle.upload_late:
                text = f"an upload that was silent for {found_s:.0f} s turned out to be dead when it was used again"
                self._blame(severity, "idle-upload", text, "idle-upload")
                continue
            text = f"{'a download' if name == 'download' else 'an upload'} that is silent for {found_s:.0f} s is ended"
            if found_s < need_s * MARGIN:
                tail = f"and the tunnel may be silent for {need_s:g} s"
                self._blame(severity, fault, f"{text}, {tail}", fault)
            elif found_s < BASE_PING_S:
                tail = f"enough for this server's keepalive of {need_s:g} s, but not for deployed peers (55 s)"
                self._blame("warning", fault, f"{text}, {tail}", fault)


def _held(stream: Direction, verb: str) -> str:
    if stream.held_bytes is not None:
        return f"nothing passes until about {_size(stream.held_bytes)} were {verb}"
    if stream.held_until_end:
        return "nothing passes before its end"
    return stream.error or "nothing of it passes"


def _size(count: int) -> str:
    return f"{count} bytes" if count < 2048 else f"{count / 1024:.0f} KiB" if count < 1 << 20 else f"{count >> 20} MiB"
