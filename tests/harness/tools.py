"""The plain tools that do the work: iproute2, run in the calling thread's namespaces."""

from __future__ import annotations

import json
import os
import socket
import subprocess
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, Final

from .errors import CommandError, WaitError

# Debian's root has /usr/sbin in its PATH, its other users (and some su's) have not.
TOOL_PATH: Final = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/sbin:/usr/sbin:/sbin"])


def run_tool(*argv: str, timeout: float = 10.0, where: str = "here") -> str:
    """Run a command in the calling thread's namespaces; its output. Raises CommandError, WaitError."""
    pipe = subprocess.PIPE
    environment = {**os.environ, "PATH": TOOL_PATH, "LC_ALL": "C"}
    try:
        popen = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=pipe, stderr=pipe, env=environment)
    except FileNotFoundError as exc:
        raise CommandError(f"{argv[0]} is not installed") from exc
    return finish(popen, argv, timeout=timeout, check=True, where=f"on {where}").stdout


def run_ip(command: str, where: str = "this machine") -> list[dict[str, Any]]:
    """``ip -j COMMAND`` in the calling thread's network namespace, parsed. Raises CommandError."""
    output = run_tool("ip", "-j", *command.split(), where=where)
    answer: list[dict[str, Any]] = json.loads(output) if output.strip() else []
    return [item for item in answer if item]  # ip writes {} for what a filter has left out


def list_listeners() -> list[str]:
    """What listens in the calling thread's network namespace; see `Host.listening`."""
    found = []
    for line in run_tool("ss", "-H", "-l", "-n", "-t", "-u", "-x").splitlines():
        kind, _state, _received, _sent, local = line.split()[:5]
        if kind == "u_dgr":
            continue  # a Unix datagram socket, bound or not; it does not listen
        found.append(f"{'unix' if kind.startswith('u_') else kind} {local}")
    return sorted(found)


def finish(
    popen: subprocess.Popen[bytes],
    argv: Sequence[str | os.PathLike[str]],
    *,
    timeout: float,
    check: bool,
    where: str,
) -> subprocess.CompletedProcess[str]:
    """Wait for a command whose output is piped to us. Raises as `Host.run` tells."""
    command = " ".join(os.fspath(word) for word in argv)
    with popen:
        try:
            output, errors = (text.decode(errors="replace") for text in popen.communicate(timeout=timeout))
        except subprocess.TimeoutExpired:
            popen.kill()
            raise WaitError(f"waited {timeout:g} s for `{command}` {where}") from None
        except BaseException:
            popen.kill()
            raise
    if check and popen.returncode != 0:
        said = "\n".join(filter(None, [errors.strip(), output.strip()]))
        raise CommandError(f"`{command}` {where} failed with {popen.returncode}: {said}")
    return subprocess.CompletedProcess(list(argv), popen.returncode, output, errors)


def family_of(address: str) -> socket.AddressFamily:
    """The socket family of an address literal. Raises ValueError for anything else."""
    return socket.AF_INET6 if ip_address(address).version == 6 else socket.AF_INET
