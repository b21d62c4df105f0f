"""The command line: verbs and exit codes, nothing else."""

from __future__ import annotations

import argparse
import hashlib
import json
import secrets
import sys
from collections.abc import Callable, Sequence
from typing import Final

from . import __version__, exits
from .config.findings import report_json, report_text
from .config.load import check, load
from .config.model import ClientConfig, ServerConfig, TlsConfig, TlsProblem
from .errors import ConfigError
from .log import LEVELS, process_logger, set_up_logging

TOKEN_BYTES: Final = 32

_DESCRIPTION: Final = """\
Carries IP packets between Linux machines over two long-lived HTTP streams.
One JSON file defines the interfaces, servers and clients alike; the program runs
them in the foreground until SIGINT or SIGTERM, and leaves nothing behind."""

_EPILOG: Final = """\
a first tunnel:
  tapotun token                      make a token, and the hash that the server keeps
  tapotun validate-config FILE       check a config before it runs
  tapotun FILE                       run it (needs CAP_NET_ADMIN)
  tapotun probe URL --token-file F   test the way to a server, through whatever is on it

exit codes:
  0  stopped on request, or the config is valid
  1  the config has errors, or the start failed: a restart will not help
  2  wrong usage
  3  failed while running: restart it

Every field of the config file is in the README."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb. Returns the exit code; a usage error ends the process with 2."""
    arguments = _parser().parse_args(_with_verb(sys.argv[1:] if argv is None else argv))
    verb: Callable[[argparse.Namespace], int] = arguments.verb
    return verb(arguments)


def _run(arguments: argparse.Namespace) -> int:
    set_up_logging(arguments.log_level, arguments.log_format)
    log = process_logger()
    try:
        config = load(arguments.file, _judge_tls)
    except ConfigError as exc:
        for line in str(exc).splitlines():
            log.error("%s", line)
        return exits.FAILED
    for warning in config.warnings:
        log.warning("%s", warning)
    interfaces = [i for i in config.interfaces if isinstance(i, arguments.kinds)]
    if not interfaces:
        log.error("%s: has no %s definition; run it with: tapotun run", arguments.file, arguments.kind_name)
        return exits.FAILED
    from .app import run  # only now: the other verbs need neither trio nor the host

    return run(interfaces)


def _validate(arguments: argparse.Namespace) -> int:
    config, findings = check(arguments.file, _judge_tls)
    if arguments.json:
        print(report_json(arguments.file, findings))
    else:
        print(report_text(arguments.file, config, findings))
    return exits.FAILED if config is None else exits.OK


def _judge_tls(config: TlsConfig) -> TlsProblem | None:
    from .host.tls_files import judge_files  # OpenSSL; most configs name no file

    return judge_files(config)


def _token(arguments: argparse.Namespace) -> int:
    token = secrets.token_urlsafe(TOKEN_BYTES)
    sha256 = "sha256:" + hashlib.sha256(token.encode()).hexdigest()
    sha1 = hashlib.sha1(token.encode(), usedforsecurity=False).hexdigest()
    print(f'client:  "token": {json.dumps(token)}')
    print(f'server:  "token": {json.dumps(sha256)}')
    print(f'server:  "token": {json.dumps(sha1)}    (SHA-1: for servers that know no other)')
    return exits.OK


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
        verb.add_argument("--log-level", choices=LEVELS, default="info", help="default: info")
        verb.add_argument("--log-format", choices=("text", "json"), default="text", help="default: text")
        verb.set_defaults(verb=_run, kinds=kinds, kind_name=kind_name)

    text = "check FILE and print all of its errors, one line each"
    verb = verbs.add_parser("validate-config", help=text, description=text, allow_abbrev=False)
    verb.add_argument("file", metavar="FILE", help="the config, JSON")
    verb.add_argument("--json", action="store_true", help="print the same as one JSON object")
    verb.set_defaults(verb=_validate)

    text = "print a fresh 256-bit token for a client and its hash for the server"
    verb = verbs.add_parser("token", help=text, description=text, allow_abbrev=False)
    verb.set_defaults(verb=_token)

    _add_probe(verbs)
    return parser


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


_VERBS: Final = frozenset({"run", "server", "client", "validate-config", "token", "probe"})
_OWN_OPTIONS: Final = frozenset({"-h", "--help", "--version"})


def _with_verb(argv: Sequence[str]) -> list[str]:
    """``tapotun [OPTION...] FILE`` means ``tapotun run [OPTION...] FILE``, as deployed users start it."""
    if not argv or _OWN_OPTIONS & set(argv[:1]) or argv[0] in _VERBS:
        return list(argv)
    # Options of `run` may stand before an explicit verb: put the verb first.
    for at, word in enumerate(argv):
        takes_value = at > 0 and argv[at - 1] in ("--log-level", "--log-format")
        if not word.startswith("-") and not takes_value:
            if word in _VERBS:
                return [word, *argv[:at], *argv[at + 1 :]]
            break
    return ["run", *argv]
