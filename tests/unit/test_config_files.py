"""The files that a config names, their permissions, and the reports."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import threading
import tracemalloc
from pathlib import Path
from typing import Final

import pytest

from tapotun_trio.config.diagnostics import Finding, InvalidConfig, report_json, report_text
from tapotun_trio.config.load import check, check_content, load
from tapotun_trio.config.model import ClientConfig, Config
from tapotun_trio.errors import ConfigError
from tapotun_trio.host.net.tls_files import judge_files

from .test_config_load import accept, client, server, sha1

ROOT: Final = Path(__file__).parents[2]


def write(path: Path, content: object, mode: int = 0o600) -> str:
    """Write a file with this mode, content that is not text as JSON. Returns its path."""
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    path.chmod(mode)
    return str(path)


# --- files ---


def test_load_gives_the_config_with_its_warnings(tmp_path: Path) -> None:
    file = write(tmp_path / "t.json", [client()], 0o644)
    warning = (
        f"{file}: warning: [0].token: *** is in a file that every user of this machine can read "
        f"(mode 0644); run chmod o-rwx {file} (line 1)"
    )
    assert load(file) == Config((accept(client()),), (warning,))


def test_hashes_may_be_world_readable(tmp_path: Path) -> None:
    assert load(write(tmp_path / "t.json", [server()], 0o644)).warnings == ()


def test_one_warning_for_a_file_of_many_tokens(tmp_path: Path) -> None:
    file = write(tmp_path / "t.json", [server(), client(), client(name="tun2", token="b")], 0o604)
    assert [finding.path for finding in check(file)[1]] == ["[1].token"]


def test_load_raises_every_error_in_one_exception(tmp_path: Path) -> None:
    file = write(tmp_path / "t.json", '[\n{"name": "tun0",\n "net": "10.10.0.1", "clients": []}\n]')
    with pytest.raises(InvalidConfig) as caught:
        load(file)
    assert isinstance(caught.value, ConfigError)
    assert str(caught.value).splitlines() == [
        f'{file}: [0].port: is missing; add "port": 8080, or let "listen" name Unix sockets only (line 2)',
        f'{file}: [0].net: "10.10.0.1" has no prefix length; write it, as in "10.10.0.1/24" (line 3)',
    ]
    assert caught.value.file == file
    assert [f.severity for f in caught.value.findings] == ["error", "error", "warning"]


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    def text(path: Path | str) -> str:
        config, findings = check(path)
        assert config is None
        (finding,) = findings
        return finding.text("F")

    assert text(tmp_path / "none.json") == "F: cannot be read: No such file or directory; name a config file"
    assert text(tmp_path) == "F: cannot be read: Is a directory; name a config file"
    assert text("a\0b") == "F: cannot be read: not a valid path; name a config file"
    assert text("a\udcff\ud800b") == "F: cannot be read: not a valid path; name a config file"
    assert text("/dev/zero") == "F: cannot be read: longer than 67108864 bytes; name a config file"
    assert text("x" * 300) == "F: cannot be read: File name too long; name a config file"
    assert text("/proc/self/mem") == "F: cannot be read: Input/output error; name a config file"
    assert text("/dev/null") == "F: is empty; write a list of interface definitions, [{...}]"


def test_a_pipe_that_nobody_writes_to_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a config, and as any file that it names. No thread waits for it for ever."""
    monkeypatch.setattr("tapotun_trio.files.PIPE_WAIT_MS", 20)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (finding,) = check(pipe)[1]
    assert finding.problem == "cannot be read: nobody wrote to this pipe within 0.02 s"
    for entry, path in (
        ({**client(), "token": ..., "token_file": str(pipe)}, "[0].token_file"),
        (client(user="u", password_file=str(pipe)), "[0].password_file"),
    ):
        given = {key: value for key, value in entry.items() if value is not ...}
        (finding,) = check(write(tmp_path / "t.json", [given]))[1]
        assert (finding.path, finding.problem) == (path, "cannot be read: nobody wrote to this pipe within 0.02 s")


@pytest.mark.parametrize("field", ["ca_file", "cert_file", "key_file"])
def test_a_pipe_is_no_certificate(field: str, tmp_path: Path) -> None:
    """OpenSSL would open it again, and wait for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    tls = {"cert_file": "/dev/null", field: str(pipe)}
    _, findings = check(write(tmp_path / "t.json", [client(server="https://h/", tls=tls)]), judge_files)
    problems = {found.path: found.problem for found in findings}
    assert problems[f"[0].tls.{field}"] == "cannot be read: it is not a regular file"


def test_a_config_through_a_pipe(tmp_path: Path) -> None:
    """As by ``tapotun run <(make-config)``: more than a pipe holds, and with pauses."""
    text = json.dumps([client(name="tun0")]) + " " * 200_000
    reading, writing = os.pipe()

    def write_slowly() -> None:
        with open(writing, "wb", buffering=0) as out:
            for at in range(0, len(text), 50_000):
                out.write(text[at : at + 50_000].encode())

    thread = threading.Thread(target=write_slowly)
    thread.start()
    try:
        assert load(f"/dev/fd/{reading}").interfaces == (accept(client(name="tun0")),)
    finally:
        os.close(reading)
        thread.join()


def test_what_has_nothing_to_read_is_not_waited_for() -> None:
    ours, theirs = pty.openpty()
    try:
        (finding,) = check(os.ttyname(theirs))[1]
    finally:
        os.close(ours)
        os.close(theirs)
    assert finding.problem == "cannot be read: it has nothing to read now, and would have to be waited for"


def test_a_large_file_is_refused_before_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "large"
    with file.open("wb") as out:
        out.truncate(1 << 40)
    (finding,) = check(file)[1]
    assert finding.problem == "cannot be read: longer than 67108864 bytes"


def test_reading_takes_no_more_memory_than_the_file(tmp_path: Path) -> None:
    file = write(tmp_path / "t.json", [client()])
    check(file)
    tracemalloc.start()
    try:
        check(file)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2_000_000


@pytest.fixture(scope="module")
def interpreter_bytes() -> int:
    """The address space that the interpreter needs by itself."""
    program = "import re; print(re.search('VmPeak:\\\\s+([0-9]+)', open('/proc/self/status').read())[1])"
    return 1024 * int(subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout)


@pytest.mark.parametrize("verb", ["validate-config", "run", "doctor", "status"])
@pytest.mark.parametrize("more_mib", [2, 10, 50])
def test_a_tight_limit_of_memory_is_one_line_and_no_traceback(
    verb: str, more_mib: int, interpreter_bytes: int, tmp_path: Path
) -> None:
    """The config has an error, so that nothing runs where the memory is enough."""
    argv = ["prlimit", f"--as={interpreter_bytes + (more_mib << 20)}", sys.executable, "-m", "tapotun_trio", verb]
    if verb != "status":
        argv.append(write(tmp_path / "t.json", [client(name="")]))
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    output = done.stdout + done.stderr
    assert "Traceback" not in output
    assert done.returncode in (0, 1, 3), output
    if done.returncode == 3:
        assert output.count("\n") == 1
        assert "not enough memory" in output


def test_a_file_name_cannot_forge_a_second_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidConfig) as caught:
        load(tmp_path / "a\nb: fine")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("kind", "mode", "problem"),
    [
        ("EC PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED", 0o600, "holds an encrypted key, and nobody is there to type"),
        ("ENCRYPTED PRIVATE KEY-----", 0o600, "holds an encrypted key, and nobody is there to type its password"),
        ("CERTIFICATE-----", 0o600, 'holds no private key in PEM; write the path of one as "key_file"'),
        ("PRIVATE KEY-----", 0o604, "can be read by every user of this machine (mode 0604); run chmod o-rwx"),
        ("PRIVATE KEY-----", 0o600, None),
    ],
)
def test_a_key_file(tmp_path: Path, kind: str, mode: int, problem: str | None) -> None:
    write(tmp_path / "cert", "-----BEGIN CERTIFICATE-----\n")
    write(tmp_path / "key", f"-----BEGIN {kind}\n", mode)
    tls = {"cert_file": "cert", "key_file": "key"}
    _, findings = check(write(tmp_path / "t.json", [client(server="https://h/", tls=tls)]))
    texts = [finding.text("F") for finding in findings]
    assert len(texts) == (problem is not None)
    assert all(f'[0].tls.key_file: "key" {problem}' in text for text in texts)


def test_token_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its path is relative to the config, not to the working directory; one line end is not part of the token."""
    config = write(tmp_path / "t.json", [client(token=..., token_file="secret/token")], 0o644)
    (tmp_path / "secret").mkdir()
    monkeypatch.chdir("/")
    for content in ("s3cret", "s3cret\n", "s3cret\r\n", "\ufeffs3cret\n", "s3cret\n\n", "\r\n \t\r\ns3cret\r\n\r\n"):
        write(tmp_path / "secret" / "token", content)
        (interface,) = load(config).interfaces
        assert isinstance(interface, ClientConfig)
        assert interface.token.reveal() == "s3cret"
        assert load(config).warnings == ()
    monkeypatch.chdir(tmp_path)
    assert check("t.json")[1] == []


@pytest.mark.parametrize(
    ("content", "mode", "problem"),
    [
        ("", 0o600, "holds a token that is empty; write the raw token"),
        ("\n", 0o600, "holds a token that is empty; write the raw token"),
        ("\ufeff\n \n", 0o600, "holds a token that is empty; write the raw token"),
        ("s3cret\ns3cret\n", 0o600, "holds a token that has 2 lines; keep one token, on one line"),
        (
            "s3crét",
            0o600,
            "holds a token that has characters that an HTTP header cannot carry; "
            "use printable ASCII without line breaks; tapotun token makes such a token",
        ),
        (" s3cret", 0o600, "holds a token that starts or ends with a space; remove the space"),
        ("s" * 70000, 0o600, None),
        ("s3cret", 0o604, "can be read by every user of this machine (mode 0604); run chmod o-rwx 'a token'"),
        (sha1("x"), 0o600, "holds what looks like a hash; write the raw token into it, unless this is the raw token"),
    ],
)
def test_bad_token_file(tmp_path: Path, content: str, mode: int, problem: str | None) -> None:
    write(tmp_path / "a token", content, mode)
    file = write(tmp_path / "t.json", [client(token=..., token_file="a token")])
    problem = (
        problem or "cannot be read: longer than 65536 bytes; write the path of a file, absolute or relative to this one"
    )
    (finding,) = check(file)[1]
    severity = "warning: " if finding.severity == "warning" else ""
    assert finding.text("F") == f'F: {severity}[0].token_file: "a token" {problem} (line 1)'


@pytest.mark.parametrize(
    ("name", "reason"), [("none", "No such file or directory"), (".", "Is a directory"), ("a\0", "not a valid path")]
)
def test_missing_token_file_and_ca_file(tmp_path: Path, name: str, reason: str) -> None:
    entry = client(server="https://h/", token=..., token_file=name, tls={"ca_file": name})
    findings = check(write(tmp_path / "t.json", [entry]))[1]
    shown = json.dumps(name)
    remedy = "write the path of a file, absolute or relative to this one (line 1)"
    assert [f.text("F") for f in findings] == [
        f"F: [0].token_file: {shown} cannot be read: {reason}; {remedy}",
        f"F: [0].tls.ca_file: {shown} cannot be read: {reason}; {remedy}",
    ]


def test_ca_file_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "ca.pem", "not looked into")
    write(tmp_path / "t.json", [client(server="https://h/", tls={"ca_file": "ca.pem"})])
    monkeypatch.chdir(tmp_path)
    (interface,) = load("t.json").interfaces
    assert isinstance(interface, ClientConfig)
    assert interface.tls.ca_file == str(tmp_path / "ca.pem")


# --- reports ---


def test_report_text() -> None:
    config, findings = check_content(json.dumps([server(), client()]).encode(), "F")
    assert report_text("F", config, findings) == "F: valid: 1 server, 1 client"
    config, findings = check_content(json.dumps([server(clients=[]), server(name="b")]).encode(), "F")
    *lines, last = report_text("F", config, findings).splitlines()
    assert last == "F: not valid: 2 errors, 1 warning"
    assert lines == [finding.text("F") for finding in findings]
    config, findings = check_content(json.dumps([server(clients=[])]).encode(), "F")
    assert report_text("F", config, findings).splitlines()[-1] == "F: valid: 1 server, 1 warning"


def test_report_json() -> None:
    error = Finding("error", "[0].net", '"x\\u001b"', "is\nbad", "mend it", 3, 5)
    warning = Finding("warning", "", "", "is so", "mend it")
    assert json.loads(report_json("a\nb", [error, warning])) == {
        "file": "a\nb",
        "valid": False,
        "errors": [
            {
                "path": "[0].net",
                "value": '"x\\u001b"',
                "problem": "is\\u000abad",
                "remedy": "mend it",
                "line": 3,
                "column": 5,
            }
        ],
        "warnings": [
            {"path": "", "value": "", "problem": "is so", "remedy": "mend it", "line": None, "column": None},
        ],
    }
    assert json.loads(report_json("F", [warning]))["valid"] is True
