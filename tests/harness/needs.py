"""What the harness needs of a machine, and what of it is missing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from typing import Final

from .errors import HarnessError
from .host import Host
from .tools import TOOL_PATH

# Tool and Debian package. Keep install-tools in step.
TOOLS: Final = {
    "ip": "iproute2",
    "ss": "iproute2",
    "mount": "mount",
    "ping": "iputils-ping",
    "tcpdump": "tcpdump",
    "iperf3": "iperf3",
    "curl": "curl",
    "nft": "nftables",
    "radvd": "radvd",
    "dnsmasq": "dnsmasq-base",
    "dhclient": "isc-dhcp-client",
    "nginx": "nginx",
    "caddy": "caddy",
    "haproxy": "haproxy",
    "apache2": "apache2",
    "lighttpd": "lighttpd",
    "varnishd": "varnish",
    "traffic_server": "trafficserver",
    "squid": "squid",
    "stunnel4": "stunnel4",
    "hitch": "hitch",
    "node": "nodejs",
    "chromium": "chromium",
    "chromedriver": "chromium-driver",
    "debootstrap": "debootstrap",
    "podman": "podman",
    "runc": "runc",
    "newuidmap": "uidmap",
    "slirp4netns": "slirp4netns",
    "qemu-aarch64-static": "qemu-user-static",
    "lintian": "lintian",
    "man": "man-db",
    "mandoc": "mandoc",
    "zsh": "zsh",
    "fish": "fish",
}
DEMO_TOOLS: Final = ("ip", "ss", "mount", "ping")


def missing(tools: Iterable[str] = TOOLS) -> list[str]:
    """What this machine and user lack for the harness, one line each with the remedy; empty if nothing."""
    lines = [
        f"no {tool}: apt-get install {TOOLS[tool]}" for tool in tools if shutil.which(tool, path=TOOL_PATH) is None
    ]
    if not lines:
        try:
            with Host("probe"):
                pass
        except HarnessError as exc:
            lines.append(str(exc))
    try:
        os.close(os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        lines.append(
            f"/dev/net/tun cannot be opened ({exc.strerror}): `modprobe tun` loads it; "
            "a container needs --device /dev/net/tun; as an ordinary user, it needs mode 0666"
        )
    return lines
