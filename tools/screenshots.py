"""`make screenshots`: the pictures of the panel in docs/panel.md, of a real server with real clients and traffic.

A hub of both families has an office's laptop, a branch behind 20 Mbit/s that fills its line, and another branch, which
has IPv4 only; the rest of its clients are away.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from tests.harness import Lab, wait_for_ping
from tests.harness.browser import Browser, browser
from tests.netns.panels import DESKTOP, ORIGIN, tide, write_config
from tests.netns.topologies import (
    SERVER,
    TUNNEL_SERVER,
    UPLOADING,
    allowed,
    client_config,
    running,
    server_config,
    token,
)

MINUTES: Final = 3.0
PHONE: Final = (390, 844)
LINE: Final = "tbf rate 20mbit burst 16kb limit 128kb"

NETS: Final = [f"{TUNNEL_SERVER}/24", "fd5c:7e1a:93b2::1/64"]

# Name, its end of a cable, the hub's end, its addresses in the tunnel.
SITES: Final = (
    ("laptop", "192.0.2.2", SERVER, ["10.10.0.2", "fd5c:7e1a:93b2::2"]),
    ("branch-berlin", "198.51.100.2", "198.51.100.1", ["10.10.0.10", "fd5c:7e1a:93b2::10"]),
    ("branch-lyon", "203.0.113.2", "203.0.113.1", ["10.10.0.11"]),
)


@contextmanager
def hub(lab: Lab) -> Iterator[Browser]:
    """The panel of the hub, logged in, while traffic flows."""
    server = lab.host("hub")
    hosts = {name: lab.host(name) for name, *_ in SITES}
    for name, address, ours, _ in SITES:
        lab.link(server, f"{ours}/24", hosts[name], f"{address}/24")
    for host, interface in ((server, "eth1"), (hosts["branch-berlin"], "eth0")):
        host.run(f"tc qdisc add dev {interface} root {LINE}".split())
    routes = {"branch-berlin": ["10.60.0.0/24", "fd5c:7e1a:93b2:60::/64"], "branch-lyon": ["10.70.0.0/24"]}
    clients = [{**allowed(name, routes=routes.get(name, [])), "ip": ips} for name, _, _, ips in SITES]
    phone = {**allowed("phone"), "ip": ["10.10.0.3", "fd5c:7e1a:93b2::3"]}
    clients += [phone, allowed("tablet", "10.10.0.4")]
    listen = [ours for _, _, ours, _ in SITES]
    inside = "/run/hub.json"  # of the hub's own /run: pictures show no temporary name
    file = Path(f"/proc/{server.pid}/root{inside}")
    write_config(file, server_config(*clients[:-1], net=NETS, name="corp0", listen=listen, keepalive=1))
    with ExitStack() as stack:
        daemon = stack.enter_context(running(server, inside, "--name", "hub"))
        for name, _, ours, _ in SITES:
            entry = client_config(name, server=f"http://{ours}:8080/ip")
            stack.enter_context(running(hosts[name], entry, until=UPLOADING, name=f"tapotun-{name}"))
            wait_for_ping(hosts[name], TUNNEL_SERVER)
        window = stack.enter_context(browser(server))
        window.look(DESKTOP)
        window.open(f"{ORIGIN}/")
        window.write("#token", token("admin"))
        window.click("#login-button")
        window.wait("document.documentElement.dataset.link === 'live'")
        stack.enter_context(tide(hosts["laptop"], TUNNEL_SERVER, mbit_s=30, period_s=41))
        stack.enter_context(tide(server, "10.10.0.2", mbit_s=12, period_s=67))
        stack.enter_context(tide(hosts["branch-lyon"], TUNNEL_SERVER, mbit_s=8, period_s=23))
        stack.enter_context(tide(server, "10.10.0.10", mbit_s=12, period_s=53))
        # Something for each part of the page.
        for _ in range(3):
            hosts["laptop"].run(["curl", "-s", "-H", "x-api-key: wrong", f"http://{SERVER}:8080/ip"])
        more = {"keepalive": 1, "ips": ["10.10.0.254", "fd5c:7e1a:93b2::fe"]}
        write_config(file, server_config(*clients, net=NETS, name="corp0", listen=listen, **more))
        window.click("#reload-button")
        window.click("#reload-apply")
        window.wait_for_text("#reload-text", "Done")
        window.click("#reload-close")
        window.wait("document.querySelector('#toast').hidden")
        daemon.check_running()
        yield window


def settle(window: Browser) -> None:
    """Wait for another status."""
    told = window.text("#process-about")
    window.wait("document.querySelector('#process-about').textContent !== arguments[0]", told)


def take(window: Browser, out: Path) -> None:
    """The pictures."""
    window.choose("#plot-span", "2 min")
    window.script("document.activeElement.blur()")
    for name, size, dark in (("desktop", DESKTOP, False), ("desktop-dark", DESKTOP, True), ("phone", PHONE, False)):
        window.look(size, dark=dark)
        settle(window)
        window.screenshot(out / f"panel-{name}.png")
    # The table with a peer opened, and the phone's.
    window.look(DESKTOP)
    window.click("tr.peer .toggle")
    window.script("document.querySelector('#peers').scrollIntoView()")
    settle(window)
    window.screenshot(out / "panel-peers.png")


def main() -> None:
    """See the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m tools.screenshots", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("docs"), help="directory for the pictures (docs)")
    parser.add_argument("--minutes", type=float, default=MINUTES, help=f"of traffic in the plots ({MINUTES:g})")
    options = parser.parse_args()
    with Lab() as lab, hub(lab) as window:
        print(f"traffic for {options.minutes:g} min...", flush=True)
        time.sleep(options.minutes * 60)
        take(window, options.out)
    for file in sorted(options.out.glob("panel-*.png")):
        print(file, file.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
