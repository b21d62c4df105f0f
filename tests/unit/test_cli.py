"""cli: verbs, exit codes, and what goes to which stream."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

from tapotun_trio import __version__, exit_codes
from tapotun_trio.cli import main
from tapotun_trio.config.model import Config, LogConfig
from tapotun_trio.datapath.plane import why_not_built
from tapotun_trio.log import process_logger

from ..tables import table

pytestmark = pytest.mark.usefixtures("logging_as_before")

EXAMPLES: Final = sorted((Path(__file__).parents[2] / "conf" / "examples").glob("*.json"))
RUN_EXIT: Final = 42

ALLOWED: Final = {"token": hashlib.sha1(b"test").hexdigest(), "ip": "10.10.0.2"}
SERVER: Final = {"name": "hub", "port": 8080, "net": "10.10.0.1/24", "clients": [ALLOWED]}
CLIENT: Final = {"name": "tun0", "server": "http://192.0.2.1/ip", "token": "raw-token-of-the-client"}


class Started(list[str]):
    """The names of the interfaces that would have been run; None of `app.run` was called."""

    called = False
    config: Config
    read: Callable[[], Config]

    def run(
        self,
        config: Config,
        read: Callable[[], Config],
        *,
        name: str | None,
        config_file: str,
        notify_fd: int | None,
        ready_timeout_s: float,
    ) -> int:
        self.called = True
        self += [it.name for it in config.interfaces]
        self.config, self.read = config, read
        return RUN_EXIT


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    it = Started()
    monkeypatch.setattr("tapotun_trio.app.run", it.run)
    return it


def config_file(directory: Path, *entries: dict[str, Any], text: str | None = None) -> str:
    path = directory / "config.json"
    path.write_text(json.dumps(entries) if text is None else text)
    path.chmod(0o600)
    return str(path)


def usage_error(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert isinstance(caught.value.code, int)
    return caught.value.code


# ------------------------------------------------------------------ run


@table(
    "before after names",
    ("as deployed users start it", [], [], ["hub", "tun0"]),
    ("run", ["run"], [], ["hub", "tun0"]),
    ("server", ["server"], [], ["hub"]),
    ("client", ["client"], [], ["tun0"]),
    ("options without a verb", ["--log-level", "error"], [], ["hub", "tun0"]),
    ("options behind", [], ["--log-level=error", "--log-format", "json"], ["hub", "tun0"]),
    ("options before the verb", ["--log-level", "error", "server"], [], ["hub"]),
    ("an option whose value is a verb's name", ["--log-format", "text", "client"], [], ["tun0"]),
    ("options behind the verb", ["client", "--log-level", "debug"], [], ["tun0"]),
)
def test_run(before: list[str], after: list[str], names: list[str], started: Started, tmp_path: Path) -> None:
    assert main([*before, config_file(tmp_path, SERVER, CLIENT), *after]) == RUN_EXIT
    assert started == names


@table(
    "options log",
    ("the file", [], LogConfig("warning", "json")),
    ("a level", ["--log-level", "debug"], LogConfig("debug", "json")),
    ("a format", ["--log-format", "text"], LogConfig("warning", "text")),
    ("both", ["--log-format", "text", "--log-level", "info"], LogConfig("info", "text")),
)
def test_the_command_line_wins_over_the_files_log(
    options: list[str], log: LogConfig, started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exposed = {"listen": "0.0.0.0:9433", "token": f"sha256:{64 * '0'}"}
    root = {"interfaces": [SERVER], "log": {"level": "warning", "format": "json"}, "admin": exposed}
    assert main([*options, config_file(tmp_path, text=json.dumps(root))]) == RUN_EXIT
    assert started.config.log == log
    assert started.read() == started.config
    process_logger().info("an info")
    process_logger().error("an error")
    warning, *rest = capsys.readouterr().err.splitlines()
    assert "is not loopback" in warning
    assert ("an info" in "".join(rest)) == (log.level in ("debug", "info"))
    assert rest[-1].startswith("{") == (log.format == "json")


@pytest.mark.parametrize(("verb", "entry"), [("server", CLIENT), ("client", SERVER)])
def test_nothing_of_that_kind(
    verb: str, entry: dict[str, Any], started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([verb, config_file(tmp_path, entry)]) == exit_codes.FAILED
    assert not started.called
    assert f"has no {verb} definition" in capsys.readouterr().err


def test_run_reports_all_errors_and_starts_nothing(
    started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config_file(tmp_path, {**SERVER, "net": "10.10.0.1/33", "mtu": 5}, {**CLIENT, "servr": 1})
    assert main([path]) == exit_codes.FAILED
    assert not started.called
    out, err = capsys.readouterr()
    assert out == ""
    for place in ("[0].net", "[0].mtu", "[1].servr"):
        assert sum(f"{place}:" in line for line in err.splitlines()) == 1
    assert all(" ERROR " in line for line in err.splitlines())


def test_run_shows_warnings_and_starts(started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config_file(tmp_path, CLIENT)
    Path(path).chmod(0o644)
    assert main([path]) == RUN_EXIT
    assert started == ["tun0"]
    err = capsys.readouterr().err
    assert re.search(r" WARNING .*\[0\]\.token.*chmod o-rwx", err)
    assert CLIENT["token"] not in err


def test_log_format_json(started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--log-format", "json", config_file(tmp_path, text="[")]) == exit_codes.FAILED
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["level"] == "error"
    assert "line 1 column" in json.loads(line)["event"]


def test_no_such_file(started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "missing.json")]) == exit_codes.FAILED
    assert "missing.json" in capsys.readouterr().err
    assert not started.called


# ------------------------------------------------------------------ validate-config


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_valid(example: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate-config", str(example)]) == exit_codes.OK
    out, err = capsys.readouterr()
    assert f"{example}: valid: " in out
    assert err == ""


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 8


def test_validate_config_names_every_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config_file(tmp_path, {**SERVER, "net": "10.10.0.0.1/24"}, {**CLIENT, "token": 7})
    assert main(["validate-config", path]) == exit_codes.FAILED
    out, err = capsys.readouterr()
    assert err == ""
    *findings, summary = out.splitlines()
    assert [re.search(r"\[\d\]\.\w+", line)[0] for line in findings] == ["[0].net", "[1].token"]  # type: ignore[index]
    assert all(line.startswith(f"{path}: ") for line in findings)
    assert summary == f"{path}: not valid: 2 errors"


def test_validate_config_for_machines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = config_file(tmp_path, {**SERVER, "mtu": 5})
    assert main(["validate-config", "--json", path]) == exit_codes.FAILED
    report = json.loads(capsys.readouterr().out)
    assert report["valid"] is False
    assert [finding["path"] for finding in report["errors"]] == ["[0].mtu"]
    assert main(["validate-config", config_file(tmp_path, SERVER), "--json"]) == exit_codes.OK
    assert json.loads(capsys.readouterr().out)["valid"] is True


# ------------------------------------------------------------------ usage


@table(
    "argv",
    ("a verb without its file", ["run"]),
    ("two files", ["a.json", "b.json"]),
    ("an option that is none", ["--frobnicate", "a.json"]),
    ("an abbreviated option", ["--log-lev", "debug", "a.json"]),
    ("a level that is none", ["--log-level", "loud", "a.json"]),
    ("an option without its value", ["a.json", "--log-level"]),
    ("validate-config without its file", ["validate-config"]),
    ("token with a file", ["token", "a.json"]),
    ("a token that is read and written", ["token", "--hash", "--write", "f"]),
)
def test_wrong_usage(argv: list[str], started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error(*argv) == exit_codes.USAGE
    assert capsys.readouterr().err.startswith("usage: tapotun")
    assert not started.called


_BEST: Final = "native" if why_not_built() is None else f"python: {why_not_built()}"


@pytest.mark.parametrize(
    ("setting", "plane"),
    [
        (None, _BEST),
        ("", _BEST),
        ("auto", _BEST),
        ("off", "off: TAPOTUN_PLANE=off is set"),
        ("python", "python: TAPOTUN_PLANE=python is set"),
        (
            "of",
            'none: the environment variable TAPOTUN_PLANE is "of": set it to auto, off or python, or unset it',
        ),
    ],
)
def test_version(
    setting: str | None, plane: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the plane that the environment leaves. A wrong value stops the program, but does not hide its version."""
    if setting is None:
        monkeypatch.delenv("TAPOTUN_PLANE", raising=False)
    else:
        monkeypatch.setenv("TAPOTUN_PLANE", setting)
    assert usage_error("--version") == exit_codes.OK
    assert capsys.readouterr().out.splitlines() == [f"tapotun {__version__}", f"plane: {plane}"]


def test_help_tells_verbs_first_steps_and_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error("--help") == exit_codes.OK
    out = capsys.readouterr().out
    for word in ("run", "server", "client", "validate-config", "token", "exit codes", "a first tunnel"):
        assert word in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("verb", ["run", "server", "client", "validate-config", "token"])
def test_help_of_a_verb(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error(verb, "--help") == exit_codes.OK
    assert verb in capsys.readouterr().out


# ------------------------------------------------------------------ as a process


def python(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *argv], capture_output=True, text=True, check=False, timeout=30)


def test_python_m() -> None:
    done = python("-m", "tapotun_trio", "--version")
    assert (done.returncode, done.stdout.splitlines()[0]) == (exit_codes.OK, f"tapotun {__version__}")
    assert python("-m", "tapotun_trio").returncode == exit_codes.USAGE


def test_verbs_that_run_nothing_start_quickly() -> None:
    """They need neither trio nor the host."""
    code = "import sys; from tapotun_trio.cli import main; main(['token']); print(*sys.modules)"
    modules = python("-W", "error", "-c", code).stdout.splitlines()[-1].split()
    assert "tapotun_trio.cli" in modules
    assert not {"trio", "ssl", "asyncio", "pyroute2", "tapotun_trio.app"} & set(modules)


# --- what only OpenSSL can say ---


@pytest.mark.parametrize("verb", ["validate-config", "run"])
def test_files_of_tls_are_looked_into_with_all_the_rest(
    tmp_path: Path, started: Started, capfd: pytest.CaptureFixture[str], verb: str
) -> None:
    """Their errors come together with the others, of this and of other definitions."""
    authority = trustme.CA()
    authority.issue_cert("a").cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    authority.issue_cert("b").private_key_pem.write_to_path(tmp_path / "key.pem")
    (tmp_path / "key.pem").chmod(0o600)
    (tmp_path / "ca.pem").write_text("no certificate")
    https = {"server": "https://192.0.2.1/ip"}
    file = config_file(
        tmp_path,
        {**CLIENT, **https, "name": "a", "tls": {"cert_file": "cert.pem", "key_file": "key.pem"}},
        {**CLIENT, **https, "name": "b", "token": "raw2", "tls": {"ca_file": "ca.pem"}},
        {**CLIENT, "name": "c", "proxy": "none", "rotate_s": [2, 1]},
    )
    assert main([verb, file]) == exit_codes.FAILED
    out, err = capfd.readouterr()
    for words in (
        '[0].tls.key_file: "key.pem" holds a key that does not match the certificate of tls.cert_file',
        '[1].tls.ca_file: "ca.pem" holds no certificate that can be trusted',
        "[2].rotate_s[1]: 1 is less than",
    ):
        assert words in out + err
    assert not started.called


def test_files_of_tls_that_are_right(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("a").private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "both.pem").chmod(0o600)
    tls = {"cert_file": "both.pem", "ca_file": "ca.pem"}
    file = config_file(tmp_path, {**CLIENT, "server": "https://192.0.2.1/ip", "tls": tls})
    assert main(["validate-config", file]) == exit_codes.OK


def test_a_hangup_waits_for_the_reload_that_it_asks_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the first moment on, and no longer than the process runs."""

    def run(*_: object, **named: object) -> int:
        # To this thread: those that other tests left idle would take it. The program has no others yet.
        signal.pthread_kill(threading.get_ident(), signal.SIGHUP)  # which would end it
        assert signal.SIGHUP in signal.sigpending()
        signal.signal(signal.SIGHUP, lambda *_: heard.append(1))
        return RUN_EXIT

    heard: list[int] = []
    before = signal.getsignal(signal.SIGHUP)
    monkeypatch.setattr("tapotun_trio.app.run", run)
    try:
        assert main(["run", config_file(tmp_path, SERVER)]) == RUN_EXIT
        assert heard == [1]
        assert signal.SIGHUP not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("argv", "code"),
    [
        (["wait"], 130),  # 0 would mean: they are up
        (["status"], 130),
        (["status", "--watch"], 0),
        (["reload"], 130),
        (["disconnect", "laptop"], 130),
    ],
)
def test_interrupted(
    argv: list[str], code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def find(*_: object) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("tapotun_trio.control.subcommands.find", find)
    assert main(argv) == code
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("verb", ["token", "doctor", "validate-config", "status --json", "--version", "--help"])
@pytest.mark.parametrize(
    ("to", "codes", "said"),
    [(">/dev/full", {1}, "No space left on device"), ("| exit 0", {0, 1, 128 + signal.SIGPIPE}, "")],
)
def test_output_that_nobody_takes(verb: str, to: str, codes: set[int], said: str, tmp_path: Path) -> None:
    file = config_file(tmp_path, SERVER) if verb == "validate-config" else ""
    # argparse keeps to itself what an unbuffered stream says.
    script = f"set -o pipefail; unset PYTHONUNBUFFERED; {sys.executable} -m tapotun_trio {verb} {file} {to}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=False, timeout=30)
    assert done.returncode in codes
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception ignored" not in done.stderr


def test_a_mistyped_verb_is_no_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error("stauts", "--json") == exit_codes.USAGE
    err = capsys.readouterr().err
    assert err.startswith("usage: tapotun")
    assert err.endswith("error: 'stauts' is neither a verb nor a file; did you mean: tapotun status --json\n")


@table(
    "argv said",
    ("of a verb", ["wait", "--timout", "3"], "unrecognized arguments: --timout; did you mean --timeout\n"),
    ("with a value", ["status", "--nmae=hub"], "unrecognized arguments: --nmae=hub; did you mean --name\n"),
    ("before a file", ["--log-levle", "xyzzy", "a.json"], "did you mean --log-level\n"),
    ("nothing like it", ["token", "--frobnicate"], "unrecognized arguments: --frobnicate\n"),
)
def test_a_mistyped_option(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error(*argv) == exit_codes.USAGE
    assert said in capsys.readouterr().err


def test_alone_it_is_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert usage_error("--help") == exit_codes.OK
    text = capsys.readouterr().out
    assert main([]) == exit_codes.USAGE
    assert capsys.readouterr() == ("", text)


@pytest.mark.parametrize(
    "argv", [["validate-config", "{}"], ["doctor", "{}"], ["probe", "{}"], ["run", "{}"]], ids=lambda argv: argv[0]
)
def test_a_config_that_this_user_may_not_read(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], as_nobody: Callable[[], None]
) -> None:
    file = config_file(tmp_path, CLIENT)
    if argv[0] == "doctor":  # loads what it needs, which an ordinary user may not be able to read
        main(["doctor", file])
        capsys.readouterr()
    Path(file).chmod(0)
    as_nobody()
    code = main([word.format(file) for word in argv])
    out, err = capsys.readouterr()
    assert code == (exit_codes.USAGE if argv[0] == "probe" else exit_codes.FAILED)
    [line] = [line for line in (out + err).splitlines() if "cannot be read" in line]
    assert "cannot be read: Permission denied; run it as root, or " in line


def test_files_of_a_config_that_this_user_may_not_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], as_nobody: Callable[[], None]
) -> None:
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    (tmp_path / "token").write_text("raw-token\n")
    entry = {**CLIENT, "server": "https://192.0.2.1/ip", "token_file": "token", "tls": {"ca_file": "ca.pem"}}
    del entry["token"]
    file = config_file(tmp_path, entry)
    Path(file).chmod(0o644)
    for name in ("ca.pem", "token"):
        (tmp_path / name).chmod(0)
    as_nobody()
    assert main(["validate-config", file]) == exit_codes.FAILED
    lines = [line for line in capsys.readouterr().out.splitlines() if "Permission denied; run it as root" in line]
    assert [("token_file" in line, "tls.ca_file" in line) for line in lines] == [(True, False), (False, True)]


@pytest.mark.parametrize("verb", ["token", "status", "validate-config", "doctor", "schema", "--version"])
def test_without_a_stdout(verb: str, tmp_path: Path) -> None:
    file = config_file(tmp_path, SERVER) if verb == "validate-config" else ""
    script = f"{sys.executable} -X dev -W error -m tapotun_trio {verb} {file} >&-"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, timeout=30)
    assert "Traceback" not in done.stderr
    assert "Warning" not in done.stderr
    assert done.returncode == (exit_codes.FAILED if verb == "status" and "no tapotun" in done.stderr else exit_codes.OK)


def test_a_locale_without_the_letters(tmp_path: Path) -> None:
    file = config_file(tmp_path, {**CLIENT, "server": "http://b\u00fccher.example/ip"})
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    argv = [sys.executable, "-m", "tapotun_trio", "validate-config", file]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=30, env=env)
    assert r'"http://b\xfccher.example/ip" has letters beyond ASCII' in done.stdout
    assert (done.returncode, done.stderr) == (exit_codes.FAILED, "")


def test_a_directory_that_was_removed(tmp_path: Path) -> None:
    script = f"mkdir {tmp_path}/gone && cd {tmp_path}/gone && rmdir {tmp_path}/gone"
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    script = f"{script} && exec {sys.executable} -m tapotun_trio hub.json"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=False, timeout=30, env=env)
    assert done.returncode == exit_codes.FAILED
    assert done.stderr.endswith("ERROR   hub.json: cannot be read: No such file or directory; name a config file\n")
