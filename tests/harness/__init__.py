"""A lab of small Linux machines inside one: hosts, cables, daemons, traffic, and a leak check.

    from tests.harness import Lab, no_leaks, nginx_proxy, ping, upload

    with Lab() as lab:
        server, client = lab.host("server"), lab.host("client")
        lab.link(server, "192.0.2.1/24", client, "192.0.2.2/24")
        client.hosts({"vpn.example.com": "192.0.2.1"})
        with no_leaks(server, client):
            with server.start(["python3", "-m", "http.server", "8080", "--bind", "127.0.0.1"]) as daemon:
                server.wait_for_listener(8080, by=daemon)
                with nginx_proxy(server, "127.0.0.1:8080"):
                    assert "200 OK" in client.run(["curl", "-sSI", "http://vpn.example.com/"]).stdout
                    daemon.wait_for_log(r'"HEAD / HTTP/1.1" 200')
        assert ping(client, "192.0.2.1").ok
        print(upload(client, server, "192.0.2.1", 100_000_000).gbit_s, "Gbit/s, checksum right")

What to know:

- A host is three namespaces (network, mount, PID) and a PID 1 that dies with us. A test run that is killed
  with SIGKILL leaves no process, no namespace and no interface (only small files under the temporary
  directory). The network of the machine itself is never changed.
- It is plain blocking code. The processes under test are real and run next to it, so an event loop would make nothing
  simpler here. A test reads from top to bottom, and pdb works.
- Nothing sleeps for a fixed time and nothing waits for ever: every wait polls, has a limit in seconds, and
  fails with the tail of the log that it waited for.
- A process starts with no signal ignored or blocked, even if the tests were started by `nohup` or with a shell's
  ``&``: see `take_signals`.
- It needs root, or a user namespace if the kernel allows those to users: ``unshare -Urnm pytest``. There
  tcpdump needs more than one group ID: ``unshare -Urnm --map-auto pytest``, with Debian's uidmap.
- Tools: iproute2, iputils-ping and mount; tcpdump, iperf3 and nginx for the helpers of those names, and
  Caddy, HAProxy and Apache for `recipes`, which starts the files of conf/proxies.
  ``install-tools`` gets them on Debian.
- Sockets of a host can be used by the test itself: ``client.socket()`` sends from there.
"""

from .capture import Capture, Packet, capture
from .daemon import EXAMPLES, ROOT, command, tapotun
from .errors import CommandError, HarnessError, LeakError, ProcessError, TransferError, WaitError, wait_until
from .host import Host, Lab, Link, connect
from .leaks import changes, no_leaks, snapshot
from .needs import missing
from .process import Process
from .proxy import nginx_proxy
from .signals import take_signals
from .traffic import Iperf, PingResult, iperf3, ping, tcp_echo, udp_echo, udp_exchange, wait_for_ping
from .transfer import Payload, Transfer, download, upload

__all__ = [
    "EXAMPLES",
    "ROOT",
    "Capture",
    "CommandError",
    "HarnessError",
    "Host",
    "Iperf",
    "Lab",
    "LeakError",
    "Link",
    "Packet",
    "Payload",
    "PingResult",
    "Process",
    "ProcessError",
    "Transfer",
    "TransferError",
    "WaitError",
    "capture",
    "changes",
    "command",
    "connect",
    "download",
    "iperf3",
    "missing",
    "nginx_proxy",
    "no_leaks",
    "ping",
    "snapshot",
    "take_signals",
    "tapotun",
    "tcp_echo",
    "udp_echo",
    "udp_exchange",
    "upload",
    "wait_for_ping",
    "wait_until",
]
