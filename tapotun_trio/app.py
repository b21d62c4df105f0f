"""The composition root: real adapters, signals, and one trio run around it all."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from socket import socket

import trio

from . import __version__, exit_codes
from .admin.manager import AdminManager
from .config.model import Config
from .control.handlers import Process, standard_commands
from .control.server import serve_control
from .control.socket_path import REMEDY, RUN, control_directories, listening
from .datapath.plane import open_plane
from .datapath.sender import set_shutdown_reason
from .errors import ConfigError, HostError, ShortageError, leaves, shortage_of
from .host.interfaces import Host
from .host.linux import RealHost
from .host.process.interpreter import settle
from .host.process.malloc import set_mmap_threshold
from .host.process.privileges import drop_privileges, needed_capabilities, raise_fd_limit, require_tun_privileges
from .host.process.sd_notify import ServiceManager
from .host.process.signals import STOPS
from .host.process.user import become_user, find_user, prepare_directory, unreadable, unreadable_program
from .lifecycle.registry import Registry
from .lifecycle.supervisor import require_names, run_interfaces
from .log import Log, process_logger
from .peer.boottime import boottime
from .readiness import log_ready, notify_service_manager
from .reload import Read, Reloader
from .update.installed import find_installation
from .update.state import SYSTEM, state_directory
from .update.trial import end_trial, starting
from .update.updater import Updater

_SIGNALS = (*STOPS, signal.SIGHUP)
_SAME_MOMENT_S = 0.01
_UPDATING = "updating"  # the reason in the last frame to each peer


def run(
    config: Config,
    read: Read,
    *,
    name: str | None,
    config_file: str,
    notify_fd: int | None,
    ready_timeout_s: float,
) -> int:
    """Run the interfaces in the foreground until one of `STOPS`, or until an update was installed. Returns the exit
    code.

    ``read``: reads the config again for a reload; see `Reloader`.
    ``name``: the name of this process in `tapotun status`, by default its PID; ``config_file``: the path shown there.
    ``notify_fd``, ``ready_timeout_s``: see `ServiceManager` and `readiness.notify_service_manager`.
    """
    process = Process(str(os.getpid()) if name is None else name, config_file, boottime())
    log = process_logger()
    updater: Updater | None = None
    try:
        set_mmap_threshold()
        raise_fd_limit()
        as_root = os.geteuid() == 0
        installation = find_installation()
        if as_root and config.user is not None:
            end_trial(installation, __version__, log)  # that user cannot, when the interfaces have started
        _give_up_privileges(config, log)
        state = state_directory(os.environ, config.user if as_root else None)
        changes_user = as_root and config.user is not None
        updater = Updater(installation, __version__, config_file, state, log, changes_user=changes_user)
        with ServiceManager(os.environ, notify_fd, log) as manager:
            host = RealHost(config_file)
            trio.run(serve, config, read, host, process, manager, updater, ready_timeout_s)
    except* (ConfigError, HostError) as group:
        for exc in leaves(group):
            log.error("%s", exc)
        return_code = (
            exit_codes.RUNTIME if all(isinstance(exc, ShortageError) for exc in leaves(group)) else exit_codes.FAILED
        )
    except* Exception as group:
        for error in leaves(group):
            if (shortage := shortage_of(error, "cannot run")) is not None:
                log.error("%s", shortage)
            else:
                log.error("internal error, program stopped", exc_info=error)
        return_code = exit_codes.RUNTIME
    else:
        return_code = exit_codes.OK
    # Also if something failed while it stopped: after 1, nobody would start the new version.
    return exit_codes.UPDATED if updater is not None and updater.ends_process else return_code


def _give_up_privileges(config: Config, log: Log) -> None:
    """Drop the capabilities that are not needed, and become ``config.user``. Raises HostError."""
    if config.user is None:
        require_tun_privileges()
        if (refused := drop_privileges(needed_capabilities(config))) is not None:
            log.warning("%s", refused)
        return
    user = find_user(config.user)
    if os.geteuid() == 0:
        require_tun_privileges()
        prepare_directory(RUN, user)  # if that fails, `_control_socket` warns
        if config.update is not None:
            prepare_directory(SYSTEM, user)  # if that fails, the first check for updates says so
    become_user(user, needed_capabilities(config))
    require_tun_privileges()  # the new user may lack them
    if (blocked := unreadable_program()) is not None:
        text = f'user "{user.name}" cannot read this program (no access to {blocked})'
        raise HostError(f"{text}, which loads parts of itself later; install it where every user can read it")
    for text in unreadable(config.files):
        log.warning("a reload will fail: %s", text)


async def serve(
    config: Config,
    read: Read,
    host: Host,
    process: Process,
    manager: ServiceManager,
    updater: Updater,
    ready_timeout_s: float,
) -> None:
    """Run the interfaces until a signal stops them, or an update was installed, which ``updater.ends_process`` tells.

    Raises HostError if an interface, or the admin listener, cannot start; ConfigError for a wrong TAPOTUN_PLANE.
    """
    log = process_logger()
    registry = Registry()
    registry.update_status = lambda: updater.status
    with (
        trio.open_signal_receiver(*_SIGNALS) as signals,
        _sighup_unblocked(),
        _control_socket(process.name, config.user) as control,
    ):
        async with open_plane(log, wanted=config.plane == "auto"), trio.open_nursery() as nursery:
            admin = AdminManager(process, registry, nursery)
            reloader = Reloader(config, read, registry, admin, manager, log)
            admin.reload = reloader.reload
            reloader.on_reloaded = lambda newer: updater.configure(newer.update)
            nursery.start_soon(_take_signals, signals, nursery, manager, reloader)
            if control is not None:
                commands = {**standard_commands(process, registry), **reloader.commands()}
                nursery.start_soon(serve_control, control, commands, log)
            await _open_admin(admin, config, host)
            async with starting(updater.installation, __version__, log):
                interfaces = await nursery.start(run_interfaces, config.interfaces, host, registry)
                settle()
                reloader.start(interfaces)
                log.info("started: %s", ", ".join(interface.name for interface in config.interfaces))
                updater.configure(config.update)  # a version that fails in here could not be updated any more
            nursery.start_soon(_update, updater, nursery, manager)
            nursery.start_soon(log_ready, registry, log)
            if manager.listens:
                nursery.start_soon(notify_service_manager, manager, registry, ready_timeout_s, log)
    log.info("stopped")


async def _update(updater: Updater, nursery: trio.Nursery, manager: ServiceManager) -> None:
    """Cancel the nursery once an update was installed.

    A signal from then on does not force the stop, and a service manager's request to stop still counts: the signal
    arrives again after the stop, and the exit code is that of a process that was asked to stop.
    """
    version = await updater.run()
    process_logger().info("version %s is installed: stopping, to be started again as that version", version)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    manager.stopping()
    set_shutdown_reason(_UPDATING)
    updater.ends_process = True
    nursery.cancel_scope.cancel()


async def _open_admin(admin: AdminManager, config: Config, host: Host) -> None:
    """Start the admin listener. If its port is in use, a process with the same config may be stopping: `require_names`
    waits for that, and the listener is tried again. Raises HostError. If that process still runs, the error also names
    it."""
    try:
        with admin.changing(config.admin):
            return
    except HostError as exc:
        try:
            await require_names(host, [it.name for it in config.interfaces])
        except HostError as taken:
            raise HostError(f"{exc}; {taken}") from exc
    with admin.changing(config.admin):
        return


@contextmanager
def _sighup_unblocked() -> Iterator[None]:
    """Unblock SIGHUP, which has been blocked since the start: one that arrived meanwhile is delivered now."""
    before = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _control_socket(name: str, user: str | None) -> Iterator[socket | None]:
    """The listening control socket; None, with a warning, if no directory can be used. Tunnels work without it."""
    with ExitStack() as undo:
        found: socket | None = None
        try:
            found = undo.enter_context(listening(name, control_directories(os.environ, user)))
        except OSError as exc:
            text = f"{exc.filename}: {exc.strerror}" if exc.filename else exc.strerror
            process_logger().warning(
                "no control socket, so tapotun status will not see this process: %s; %s", text, REMEDY
            )
        yield found


async def _take_signals(
    signals: AsyncIterator[int], nursery: trio.Nursery, manager: ServiceManager, reloader: Reloader
) -> None:
    """SIGHUP reloads the config, in a task of ``nursery``. The STOPS cancel the nursery."""
    async for number in signals:
        if number == signal.SIGHUP:
            nursery.start_soon(reloader.reload_for_a_signal)
            continue
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        manager.stopping()
        process_logger().info("%s: stopping; a second signal stops at once", signal.Signals(number).name)
        for stop in STOPS:  # trio restores the previous handlers at the end
            # SIGXCPU repeats every second by itself (setrlimit(2)), so a second one does not force the stop.
            signal.signal(stop, signal.SIG_IGN if stop == signal.SIGXCPU else _stop_at_once)
        # A signal that arrives in the same moment (the service manager's and a Ctrl-C) counts as the same request. The
        # receiver holds it already, and would raise it again when it is closed.
        with trio.move_on_after(_SAME_MOMENT_S):
            async for _ in signals:
                pass
        nursery.cancel_scope.cancel()
        return


def _stop_at_once(number: int, frame: object) -> None:
    """At the second signal: end without undo.

    The kernel removes the devices, and with them their addresses and routes. A rule stays until the next start, which
    recognises it.
    """
    os._exit(128 + number)
