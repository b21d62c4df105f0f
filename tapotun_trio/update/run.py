"""`tapotun update`, from the command line to its exit code."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import stat
import sys
import tempfile
from argparse import Namespace
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Final

import trio

from .. import __version__, exit_codes
from ..config.diagnostics import InvalidValue
from ..config.load import load
from ..config.model import TlsValidator, UpdateConfig
from ..config.parsers import parse_channel
from ..config.urls import parse_proxy
from ..config.validate_update import parse_repository, shipped_root
from ..errors import ConfigError, HostError, leaves
from ..host.process.signals import STOPS
from ..text import one_line
from .check import check
from .installed import Pyz, find_installation, launcher_warning
from .outcome import Found, Outcome
from .state import state_directory

_MODE: Final = 0o755


class Misused(Exception):
    """The command line is unusable. The text is for the user."""


def update(arguments: Namespace, tls_validator: TlsValidator) -> int:
    """Check, print, and return the exit code."""
    if find_spec("tuf") is None:
        print("tapotun update: needs the package tuf: run pip install 'tapotun-trio[update]'", file=sys.stderr)
        return exit_codes.FAILED
    try:
        config = update_config(arguments, tls_validator)
    except Misused as exc:
        print(f"tapotun update: error: {one_line(str(exc))}", file=sys.stderr)
        return exit_codes.USAGE
    except ConfigError as exc:
        print(str(exc), file=sys.stderr)
        return exit_codes.FAILED
    output = None if arguments.output is None else Path(arguments.output)
    if output is not None and os.path.lexists(output) and not stat.S_ISREG(os.lstat(output).st_mode):
        # Renamed over a device, as root may, the new file would take its place for the whole machine. The same holds
        # for a link such as /dev/stdout, wherever it leads just now.
        text = "is not a regular file; give the name of a new one"
        print(f"tapotun update: {one_line(str(output))} {text}", file=sys.stderr)
        return exit_codes.FAILED
    installation = find_installation()
    command = installation.command(arguments.file or "")
    if arguments.install and installation.pyz is None:
        text = f"this program is installed as {installation.kind}, which is updated by: {command}"
        print(f"tapotun update: {text}", file=sys.stderr)
        return exit_codes.FAILED
    if installation.pyz is not None:
        for warning in (foreign_program(installation.pyz), launcher_warning(installation.pyz)):
            if warning is not None:
                print(f"tapotun update: warning: {one_line(warning)}", file=sys.stderr)
    try:
        found = trio.run(_until_stopped, config, output is not None or arguments.install)
    except* HostError as group:
        for failure in leaves(group):
            print(f"tapotun update: {one_line(str(failure))}", file=sys.stderr)
        found = exit_codes.FAILED
    if isinstance(found, int):
        return found
    for warning in found.warnings:
        print(f"tapotun update: warning: {warning}", file=sys.stderr)
    if not isinstance(found, Found):
        older = "" if found.version == __version__ else f", which has {found.version}"
        print(f"tapotun {__version__}: nothing newer in channel {config.channel}{older}")
        return exit_codes.OK
    print(f"tapotun {found.version} is there; this is {__version__}")
    if arguments.install and installation.pyz is not None and found.memfd is not None:
        return install_by_hand(found, found.memfd, installation.pyz, arguments.file)
    if output is None or found.memfd is None:
        to_install = "add --install" if installation.pyz is not None else command
        print(f"to install it: {to_install}; to get it as a file, verified: add --output FILE")
        return exit_codes.AVAILABLE
    try:
        write_new(found.memfd, output)
    except OSError as exc:
        print(f"tapotun update: {one_line(str(output))} cannot be written: {exc.strerror}", file=sys.stderr)
        return exit_codes.FAILED
    finally:
        os.close(found.memfd)
    print(f"written to {one_line(str(output))}, verified: {found.length} bytes, SHA-256 {found.sha256}")
    return exit_codes.AVAILABLE


def foreign_program(pyz: Pyz) -> str | None:
    """A warning if root has started what another user can replace; None: all is well."""
    if os.geteuid() != 0:
        return None
    place, owner = pyz.path, os.fstat(pyz.fd).st_uid
    if owner == 0:
        place = os.path.dirname(pyz.path)
        try:
            owner = os.stat(place).st_uid
        except FileNotFoundError:  # removed since the start: nobody will start anything there
            return None
    if owner == 0:
        return None
    try:
        name = pwd.getpwuid(owner).pw_name
    except KeyError:
        name, remedy = f"uid {owner}", "start it as that user"
    else:
        remedy = f"start it as that user: runuser -u {name} -- ..."
    return f"{one_line(place)} belongs to {one_line(name)}, who could replace what root starts there; {remedy}"


def install_by_hand(found: Found, memfd: int, pyz: Pyz, config_file: str) -> int:
    """Try the new version, install it on trial, and say so. Closes ``memfd``. Returns the exit code."""
    from .selfcheck import self_check
    from .take import install

    try:
        trio.run(self_check, memfd, found.version, os.path.abspath(config_file), pyz.fd)
        install(memfd, found, pyz, __version__)
    except* HostError as group:
        for failure in leaves(group):
            print(f"tapotun update: {one_line(str(failure))}", file=sys.stderr)
        code = exit_codes.FAILED
    else:
        print(f"version {found.version} is installed as {pyz.path}; restart what runs, which is still {__version__}")
        code = exit_codes.OK
    finally:
        os.close(memfd)
    return code


def update_config(arguments: Namespace, tls_validator: TlsValidator) -> UpdateConfig:
    """What the config file says, or the options. Raises Misused, ConfigError."""
    if arguments.install and arguments.file is None:
        raise Misused("--install needs the config FILE, with which the new version has to work")
    given = {"--root-file": arguments.root_file, "--channel": arguments.channel, "--proxy": arguments.proxy}
    if arguments.file is not None:
        needless = [name for name, value in {"--url": arguments.url, **given}.items() if value is not None]
        if needless:
            raise Misused(f"{needless[0]} is given in addition to FILE, which has it; leave one out")
        config = load(arguments.file, tls_validator).update
        if config is None:
            text = 'has no "update" in its root object, so no repository is known'
            raise Misused(f"{arguments.file}: {text}; add it, or use --url and --root-file")
        return config
    if arguments.url is None:
        raise Misused('give the config FILE with an "update" object, or --url and --root-file')
    if arguments.root_file is None and shipped_root() is None:
        raise Misused("--root-file is missing, and this build of the program has no root metadata of its own")
    try:
        url, login = parse_repository(arguments.url)
        return UpdateConfig(
            url,
            login,
            channel="stable" if arguments.channel is None else parse_channel(arguments.channel),
            root_file=None if arguments.root_file is None else os.path.abspath(arguments.root_file),
            proxy=None if arguments.proxy is None else parse_proxy(arguments.proxy),
        )
    except InvalidValue as exc:
        raise Misused(f"{exc.shown or 'an option'} {exc.problem}; {exc.remedy}") from exc


async def _until_stopped(config: UpdateConfig, download: bool) -> Outcome | int:
    """What was found, or the exit code after a signal."""
    found: Outcome | int = exit_codes.INTERRUPTED

    async def stop(scope: trio.CancelScope) -> None:
        nonlocal found
        with trio.open_signal_receiver(*STOPS) as signals:
            async for number in signals:
                found = 128 + signal.Signals(number)
                scope.cancel()
                return

    failure: HostError | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(stop, nursery.cancel_scope)
        try:
            found = await check(config, __version__, state_directory(os.environ), download=download)
        except HostError as exc:
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    return found


def write_new(memfd: int, path: Path) -> None:
    """Write the file durably, in place of another one if there is one. Blocking. Raises OSError."""
    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with open(fd, "wb") as target, open(memfd, "rb", closefd=False) as source:
            source.seek(0)
            shutil.copyfileobj(source, target)
            target.flush()
            os.fchmod(target.fileno(), _MODE)
            os.fsync(target.fileno())
        os.rename(name, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
