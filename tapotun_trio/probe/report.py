"""A probe's report as text and as JSON. Pure. Text from the network is made safe for a terminal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

from ..text import one_line
from .measured import Direction, Measured, PathMtu
from .remedies import NAMES
from .verdict import RECIPES, Verdict

# The version of the JSON. Incremented when a field is removed or changes its meaning, not when one is added.
VERSION: Final = 1

_LABEL_CHARS: Final = 12


def report_json(measured: Measured, verdict: Verdict) -> str:
    """One object: the verdict, then every result under its name in `Measured`."""
    report = {
        "version": VERSION,
        "usable": verdict.usable,
        "carrier": verdict.selector,
        "verdict": verdict.text,
        "findings": [asdict(finding) for finding in verdict.findings],
        **asdict(measured),
    }
    return json.dumps(report, indent=2)


def report_text(measured: Measured, verdict: Verdict) -> str:
    """A line for each step, then what to change, then the verdict."""
    lines = [f"{label:<{_LABEL_CHARS}}{text}" for label, text in _steps(measured)]
    lines += [f"{'not tested':<{_LABEL_CHARS}}{text}" for text in measured.not_tested]
    for finding in verdict.findings:
        lines += ["", f"{finding.severity.upper()}: {finding.text}"]
        if finding.change:
            lines.append(f"  what to change in {finding.where}:")
            lines += [f"    {line}" for line in finding.change]
    if any(finding.where.startswith("the config of") for finding in verdict.findings):
        lines += ["", f"({RECIPES})"]
    lines += ["", f"verdict: {verdict.text}"]
    return "\n".join(one_line(line) for line in lines)


def _steps(measured: Measured) -> Iterator[tuple[str, str]]:
    yield "url", measured.url + (f" through {measured.outgoing_proxy}" if measured.outgoing_proxy else "")
    if measured.dns is not None:
        took = "" if measured.dns.ms is None else f"{_ms(measured.dns.ms)}, "
        yield "dns", measured.dns.error or f"{took}{', '.join(measured.dns.addresses)}"
    if measured.tcp is not None:
        yield "tcp", measured.tcp.error or f"{_ms(measured.tcp.ms)}, to {measured.tcp.address}"
    if measured.tls is not None:
        yield "tls", "; ".join(_tls(measured))
    if measured.http is not None:
        yield "http", "; ".join(_http(measured))
        yield "download", _stream(measured.download)
        yield "upload", _stream(measured.upload)
    if measured.path_mtu.ok is not None:
        yield "path mtu", _path_mtu(measured.path_mtu)
    if measured.rtt is not None:
        rtt = measured.rtt
        yield "round trip", f"{_ms(rtt.min_ms)} min, {_ms(rtt.median_ms)} median, {_ms(rtt.max_ms)} max"
    if measured.throughput is not None:
        up, down = measured.throughput.up_mbit_s, measured.throughput.down_mbit_s
        yield (
            "throughput",
            f"up {_rate(up)}, down {'at least ' if down is not None else ''}{_rate(down)} (measured on echoes)",
        )
    if measured.websocket.ok is not None:
        yield "websocket", "passes" if measured.websocket.ok else f"does not pass: {measured.websocket.error}"
    if measured.idle is not None:
        yield (
            "idle",
            f"download {_idle(measured.idle.download_s, measured.idle.download_tested_s)}, "
            f"upload {_idle(measured.idle.upload_s, measured.idle.upload_tested_s, late=measured.idle.upload_late)}",
        )
    if measured.ages is not None:
        ages = measured.ages
        download, upload = _age(ages.download_s, ages.download_tested_s), _age(ages.upload_s, ages.upload_tested_s)
        yield "age", f"download {download}, upload {upload}"


def _age(found_s: float | None, tested_s: float) -> str:
    return f"survives {tested_s:.0f} s" if found_s is None else f"ended at {found_s:.1f} s"


def _tls(measured: Measured) -> Iterator[str]:
    tls = measured.tls
    assert tls is not None, "called only if there is one"
    if tls.error is not None:
        yield tls.error
    else:
        yield f"{_ms(tls.ms)}, {tls.version}"
    if tls.offered:
        yield f"offers {', '.join(tls.offered)}"
    if tls.days_left is not None:
        issuer = f" (from {tls.issuer})" if tls.issuer else ""
        how = f"has {tls.days_left:.0f} days left" if tls.days_left >= 0 else f"expired {-tls.days_left:.0f} days ago"
        yield f"the certificate{issuer} {how}"


def _http(measured: Measured) -> Iterator[str]:
    http = measured.http
    assert http is not None, "called only if there is one"
    if http.status is None:
        yield http.error or "no answer"
    else:
        yield f"{http.status}" + ("" if http.ms is None else f" after {_ms(http.ms)}")
    headers = [f"{name}: {value}" for name, value in (("Server", http.server_header), ("Via", http.via)) if value]
    names = " and ".join(NAMES[kind] for kind in http.proxies or [http.proxy])
    yield names + (f" ({'; '.join(headers)})" if headers else "")
    if http.server != "unknown":
        keepalive = "" if http.keepalive_s is None else f", keepalive {http.keepalive_s:g} s"
        yield f"{'tapotun, extended protocol' if http.server == 'extended' else 'base protocol'}{keepalive}"
    if http.device == "tap":
        yield "carries Ethernet frames"
    if http.ipv6:
        yield "carries IPv4 and IPv6" if http.ipv4 else "carries IPv6 only"


def _path_mtu(found: PathMtu) -> str:
    if found.ok:
        return "large packets pass"
    lost = "large packets are lost"
    if found.lost_bytes is not None:
        lost += f" (segments of {found.lost_bytes} bytes)"
    if found.passing_bytes is None:
        return f"{lost}, and smaller segments do not help"
    return f"{lost}; segments of {found.passing_bytes} bytes pass"


def _stream(stream: Direction) -> str:
    if stream.state == "streams":
        late = "" if stream.held_ms is None or stream.held_ms < 1 else f", first bytes {_ms(stream.held_ms)} late"
        ended = "" if stream.ended_after_s is None else f", but was ended after {stream.ended_after_s:.1f} s"
        status = "" if stream.status is None else f" with {stream.status}"
        return f"streams{late}{ended}{status}"
    if stream.state == "held-back":
        if stream.held_bytes is not None:
            return f"held back until about {stream.held_bytes} bytes have arrived"
        return "held back" + (" until its end" if stream.held_until_end else "")
    if stream.state == "broken":
        return f"broken: {stream.error or stream.status}"
    return "not tested"


def _idle(found_s: float | None, tested_s: float, *, late: bool = False) -> str:
    if late:
        return f"dead after at most {found_s:.1f} s of silence"
    if found_s is not None:
        return f"ended after {found_s:.1f} s of silence"
    return f"survives {tested_s:.0f} s of silence" if tested_s else "not tested"


def _ms(ms: float | None) -> str:
    return "?" if ms is None else f"{ms:.1f} ms"


def _rate(mbit_s: float | None) -> str:
    return "not measured" if mbit_s is None else f"{mbit_s:.1f} Mbit/s" if mbit_s < 100 else f"{mbit_s:.0f} Mbit/s"
