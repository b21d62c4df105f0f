"""The command line: subcommands and exit codes, nothing else."""

from __future__ import annotations

import argparse
import errno
import math
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

from . import __version__, exit_codes
from .config.diagnostics import InvalidValue, report_json, report_text
from .config.load import check, load
from .config.model import ClientConfig, Config, LogConfig, ServerConfig, TlsConfig, TlsProblem
from .config.parsers import parse_user_name
from .errors import ConfigError
from .lazy_import import lazy_import
from .log import LEVELS, process_logger, set_up_logging
from .shell.arguments import add_printing_verbs
from .shell.typed import DEFAULT_PAUSE_S, UnknownVerbError, unrecognized, with_verb
from .shell.usage import verb_parsers

# trio imports all of these except hashlib, and most processes use none of them. Each of the first three loads OpenSSL.
NEEDED_BY_FEW: Final = ("ssl", "hmac", "hashlib", "idna")
# argparse imports shutil, which imports these modules if it can. They are for archives, which this program does not
# use.
_NEEDED_BY_NONE: Final = ("bz2", "lzma")
READY_TIMEOUT_S: Final = 30.0
_STOPS: Final = (signal.SIGINT, signal.SIGTERM)

_DESCRIPTION: Final = """\
Carries IP packets or Ethernet frames between Linux machines over two long-lived
HTTP streams.
One JSON file defines the interfaces, both servers and clients. The program runs
them in the foreground until SIGINT or SIGTERM and removes everything it has set up."""

_EPILOG: Final = """\
a first tunnel:
  tapotun token                      make a token, and its hash for the server
  tapotun validate-config FILE       check a config before you run it
  tapotun doctor FILE                check whether this machine can run it
  tapotun FILE                       run it (needs CAP_NET_ADMIN)
  tapotun status                     show its state, much as wg show does
  tapotun reload                     make it read its config again
  tapotun probe FILE                 test the path to its server, proxies included
  tapotun update --check FILE        look for a newer version

exit codes:
  0    stopped on request, or the config is valid
  1    the config has errors, or the start failed: a restart will not help
  2    wrong usage
  3    failed while running: restart it; wait: not up in time
  4    update: there is a newer version
  75   replaced by an update: restart it
  130  interrupted (any subcommand that does not run interfaces)
(a service manager should restart it after any code but 0, 1 and 2)

tapotun.json(5) and docs/config.md explain every field of the config file."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand and return the exit code. A usage error ends the process with code 2.

    Unblocks the signals that `__main__` has blocked.
    """
    try:
        return _main(sys.argv[1:] if argv is None else argv)
    except KeyboardInterrupt:
        return exit_codes.INTERRUPTED
    except OSError as exc:
        if exc.errno not in (errno.EPIPE, errno.ENOSPC):
            raise
        # Otherwise the interpreter would try to write the rest of the buffer when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if exc.errno == errno.EPIPE:  # the reader has closed the pipe
            return 128 + signal.SIGPIPE
        print(f"tapotun: the output cannot be written: {exc.strerror}", file=sys.stderr)
        return exit_codes.FAILED


def _main(argv: Sequence[str]) -> int:
    for module in _NEEDED_BY_NONE:
        lazy_import(module)
    try:
        arguments = _parsed(argv)
        if arguments is None:
            return exit_codes.USAGE
        verb: Callable[[argparse.Namespace], int] = arguments.verb
        if verb is not _run:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {*_STOPS, signal.SIGHUP})
        return verb(arguments)
    finally:  # also after --help, which raises SystemExit
        if sys.stdout is not None:
            sys.stdout.flush()


def _parsed(argv: Sequence[str]) -> argparse.Namespace | None:
    """Parse the arguments. None: there are none, and the help was shown. Raises SystemExit."""
    parser = build_parser()
    if not argv:
        parser.print_help(sys.stderr)
        return None
    try:
        words = with_verb(argv)
    except UnknownVerbError as exc:
        parser.error(str(exc))
    arguments, rest = parser.parse_known_args(words)
    if rest:
        verb = verb_parsers(parser)[words[0]]
        verb.error(unrecognized(rest, (flag for action in verb._actions for flag in action.option_strings)))
    return arguments


def _run(arguments: argparse.Namespace) -> int:
    from .host.process.signals import shielded_from_signals

    with shielded_from_signals(exit_codes.OK):
        return _run_interfaces(arguments)


def _run_interfaces(arguments: argparse.Namespace) -> int:
    def with_options(log: LogConfig) -> LogConfig:
        """Options of the command line override the file."""
        return LogConfig(arguments.log_level or log.level, arguments.log_format or log.format)

    set_up_logging(with_options(LogConfig()).level, with_options(LogConfig()).format)
    log = process_logger()
    try:  # the working directory may have changed by a reload
        file = os.path.abspath(arguments.file)
    except FileNotFoundError:  # the working directory was removed, and so were its files
        file = arguments.file

    def read() -> Config:
        config = load(file, _validate_tls)
        interfaces = tuple(i for i in config.interfaces if isinstance(i, arguments.kinds))
        if not interfaces:
            raise ConfigError(f"{file}: has no {arguments.kind_name} definition; run it with: tapotun run")
        return replace(config, interfaces=interfaces, log=with_options(config.log), user=arguments.user or config.user)

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
    from .app import run  # imported here, because the other subcommands need neither trio nor the host

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
    from .host.net.tls_files import judge_files  # imported here, because it loads OpenSSL and most configs name no file

    return judge_files(config)


def _token(arguments: argparse.Namespace) -> int:
    from .shell.token import token

    return token(arguments)


def _doctor(arguments: argparse.Namespace) -> int:
    from .doctor.run import doctor

    return doctor(arguments, _validate_tls)


def _update(arguments: argparse.Namespace) -> int:
    from .update.run import update  # imported here, because the other subcommands do not need it

    return update(arguments, _validate_tls)


def _probe(arguments: argparse.Namespace) -> int:
    from .probe.run import probe  # imported here, because the other subcommands do not need it

    return probe(arguments)


class _Version(argparse.Action):
    """Prints the version, and which plane the installed package has for this machine, as TAPOTUN_PLANE wants it."""

    def __init__(self, option_strings: Sequence[str], dest: str, help: str) -> None:
        super().__init__(option_strings, dest=argparse.SUPPRESS, default=argparse.SUPPRESS, nargs=0, help=help)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from .datapath.plane import plane_here

        try:
            kind, why = plane_here()
            plane = kind if why is None else f"{kind}: {why}"
        except ConfigError as exc:  # the program would not start; its version is still asked for
            plane = f"none: {exc}"
        print(f"tapotun {__version__}\nplane: {plane}")
        parser.exit()


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tapotun",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action=_Version, help="show the version, and which plane there is; exit")
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    for name, kinds, kind_name, text in (
        (
            "run",
            (ServerConfig, ClientConfig),
            "interface",
            "run every interface of FILE; the word run may be left out",
        ),
        ("server", (ServerConfig,), "server", "run only the servers of FILE"),
        ("client", (ClientConfig,), "client", "run only the clients of FILE"),
    ):
        verb = verbs.add_parser(name, help=text, description=text, allow_abbrev=False)
        verb.add_argument("file", metavar="FILE", help="the config, JSON")
        verb.add_argument("--log-level", choices=LEVELS, help="default: the level in FILE, or info")
        verb.add_argument("--log-format", choices=("text", "json"), help="default: the format in FILE, or text")
        verb.add_argument(
            "--name",
            type=_process_name,
            metavar="NAME",
            help="the name of this process for status and other subcommands. Default: its PID",
        )
        text = "become this ordinary user, with the capabilities that are needed; wins over user in FILE"
        verb.add_argument("--user", type=_user_name, metavar="USER", help=text)
        text = "write a line to this open descriptor when every interface is up (s6)"
        verb.add_argument("--notify-fd", type=_notify_fd, metavar="FD", help=text)
        text = "report ready to the service manager after this time, even if an interface is not up. Default: 30"
        verb.add_argument("--ready-timeout", type=_timeout, default=READY_TIMEOUT_S, metavar="SECONDS", help=text)
        verb.set_defaults(verb=_run, kinds=kinds, kind_name=kind_name)

    text = "check FILE and print all of its errors, one line each"
    verb = verbs.add_parser("validate-config", help=text, description=text, allow_abbrev=False)
    verb.add_argument("file", metavar="FILE", help="the config, JSON")
    verb.add_argument("--json", action="store_true", help="print the result as one JSON object")
    verb.set_defaults(verb=_validate)

    text = "print a new 256-bit token for a client and its hash for the server"
    verb = verbs.add_parser("token", help=text, description=text, allow_abbrev=False)
    what = verb.add_mutually_exclusive_group()
    what.add_argument("--hash", action="store_true", help="print the hashes of the token on standard input instead")
    text = "write the new token to this file, with mode 0600, instead of printing it; a file that exists is left alone"
    what.add_argument("--write", metavar="F", help=text)
    verb.add_argument("--force", action="store_true", help="let --write replace a file that exists")
    verb.set_defaults(verb=_token)

    text = "check this machine for anything that would prevent a tunnel from working, and say what to do"
    verb = verbs.add_parser(
        "doctor", help=text, description=f"{text}. Exit code 1: there is a problem.", allow_abbrev=False
    )
    verb.add_argument("file", metavar="FILE", nargs="?", help="the config that will run here. Default: none")
    verb.add_argument("--json", action="store_true", help="print the findings as one JSON object")
    verb.set_defaults(verb=_doctor)

    _add_asking_verbs(verbs)
    _add_probe(verbs)
    _add_update(verbs)
    add_printing_verbs(verbs, build_parser)
    return parser


def _add_asking_verbs(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The subcommands that ask running processes."""
    whom = "only the process with this name (run --name; by default its PID). Default: all on this machine"

    text = "show the state of the interfaces of running processes"
    verb = verbs.add_parser("status", help=text, description=text, allow_abbrev=False)
    verb.add_argument("interfaces", metavar="INTERFACE", nargs="*", help="only these. Default: all")
    text = "repeat every SECONDS (default: 2) until interrupted"
    verb.add_argument("--watch", type=_pause, nargs="?", const=DEFAULT_PAUSE_S, metavar="SECONDS", help=text)
    verb.add_argument(
        "--json", action="store_true", help="print JSON for programs; docs/status.md documents the fields"
    )
    verb.add_argument("--name", type=_process_name, metavar="NAME", help=whom)
    text = "everything about every peer. Default: a table, a line for each, if the peers would fill more than a screen"
    verb.add_argument("--full", action="store_true", help=text)
    text = "instead: the MAC addresses behind each server with a TAP interface, and where they are"
    verb.add_argument("--macs", action="store_true", help=text)
    verb.set_defaults(verb=_status)

    text = "wait until interfaces are up: a server listens, a client's streams carry packets"
    verb = verbs.add_parser(
        "wait",
        help=text,
        description=f"{text}. Exit code 0: they are up; 3: not in time; 1: there is no such interface.",
        allow_abbrev=False,
    )
    verb.add_argument("interfaces", metavar="INTERFACE", nargs="*", help="only these. Default: all")
    verb.add_argument("--timeout", type=_timeout, metavar="SECONDS", help="give up after this time. Default: never")
    verb.add_argument("--name", type=_process_name, metavar="NAME", help=whom)
    verb.set_defaults(verb=_wait)

    text = "make running processes read their config again; after any error, nothing changes"
    verb = verbs.add_parser("reload", help=text, description=text, allow_abbrev=False)
    verb.add_argument("--dry-run", action="store_true", help="show what would change, and change nothing")
    verb.add_argument("--name", type=_process_name, metavar="NAME", help=whom)
    verb.set_defaults(verb=_reload)

    text = "end the streams of a server's client, which may reconnect at once"
    verb = verbs.add_parser("disconnect", help=text, description=text, allow_abbrev=False)
    verb.add_argument(
        "interface", metavar="INTERFACE", nargs="?", help="the server. Default: every server with such a client"
    )
    verb.add_argument("client", metavar="CLIENT", help="its name in the config, or its address if it has no name")
    verb.add_argument("--name", type=_process_name, metavar="NAME", help=whom)
    verb.set_defaults(verb=_disconnect)


def _notify_fd(text: str) -> int:
    if not (text.isascii() and text.isdecimal()) or not 3 <= int(text) < 1 << 20:
        raise argparse.ArgumentTypeError(f"{text!r} is not a file descriptor number; use 3 or higher")
    return int(text)


def _process_name(text: str) -> str:
    from .control.socket_path import NAME, NAME_RULE

    if not NAME.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid name; use {NAME_RULE}")
    return text


def _user_name(text: str) -> str:
    try:
        return parse_user_name(text)
    except InvalidValue as exc:
        raise argparse.ArgumentTypeError(f"{text!r} {exc.problem}; {exc.remedy}") from exc


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
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from {least:g} to {most:g}")
    return seconds


_UPDATE_EPILOG: Final = """\
What the repository publishes is verified with the keys of the root metadata. It is read by
processes without privileges only. docs/update.md says more.

exit codes:
  0    nothing newer
  1    no check was made, or what the repository offers cannot be trusted
  2    wrong usage
  4    there is a newer version (--install: 0, it is installed)
  130  interrupted (143: by SIGTERM)"""


def _add_update(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "look for a newer version of this program in a repository; fetch it or install it"
    verb = verbs.add_parser(
        "update",
        help=text,
        description=text,
        epilog=_UPDATE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    text = "a config with update in its root object, which names the repository. Default: --url"
    verb.add_argument("file", metavar="FILE", nargs="?", help=text)
    what = verb.add_mutually_exclusive_group()
    what.add_argument("--check", action="store_true", help="only say whether there is a newer version")
    what.add_argument("--output", metavar="F", help="write the newer version to this file")
    text = "try the newer version with FILE, and replace this tapotun.pyz by it; it runs after a restart"
    what.add_argument("--install", action="store_true", help=text)
    verb.add_argument("--url", metavar="URL", help="the repository: update.url")
    verb.add_argument("--root-file", metavar="F", help="its root metadata, to trust: update.root_file")
    verb.add_argument("--channel", metavar="NAME", help="which of its versions: update.channel. Default: stable")
    text = "the HTTP proxy to connect through: update.proxy. Default: the environment's"
    verb.add_argument("--proxy", metavar="URL", help=text)
    verb.set_defaults(verb=_update)


_TLS_FILES: Final = {
    "--ca-file": "certificates to trust instead of the system's: tls.ca_file",
    "--cert-file": "the client's own certificate, with its chain: tls.cert_file",
    "--key-file": "the key of that certificate: tls.key_file",
}
_PROBE_EPILOG: Final = """\
The probe needs no root, makes no interface and sends no packet. It does not disturb a client
that runs with the same token: it leaves out every test that would, and the report says which.

exit codes:
  0    usable (perhaps with warnings, or over a WebSocket)
  1    not usable; the report says what to change
  2    wrong usage: an option, the URL, the config or the token file
  130  interrupted (143: by SIGTERM), no verdict"""


def _add_probe(verbs: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    text = "test the path to a server as a client would use it, and say what to change"
    verb = verbs.add_parser(
        "probe",
        help=text,
        description=text,
        epilog=_PROBE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    text = "the client's server, http or https; or a config file with a client, whose settings are used"
    verb.add_argument("url", metavar="URL|FILE", help=text)
    text = "the file with the client's raw token. A URL needs it; with FILE it is used instead of FILE's token"
    verb.add_argument("--token-file", metavar="F", help=text)
    text = "the client of FILE. Default: its only one"
    verb.add_argument("--interface", metavar="NAME", help=text)
    verb.add_argument("--json", action="store_true", help="print the report as one JSON object")
    text = "look for timeouts that end a stream after up to SECONDS of silence; 0: do not look. Default: 20, at most 80"
    verb.add_argument("--idle-limit", metavar="SECONDS", type=float, default=20.0, help=text)
    text = "look for limits that end a stream at an age of up to SECONDS, even while data flows; such an end that the "
    text += "other tests meet is always looked into. Default: 0, at most 3600"
    verb.add_argument("--age-limit", metavar="SECONDS", type=float, default=0.0, help=text)
    text = "the client's transport, for which the verdict is given. Default: that of FILE, or auto"
    verb.add_argument("--transport", choices=("auto", "http", "websocket"), help=text)
    for option in _TLS_FILES:
        verb.add_argument(option, metavar="F", help=_TLS_FILES[option])
    text = "the name to ask for and to check instead of the URL's: tls.server_name"
    verb.add_argument("--server-name", metavar="NAME", help=text)
    text = "the oldest version of TLS to accept: tls.min_version. Default: that of FILE, or 1.2"
    verb.add_argument("--min-version", choices=("1.2", "1.3"), help=text)
    verb.add_argument("--insecure", action="store_true", help="do not check the certificate: tls.insecure")
    verb.add_argument("--user", metavar="NAME", help="the user for Basic auth of a proxy in front of the server: user")
    text = "the file with that user's password: password_file"
    verb.add_argument("--password-file", metavar="F", help=text)
    text = "a file with further headers of the requests, one `Name: value` a line: headers"
    verb.add_argument("--headers-file", metavar="F", help=text)
    text = "the HTTP proxy to connect through. Default: that of FILE, or the environment's"
    verb.add_argument("--proxy", metavar="URL", help=text)
    verb.add_argument(
        "--auth-header",
        choices=("x-api-key", "authorization", "both"),
        help="the header that carries the token. Default: that of FILE, or x-api-key",
    )
    verb.set_defaults(verb=_probe)
