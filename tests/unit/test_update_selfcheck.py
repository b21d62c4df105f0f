"""A new version is asked whether it would work here, out of the memory that would be installed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.errors import HostError
from tapotun_trio.update import selfcheck
from tapotun_trio.update.selfcheck import self_check
from tests.pyz_files import found, program
from tests.unit.hostile import until

# What a good version prints; %s: the findings of its doctor.
_BODY = """
import json, os
assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS"} & os.environ.keys()
assert sys.argv[0].startswith("/proc/self/fd/"), sys.argv
if sys.argv[1] == "--version":
    print("tapotun 2.0\\nplane: native")
elif sys.argv[1] == "validate-config":
    print("/etc/x.json: " + "valid" if sys.argv[2] == "/etc/x.json" else "another file")
elif sys.argv[1:] == ["doctor", "--json", "/etc/x.json"]:
    found = FINDINGS
    print(json.dumps({"version": 1, "findings": found}))
    sys.exit(any(each["severity"] == "failure" for each in found))
sys.exit(0)
"""


def finding(text: str, severity: str = "failure") -> dict[str, str]:
    return {"severity": severity, "check": "tun", "text": text, "remedy": ""}


def version(*findings: dict[str, str], before: str = "") -> bytes:
    return program("2.0", before + "\n" + _BODY.replace("FINDINGS", repr(list(findings))))


@contextmanager
def programs(new: bytes, old: bytes) -> Iterator[tuple[int, int]]:
    with found("2.0", new) as newer, found("1.0", old) as older:
        assert newer.memfd is not None
        assert older.memfd is not None
        yield newer.memfd, older.memfd


async def ask(new: bytes, old: bytes = b"") -> None:
    with programs(new, old) as (program, running):
        await self_check(program, "2.0", "/etc/x.json", running)


async def test_a_version_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "LISTEN_FDS"):
        monkeypatch.setenv(name, "x")
    await ask(version())
    await ask(version(finding("may not work", "warning")))


@pytest.mark.parametrize(
    ("before", "text"),
    [
        ("raise ZeroDivisionError('why')", "does not run here: --version: ZeroDivisionError: why"),
        ("sys.exit(0)", "does not run here: --version: exit code 0"),
        ("print('tapotun 2.0.1'); sys.exit(0)", r"does not run here: --version: tapotun 2\.0\.1"),
        ("import os; os.kill(os.getpid(), 9)", "does not run here: --version: exit code -9"),
        (
            "if sys.argv[1] == 'validate-config': print('x.json: line 3: unknown field\\x1b[0m'); sys.exit(1)",
            r"does not accept the config: x\.json: line 3: unknown field\\u001b\[0m",
        ),
        ("if sys.argv[1] == 'doctor': print('oops'); sys.exit(1)", "cannot check this machine: oops"),
        ("if sys.argv[1] == 'doctor': print('[]'); sys.exit(1)", r"cannot check this machine: \[\]"),
        ("while True: print('x' * 100_000)", "printed more than 524288 bytes"),
    ],
)
async def test_a_version_that_does_not(before: str, text: str) -> None:
    with pytest.raises(HostError, match=text):
        await ask(version(before=before))


async def test_only_a_failure_that_is_new_counts() -> None:
    tun, port = finding("no /dev/net/tun"), finding("the port is taken")
    await ask(version(tun), version(tun, port))
    with pytest.raises(HostError, match="would not work on this machine: tun: the port is taken"):
        await ask(version(tun, port), version(tun))
    with pytest.raises(HostError, match="would not work on this machine"):
        await ask(version(port), version(before="raise ZeroDivisionError"))


def test_a_failure_in_other_words_is_not_new() -> None:
    """The next version may call it otherwise. It could never be installed on such a machine."""
    known = {"rp_filter: eth0 is strict", "tun: no /dev/net/tun"}
    assert selfcheck.fresh_failures({"rp_filter: eth0 drops what comes by it", "tun: no /dev/net/tun"}, known) == []
    assert selfcheck.fresh_failures({"rp_filter: a", "rp_filter: b"}, known) == ["rp_filter: b"]
    assert selfcheck.fresh_failures({*known, "rp_filter: eth1 is strict"}, known) == ["rp_filter: eth1 is strict"]
    assert selfcheck.fresh_failures({"clock: before 2026"}, known) == ["clock: before 2026"]
    assert selfcheck.fresh_failures(set(), known) == []


async def test_one_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(selfcheck, "ANSWER_S", 2.0)
    pid = tmp_path / "pid"
    hangs = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    with pytest.raises(HostError, match=r"the self-check \(--version\) did not end within 2 s"):
        await ask(version(before=hangs))
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


async def test_a_cancellation_leaves_no_process(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    hangs = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, version(before=hangs))
        await until(lambda: pid.exists() and pid.read_text(), "the process to start")
        nursery.cancel_scope.cancel()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


async def test_no_descriptor_stays_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    await ask(version())
    assert len(os.listdir("/proc/self/fd")) == before


def test_the_findings_are_those_of_the_doctor() -> None:
    """Of this program, as it prints them."""
    from tapotun_trio.doctor.checks import Finding
    from tapotun_trio.doctor.run import report_json

    text = report_json([Finding("failure", "tun", "no"), Finding("ok", "clock", "fine")])
    assert json.loads(text)["findings"][0]["severity"] == "failure"
    assert selfcheck.failures(text) == {"tun: no"}


@given(
    st.text() | st.recursive(st.none() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_any_output_is_findings_or_none(found: object) -> None:
    text = found if isinstance(found, str) else json.dumps({"findings": found})
    lines = selfcheck.failures(text)
    assert lines is None or all(line.isprintable() for line in lines)
