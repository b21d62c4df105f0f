"""``python -m tools.release``: see docs/releasing.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from getpass import getpass
from pathlib import Path

from securesystemslib.signer import SSlibKey

from . import apt, version
from .keys import PRIVATE, PUBLIC, Keys, ReleaseError, make_key, read_public
from .repository import ROOT, SNAPSHOT, TARGETS, TIMESTAMP, Repository


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0, or 1 with one line that gives the reason; 130: interrupted."""
    args = _parser().parse_args(argv)
    try:
        for line in args.run(args):
            print(line)
    except ReleaseError as exc:
        print(f"release: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tools.release", description="Publishes releases.")
    verbs = parser.add_subparsers(required=True, metavar="VERB")

    verb = verbs.add_parser("make-key", help="make a pair of Ed25519 keys, NAME.pem and NAME.pub")
    verb.add_argument("file", type=Path, metavar="NAME.pem")
    verb.add_argument("--no-passphrase", action="store_true", help="do not encrypt it: for the key that a timer uses")
    verb.set_defaults(run=_make_key)

    verb = _repository_verb(verbs, "init", "make a new repository of the update check")
    for role, what in _ROLES.items():
        verb.add_argument(f"--{role}", type=Path, action="append", required=True, metavar="NAME.pub", help=what)
    verb.add_argument("--root-threshold", type=int, default=1, metavar="N", help="how many of root's keys must sign")
    verb.set_defaults(run=_init)

    verb = _repository_verb(verbs, "publish", "make a tapotun.pyz the newest of a channel")
    verb.add_argument("--channel", default="stable", help="default: stable")
    verb.add_argument("file", type=Path, metavar="tapotun.pyz")
    verb.set_defaults(run=_publish)

    verb = _repository_verb(verbs, "check-keys", "whether the keys are here that publish needs; changes nothing")
    verb.set_defaults(run=_check_keys)

    verb = _repository_verb(verbs, "refresh", "sign timestamp.json anew, and what expires soon; run it daily")
    verb.set_defaults(run=_refresh)

    verb = _repository_verb(
        verbs, "rotate", "sign a new root.json, for another year, with other keys for roles named here"
    )
    for role, what in _ROLES.items():
        verb.add_argument(
            f"--{role}", type=Path, action="append", metavar="NAME.pub", help=f"{what}; default: as before"
        )
    verb.add_argument("--root-threshold", type=int, metavar="N", help="default: as before")
    verb.set_defaults(run=_rotate)

    verb = _repository_verb(verbs, "show", "verify a repository, and tell what is in it")
    verb.set_defaults(run=_show)

    verb = verbs.add_parser("apt", help="make or extend an apt repository, with reprepro")
    verb.add_argument("--repository", type=Path, required=True, metavar="DIRECTORY")
    verb.add_argument("--key", required=True, metavar="FINGERPRINT", help="of a secret key that gpg has here")
    verb.add_argument("--url", required=True, help="where the directory can be fetched from; goes into tapotun.sources")
    verb.add_argument("--valid-days", type=int, metavar="N", help="apt refuses the repository that many days later")
    verb.add_argument("files", type=Path, nargs="+", metavar="DEB")
    verb.set_defaults(run=_apt)

    verb = verbs.add_parser("check-version", help="whether this commit, its tag and the changelog are of one version")
    verb.set_defaults(run=lambda _: [version.check(Path.cwd(), datetime.now(UTC).date())])
    return parser


_ROLES = {
    "root": "a key that may replace all keys; offline",
    "targets": "the key for the programs themselves",
    "online": "the key for what is signed daily",
}


def _repository_verb(
    verbs: argparse._SubParsersAction[argparse.ArgumentParser], name: str, text: str
) -> argparse.ArgumentParser:
    verb = verbs.add_parser(name, help=text)
    verb.add_argument("--repository", type=Path, required=True, metavar="DIRECTORY")
    verb.add_argument("--keys", type=Path, required=True, metavar="DIRECTORY", help="with the keys and root.json")
    return verb


def _repository(args: argparse.Namespace) -> Repository:
    def ask(file: str) -> str:
        return _passphrase(f"Passphrase of {file}: ")

    return Repository(args.repository, Keys(args.keys, ask), args.keys / "root.json", datetime.now(UTC))


def _passphrase(prompt: str) -> str:
    """What a person types. Raises ReleaseError: nobody is there, as under cron."""
    try:
        return getpass(prompt)
    except EOFError as exc:
        raise ReleaseError(f"{prompt.removesuffix(': ')}: nobody has typed one; run this at a terminal") from exc


def _assigned(args: argparse.Namespace) -> dict[str, list[SSlibKey]]:
    """The keys of each role that was named. One online key signs what two roles of The Update Framework do."""
    found: dict[str, list[SSlibKey]] = {}
    for option, roles in {"root": [ROOT], "targets": [TARGETS], "online": [SNAPSHOT, TIMESTAMP]}.items():
        if files := getattr(args, option):
            keys = [read_public(file.with_suffix(PUBLIC) if file.suffix == PRIVATE else file) for file in files]
            found |= dict.fromkeys(roles, keys)
    return found


def _make_key(args: argparse.Namespace) -> list[str]:
    passphrase = None
    if not args.no_passphrase:
        passphrase = _passphrase(f"Passphrase for {args.file}: ")
        if not passphrase or passphrase != _passphrase("Once more: "):
            raise ReleaseError(f"{args.file}: the passphrase is empty, or was another one the second time")
    key = make_key(args.file, passphrase)
    return [f"{args.file}, {args.file.with_suffix(PUBLIC)}: {key.keyid}"]


def _init(args: argparse.Namespace) -> list[str]:
    _repository(args).init(_assigned(args), args.root_threshold)
    return [f"{args.repository}: a new repository; its root is {args.keys / 'root.json'}"]


def _publish(args: argparse.Namespace) -> list[str]:
    return [f"{args.channel}: {_repository(args).publish(args.channel, args.file)}"]


def _check_keys(args: argparse.Namespace) -> list[str]:
    _repository(args).require_keys()
    return []


def _refresh(args: argparse.Namespace) -> list[str]:
    return _repository(args).refresh()


def _rotate(args: argparse.Namespace) -> list[str]:
    version_number = _repository(args).rotate(_assigned(args), args.root_threshold)
    return [f"root: version {version_number}"]


def _show(args: argparse.Namespace) -> list[str]:
    return _repository(args).describe()


def _apt(args: argparse.Namespace) -> list[str]:
    return apt.publish(args.repository, args.key, args.url, args.valid_days, args.files)


if __name__ == "__main__":
    sys.exit(main())
