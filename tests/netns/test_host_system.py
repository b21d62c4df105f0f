"""RealHost, and the checks before the first interface."""

from __future__ import annotations

import pytest
import trio

from tapotun_trio.host.interfaces import Host
from tapotun_trio.host.linux import RealHost, raise_fd_limit, require_tun_privileges

from .fresh_namespace import in_fresh_namespace, ip, python

pytestmark = pytest.mark.netns


@in_fresh_namespace
async def test_a_real_host_is_a_host() -> None:
    host: Host = RealHost()
    with host.open_device("tun0") as device:
        async with host.open_network() as network:
            await network.link_up(device.name, 1400)
            (link,) = ip("link", "show", "tun0")
            assert "UP" in link["flags"]
        with trio.fail_after(1):
            await device.queues[0].wait_writable()


@in_fresh_namespace
async def test_root_has_the_rights() -> None:
    require_tun_privileges()


RIGHTS = "from tapotun_trio.host.linux import require_tun_privileges; require_tun_privileges()"
TUN = "from tapotun_trio.host.linux import RealHost; RealHost().open_device('tun0').__enter__()"


@in_fresh_namespace
async def test_a_missing_capability_is_named_with_its_remedies() -> None:
    for script in (RIGHTS, TUN):
        done = python(script, without="net_admin")
        line = done.stderr.splitlines()[-1]
        assert line.startswith("tapotun_trio.errors.HostError: ")
        assert "CAP_NET_ADMIN" in line
        assert "AmbientCapabilities=CAP_NET_ADMIN" in line


@in_fresh_namespace
async def test_the_descriptor_limit_is_raised_to_the_hard_one() -> None:
    done = python(
        "import resource\n"
        "from tapotun_trio.host.linux import raise_fd_limit\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, 2000))\n"
        "print(raise_fd_limit(), raise_fd_limit(), resource.getrlimit(resource.RLIMIT_NOFILE))\n"
    )
    assert done.stdout == "2000 2000 (2000, 2000)\n", done.stderr
    assert (raise_fd_limit() or 0) > 0


@in_fresh_namespace
async def test_a_started_network_has_not_imported_all_of_pyroute2() -> None:
    """See `light_pyroute2` for the reason. Nothing of it is imported before a network is opened."""
    done = python(
        "import sys, trio\n"
        "from tapotun_trio.host.linux import RealHost\n"
        "def imported():\n"
        "    return sum(name.split('.')[0] == 'pyroute2' for name in sys.modules)\n"
        "async def main():\n"
        "    before = imported()\n"
        "    async with RealHost().open_network() as network:\n"
        "        await network.remove('tun0', [])\n"
        "    print(before, imported() < 40, 'asyncio' in sys.modules, 'pyroute2.ndb' in sys.modules)\n"
        "trio.run(main)\n"
    )
    assert done.stdout == "0 True False False\n", done.stderr


@in_fresh_namespace
async def test_a_pyroute2_that_is_imported_already_is_used() -> None:
    done = python(
        "import pyroute2\n"
        "from tapotun_trio.host.netlink.codec import PROTOCOL\n"
        "import sys\n"
        "assert sys.modules['pyroute2'] is pyroute2 and pyroute2.IPRoute\n"
    )
    assert done.returncode == 0, done.stderr
