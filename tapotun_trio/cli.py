"""The command line: verbs and exit codes, nothing else."""

from __future__ import annotations

import argparse
import errno
import json
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from . import __version__, exit_codes
from .config.diagnostics import report_json, report_text
from .config.load import check, load
from .config.model import ClientConfig, Config, LogConfig, ServerConfig, TlsConfig, TlsProblem
from .errors import ConfigError
from .lazy_import import lazy_import
from .log import LEVELS, process_logger, set_up_logging
from .shell.arguments import add_printing_verbs
from .shell.typed import DEFAULT_PAUSE_S, with_verb

TOKEN_BYTES: Final = 32
# trio imports all but hashlib, and most processes use none of it. With each of the first three comes OpenSSL.
NEEDED_BY_FEW: Final = ("ssl", "hmac", "hashlib", "idna")
READY_TIMEOUT_S: Final = 30.0
_STOPS: Final = (signal.SIGINT, signal.SIGTERM)

_DESCRIPTION: Final = """\
Carries IP packets between Linux machines over two long-lived HTTP streams.
One JSON file defines the interfaces, servers and clients alike; the program runs
them in the foreground until SIGINT or SIGTERM, and leaves nothing behind."""

_EPILOG: Final = """\
a first tunnel:
  tapotun token                      make a token, and the hash that the server keeps
  tapotun validate-config FILE       check a config before it runs
  tapotun doctor FILE                see whether this machine is ready for it
  tapotun FILE                       run it (needs CAP_NET_ADMIN)
  tapotun status                     see how it is, as wg show would tell
  tapotun reload                     have it read its config again
  tapotun probe URL --token-file F   test the way to a server, through whatever is on it

exit codes:
  0    stopped on request, or the config is valid
  1    the config has errors, or the start failed: a restart will not help
  2    wrong usage
  3    failed while running: restart it; wait: not up in time
  75   replaced by an update: restart it (no updater is there yet)
  130  interrupted, any verb that runs no interfaces
(service managers: restart after anything but 1 and 2; systemd also leaves 0 alone)

tapotun.json(5) and docs/config.md explain every field of the config file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code; a usage error ends the process with 2. Signals that `__main__` held back
    are let through."""
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    except OSError as exc:
        if exc.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # What is still in the buffer shall not be tried once more at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if exc.errno == errno.EPIPE:  # whoever read it has seen enough
            return 128 + signal.SIGPIPE
        print(f"tapotun: the output cannot be written: {exc.strerror}", file=sys.stderr)
        return exit_codes.FAILED


def _main(argv: Sequence[str]) -> int:
    try:
        arguments = _parser().parse_args(with_verb(argv))
        verb: Callable[[argparse.Namespace], int] = arguments.verb
        if verb is not _run:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_STOPS, signal.SIGHUP})
        return verb(arguments)
    finally:  # of --help too, which raises SystemExit
        if sys.stdout is not None:
            sys.stdout.flush()


def _run(arguments: argparse.Namespace) -> int:
    # Until the app hears them all: a hangup waits, since whoever asks for a reload does not mean to end a process that
    # is only starting; a stop ends it at once, since nothing has begun, and an exception might be lost in an import.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    before = [(number, signal.signal(number, lambda *_: os._exit(exit_codes.OK))) for number in _STOPS]
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    try:
        return _run_interfaces(arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in before:
            signal.signal(number, handler)


def _run_interfaces(arguments: argparse.Namespace) -> int:
    def said(log: LogConfig) -> LogConfig:
        """The command line wins over the file."""
        return LogConfig(arguments.log_level or log.level, arguments.log_format or log.format)

    set_up_logging(said(LogConfig()).level, said(LogConfig()).format)
    log = process_logger()
    try:  # a reload may come when the working directory is another one
        file = os.path.abspath(arguments.file)
    except FileNotFoundError:  # it has been removed, and so has what was in it
        file = arguments.file

    def read() -> Config:
        config = load(file, _validate_tls)
        interfaces = tuple(i for i in config.interfaces if isinstance(i, arguments.kinds))
        if not interfaces:
            raise ConfigError(f"{file}: has no {arguments.kind_name} definition; run it with: tapotun run")
        return replace(config, interfaces=interfaces, log=said(config.log))

    try:
        config = read()
    except ConfigError as exc:
        for line in str(exc).splitlines():
            log.error("%s", line)
        return exit_codes.FAILED
    set_up_logging(config.log.level, config.log.format)
    for warning in config.warnings:
        log.warning("%s", warning)
    for module in NEEDED_BY_FEW:
        lazy_import(module)
    from .app import run  # only now: the other verbs need neither trio nor the host

    return run(
        config,
        read,
        name=arguments.name,
        config_file=file,
        notify_fd=arguments.notify_fd,
        ready_timeout_s=arguments.ready_timeout,
    )


def _status(arguments: argparse.Namespace) -> int:
    from .control import subcommands as verbs

    return verbs.status(arguments)


def _wait(arguments: argparse.Namespace) -> int:
    from .control import subcommands as verbs

    return verbs.wait(arguments)


def _disconnect(arguments: argparse.Namespace) -> int:
    from .control import subcommands as verbs

    return verbs.disconnect(arguments)


def _reload(arguments: argparse.Namespace) -> int:
    from .control import subcommands as verbs

    return verbs.reload(arguments)


def _validate(arguments: argparse.Namespace) -> int:
    config, findings = check(arguments.file, _validate_tls)
    if arguments.json:
        print(report_json(arguments.file, findings))
    else:
        print(report_text(arguments.file, config, findings))
    return exit_codes.FAILED if config is None else exit_codes.OK


def _validate_tls(config: TlsConfig) -> TlsProblem | None:
    from .host.net.tls_files import judge_files  # OpenSSL; most configs name no file

    return judge_files(config)


def _token(arguments: argparse.Namespace) -> int:
    import hashlib
    import secrets

    token = secrets.token_urlsafe(TOKEN_BYTES)
    sha256 = "sha256:" + hashlib.sha256(token.encode()).hexdigest()
    sha1 = hashlib.sha1(token.encode(), usedforsecurity=False).hexdigest()
    print(f'client:  "token": {json.dumps(token)}')
    print(f'server:  "token": {json.dumps(sha256)}')
    print(f'server:  "token": {json.dumps(sha1)}    (SHA-1: for servers that know no other)')
    return exit_codes.OK


def _doctor(arguments: argparse.Namespace) -> int:
    from .doctor.run import doctor

    return doctor(arguments, _validate_tls)


def _probe(arguments: argparse.Namespace) -> int:
    from .probe.run import probe  # the other verbs need none of it

    return probe(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tapotun",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"tapotun {__version__}")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    for name, kinds, kind_name, text in (
        (
            "run",
            (ServerConfig, ClientConfig),
            "interface",
            "run every interface of FILE; the verb may be left out",
        ),
        ("server", (ServerConfig,), "server", "run only the servers of FILE"),
        ("client", (ClientConfig,), "client", "run only the clients of FILE"),
    ):
        verb = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        verb.add_argument("file", metavar="FILE", help="the config, JSON")
        verb.add_argument("--log-level", choices=LEVELS, help="default: what FILE says, else info")
        verb.add_argument("--log-format", choices=("text", "json"), help="default: what FILE says, else text")
        verb.add_argument(
            "--name",
            type=_process_name,
            metavar="NAME",
            help="what status and others call this process. Default: its PID",
        )
        text = "write a line to this open descriptor when every interface is up (s6)"
        verb.add_argument("--notify-fd", type=_notify_fd, metavar="FD", help=text)
        text = "be ready for the service manager after so long, up or not. Default: 30"
        verb.add_argument("--ready-timeout", type=_timeout, default=READY_TIMEOUT_S, metavar="SECONDS", help=text)
        verb.set_defaults(verb=_run, kinds=kinds, kind_name=kind_name)

    text = "check FILE and print all of its errors, one line each"
    verb = verbs.add_parser("validate-config", help=text, description=text, allow_abbrev=False)
    verb.add_argument("file", metavar="FILE", help="the config, JSON")
    verb.add_argument("--json", action="store_true", help="print the same as one JSON object")
    verb.set_defaults(verb=_validate)

    text = "print a fresh 256-bit token for a client and its hash for the server"
    verb = verbs.add_parser("token", help=text, description=text, allow_abbrev=False)
    verb.set_defaults(verb=_token)

    text = "look for what of this machine stands in a tunnel's way, and say what to do"
    verb = verbs.add_parser(
        "doctor", help=text, description=f"{text}. Exit code 1: something does.", allow_abbrev=False
    )
    verb.add_argument("file", metavar="FILE", nargs="?", help="the config that is to run here. Default: none")
    verb.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    verb.set_defaults(verb=_doctor)

    _add_asking_verbs(verbs)
    _add_probe(verbs)
    add_printing_verbs(verbs, _parser)
    return parser


def _add_asking_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Those that ask processes that run."""
    whom = "only the process of that name (run --name; by default its PID). Default: all that run here"

    text = "show how the interfaces of running processes are"
    verb = verbs.add_parser("status", help=text, description=text, allow_abbrev=False)
    verb.add_argument("interfaces", metavar="INTERFACE", nargs="*", help="only these. Default: all")
    text = "again every so many seconds (default: 2), until interrupted"
    verb.add_argument("--watch", type=_pause, nargs="?", const=DEFAULT_PAUSE_S, metavar="SECONDS", help=text)
    verb.add_argument("--json", action="store_true", help="for programs; docs/status.md has the fields")
    verb.add_argument("--name", type=_process_name, metavar="NAME", help=whom)
    verb.set_defaults(verb=_status)

    text = "wait until interfaces are up: a server listens, a client's streams carry packets"
    verb = verbs.add_parser(
        "wait",
        help=text,
        description=f"{text}. Exit code 0: they are; 3: not in time; 1: that cannot be.",
        allow_abbrev=False,
    )
    verb.add_argument("interfaces", metavar="INTERFACE", nargs="*", help="these. Default: all")
    verb.add_argument("--timeout", type=_timeout, metavar="SECONDS", help="at most so long. Default: for ever")
    verb.add_argument("--name", type=_process_name, metavar="NAME", help=whom)
    verb.set_defaults(verb=_wait)

    text = "have running processes read their config again: all of it, or, at any error, nothing"
    verb = verbs.add_parser("reload", help=text, description=text, allow_abbrev=False)
    verb.add_argument("--dry-run", action="store_true", help="only say what would change")
    verb.add_argument("--name", type=_process_name, metavar="NAME", help=whom)
    verb.set_defaults(verb=_reload)

    text = "end the streams of a server's client, which may come back at once"
    verb = verbs.add_parser("disconnect", help=text, description=text, allow_abbrev=False)
    verb.add_argument(
        "interface", metavar="INTERFACE", nargs="?", help="the server. Default: every one with such a client"
    )
    verb.add_argument("client", metavar="CLIENT", help="its name in the config, or its address if it has none there")
    verb.add_argument("--name", type=_process_name, metavar="NAME", help=whom)
    verb.set_defaults(verb=_disconnect)


def _notify_fd(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 3 <= int(text) < 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r} is no descriptor; write a number from 3 on")
    return int(text)


def _process_name(text: str) -> str:
    from .control.socket_path import NAME, NAME_RULE

    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no name; write {NAME_RULE}")
    return text


def _pause(text: str) -> float:
    return _seconds(text, 0.1, 86400)


def _timeout(text: str) -> float:
    return _seconds(text, 0, 1e9)


def _seconds(text: str, least: float, most: float) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not least <= seconds <= most:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds from {least:g} to {most:g}")
    return seconds


_PROBE_EPILOG: Final = """\
It needs no root, makes no interface and sends no packet. A client that runs with the same
token is left alone: then only what does not take its place is tested, and the report says so.

exit codes:
  0    usable (perhaps with warnings, or over a WebSocket)
  1    not usable; the report says what to change
  2    wrong usage: an option, the URL, the token file
  130  interrupted (143: by SIGTERM), no verdict"""


def _add_probe(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "test the path to URL as a client would use it, and say what to change"
    verb = verbs.add_parser(
        "probe",
        help=text,
        description=text,
        epilog=_PROBE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    verb.add_argument("url", metavar="URL", help="the client's server, http or https")
    verb.add_argument("--token-file", metavar="F", required=True, help="file that holds the client's raw token")
    verb.add_argument("--json", action="store_true", help="print the report as one JSON object")
    text = "look for timeouts that end a stream after up to so many silent seconds; 0: do not. Default: 20, most: 80"
    verb.add_argument("--idle-limit", metavar="SECONDS", type=float, default=20.0, help=text)
    text = "what the client's config has, which says what usable means. Default: auto"
    verb.add_argument("--transport", choices=("auto", "http", "websocket"), default="auto", help=text)
    for option in ("--ca-file", "--cert-file", "--key-file"):
        verb.add_argument(option, metavar="F", help=f"tls.{option[2:].replace('-', '_')} of the client's config")
    verb.add_argument("--server-name", metavar="NAME", help="tls.server_name of the client's config")
    verb.add_argument("--min-version", choices=("1.2", "1.3"), default="1.2", help="tls.min_version. Default: 1.2")
    verb.add_argument("--insecure", action="store_true", help="check no certificate, as tls.insecure")
    verb.add_argument("--proxy", metavar="URL", help="proxy of the client's config; default: the environment's")
    verb.add_argument(
        "--auth-header",
        choices=("x-api-key", "authorization", "both"),
        default="x-api-key",
        help="what carries the token. Default: x-api-key",
    )
    verb.set_defaults(verb=_probe)
