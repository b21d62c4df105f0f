"""Without a right on the machine: as root of a user namespace that an ordinary user made, such as rootless containers.

There a capability counts for the namespaces that belong to the user namespace, and the kernel refuses what asks for one
of the machine's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import ExitStack
from typing import Final

import pytest

from tests.harness import ROOT, Host, Lab, Payload, download, ping

from .dual import BRANCH, HUB, dual_cable, dual_client, dual_config
from .ordinary import PLAIN, open_to_everybody
from .topologies import STOP_S, UPLOADING, client_config, server_config

pytestmark = pytest.mark.netns

NOBODY: Final = 65534
AS_NOBODY: Final = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all")
PATIENCE_S: Final = 240.0


@pytest.fixture
def machine(lab: Lab) -> Host:
    """A host whose ordinary users can open /dev/net/tun, and read this program wherever it is."""
    host = lab.host("machine")
    open_to_everybody(host)
    return host


def run_as_nobody(host: Host, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    env = {"HOME": "/nonexistent", "PYTHONDONTWRITEBYTECODE": "1", "TAPOTUN_COVERAGE": ""}  # it may write none
    return host.run([*AS_NOBODY, *argv], timeout=PATIENCE_S, check=check, env=env)


def test_the_demo(machine: Host) -> None:
    """All of `make demo`, with a smaller file."""
    done = run_as_nobody(machine, sys.executable, "-m", "tools.demo", "--size", "16", "--stop", "30", check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Everything was as it should be" in done.stdout


def test_this_machine_s_own_network(machine: Host) -> None:
    """A user namespace alone gives every capability, and none that counts here. The error names the call."""
    config = machine.tmp / "hub.json"
    config.write_text(json.dumps([server_config()]), encoding="utf-8")
    config.chmod(0o600)
    os.chown(config, NOBODY, NOBODY)
    done = run_as_nobody(machine, "unshare", "-Ur", *PLAIN, "run", str(config), check=False)
    assert done.returncode == 1
    [line] = [it for it in done.stderr.splitlines() if " ERROR " in it]
    assert "cannot create TUN interface tun0: TUNSETIFF: Operation not permitted; CAP_NET_ADMIN is there" in line
    assert "unshare -Urn" in line


def test_the_queue_is_as_long_as_anywhere(machine: Host) -> None:
    program = (
        "import subprocess\nfrom tapotun_trio.host.tun import open_tun\n"
        "with open_tun('tun0'):\n    subprocess.run(['ip', 'link', 'show', 'tun0'], check=True)"
    )
    done = run_as_nobody(machine, "unshare", "-Urn", sys.executable, "-c", program)
    assert "qlen 2000" in done.stdout


def test_marks_and_several_clients(machine: Host) -> None:
    """What else asks the kernel for something: tests of policy routing, and of a server with several clients, in
    there."""
    mine = machine.tmp / "mine"
    mine.mkdir()
    os.chown(mine, NOBODY, NOBODY)
    tests = [
        f"tests/netns/test_routing.py::{name}"
        for name in (
            "test_two_clients_talk_to_each_other_and_to_the_server",
            "test_two_interfaces_with_one_mark",
            "test_rules_and_routes_of_others_stay",
        )
    ]
    pytest_ = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    done = run_as_nobody(machine, "unshare", "-Urnm", *pytest_, f"--basetemp={mine}/pytest", *tests, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout  # the first one without a plane and with one


# Each makes something better or safer, and a tunnel works without. By linux/if_tun.h, sockios.h, netlink.h, in6.h,
# tcp.h and asm-generic/socket.h.
OPTIONAL: Final = (
    "capset",
    "prctl",
    "prlimit64",
    "ioctl:1:0x400454d0",  # TUNSETOFFLOAD
    "ioctl:1:0x400454dc",  # TUNSETVNETLE
    "ioctl:1:0x8943",  # SIOCSIFTXQLEN
    "ioctl:1:0x8946",  # SIOCETHTOOL
    "setsockopt:1:270",  # SOL_NETLINK
    "setsockopt:1:6",  # IPPROTO_TCP
    "setsockopt:1:41",  # IPPROTO_IPV6
    "setsockopt:1:0",  # IPPROTO_IP
    *(f"setsockopt:2:{option}" for option in (2, 9, 13, 26, 33)),  # SO_*: all that we set; trio needs SO_RCVBUF
)


@pytest.mark.parametrize("call", ["all", "capset", "prctl", "ioctl:1:0x400454d0", "setsockopt:1:6"])
def test_no_optional_call_is_fatal(lab: Lab, call: str) -> None:
    """Refused as by the filter of a container or of a service manager."""
    server, client = dual_cable(lab)
    calls = OPTIONAL if call == "all" else (call,)
    deny = [sys.executable, "-m", "tests.netns.denied", *calls, "--", *PLAIN]
    with ExitStack() as stack:
        daemons = []
        for host, config, until in (
            (server, dual_config(dual_client(), dual_client("other", BRANCH)), "started: "),
            (client, client_config(), UPLOADING),
        ):
            file = host.tmp / "denied.json"
            file.touch(mode=0o600)
            file.write_text(json.dumps([config]), encoding="utf-8")
            daemon = stack.enter_context(host.start([*deny, file], name="tapotun", cwd=ROOT))
            daemon.wait_for_log(until)
            daemons.append(daemon)
        for address in HUB:
            assert ping(client, address).ok
            with Payload(1 << 20) as payload:
                download(client, server, address, payload, timeout=60.0)
        assert [it.stop(STOP_S) for it in reversed(daemons)] == [0, 0]
    if call in ("capset", "prctl"):
        [line] = [it for it in daemons[0].log.splitlines() if " WARNING " in it]
        assert f"cannot drop privileges that this process does not need ({call}: Operation not permitted)" in line
