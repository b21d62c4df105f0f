"""Two hosts, and between them a link of a smaller MTU whose routers do not say so: a path MTU black hole.

::

    client 198.51.100.2 --- 198.51.100.1 near --- far 192.0.2.254 --- 192.0.2.1 server
                                          MTU 1300

Both routers drop every ICMP message of type 3 code 4, as many firewalls do. Small packets pass.
"""

from __future__ import annotations

from typing import Final, Literal

from tests.harness import Host, Lab

from .topologies import SERVER

CLIENT: Final = "198.51.100.2"
SERVER_6: Final = "2001:db8:2::1"
_NFT: Final = """
table inet filter {
    chain output {
        type filter hook output priority 0;
        icmp type destination-unreachable icmp code frag-needed drop
        icmpv6 type packet-too-big drop
    }
}
"""


def black_hole(
    lab: Lab, mtu: int = 1300, *, name: str = "", ways: Literal["both", "down"] = "both"
) -> tuple[Host, Host]:
    """The server and the client. ``mtu``: of the link in the middle; ``ways``: ``down``: only of what the server
    sends."""
    server, client, near, far = (lab.host(f"{role}{name}") for role in ("server", "client", "near", "far"))
    lab.link(client, [f"{CLIENT}/24", "2001:db8:1::2/64"], near, ["198.51.100.1/24", "2001:db8:1::1/64"])
    lab.link(far, ["192.0.2.254/24", "2001:db8:2::254/64"], server, [f"{SERVER}/24", f"{SERVER_6}/64"])
    middle = lab.link(near, ["203.0.113.1/24", "2001:db8:3::1/64"], far, ["203.0.113.2/24", "2001:db8:3::2/64"])
    if ways == "both":  # not earlier: below 1280 an interface has no IPv6, and does not count as ready
        near.ip(f"link set {middle.a_interface} mtu {mtu}")
        far.ip(f"link set {middle.b_interface} mtu {mtu}")
    client.ip("route add default via 198.51.100.1")
    client.ip("-6 route add default via 2001:db8:1::1")
    server.ip("route add default via 192.0.2.254")
    server.ip("-6 route add default via 2001:db8:2::254")
    near.ip("route add default via 203.0.113.2")
    if mtu >= 1280:
        near.ip("-6 route add default via 2001:db8:3::2")
        far.ip("-6 route add default via 2001:db8:3::1")
    far.ip("route add default via 203.0.113.1" + ("" if ways == "both" else f" mtu lock {mtu}"))
    for router in (near, far):
        router.sysctl("net.ipv4.ip_forward", 1)
        router.sysctl("net.ipv6.conf.all.forwarding", 1)
        rules = router.tmp / "rules.nft"
        rules.write_text(_NFT, encoding="ascii")
        router.run(["nft", "-f", rules])
    return server, client
