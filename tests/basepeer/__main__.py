"""A deployed peer as a process of its own, with a real TUN: `python -m tests.basepeer --help`.

It prints `READY ...` when traffic may flow, `VIOLATION: ...` for each deviation of the other side and
`EXIT: ...` where a deployed peer would be gone (and it is gone then), all to stderr. SIGTERM and SIGINT
end it. The exit code is the number of violations, at most 100.

SIGUSR1: the client rotates its GET, the server ends every GET cleanly.
SIGUSR2: the client rotates its PUT, the server pings every client.
"""

import argparse
import ipaddress
import signal
import sys
import threading
from collections.abc import Callable
from dataclasses import replace

from .client import BaseClient
from .journal import Timers
from .routing import ClientSpec, Router
from .server import BaseServer
from .tun import KernelRefused, Tun
from .wire import Conf, Frame


def main(argv: list[str] | None = None) -> int:
    """Run a peer until a signal, or until a deployed one would exit."""
    args = _parser().parse_args(argv)
    done = threading.Event()
    orders = {signal.SIGTERM: done.set, signal.SIGINT: done.set}
    code: int = args.run(args, done, orders)
    return code


def _tell(text: str) -> None:
    print(f"VIOLATION: {text}", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _attend(
    peer: BaseClient | BaseServer,
    done: threading.Event,
    orders: dict[signal.Signals, Callable[[], None]],
) -> None:
    """Obey signals until it is over. Orders run here, not in the handler, which may hold a lock."""
    pending: list[Callable[[], None]] = []
    for number, order in orders.items():
        signal.signal(number, lambda *_, order=order: pending.append(order))
    while not done.wait(0.05) and not peer.stopping.is_set():
        while pending:
            pending.pop(0)()
    if peer.exited is not None:
        _say(f"EXIT: {peer.exited}")


def _client(
    args: argparse.Namespace,
    done: threading.Event,
    orders: dict[signal.Signals, Callable[[], None]],
) -> int:
    """The interface is created by the first x-tun-conf, and configured by each."""
    tuns: list[Tun] = []

    def configure(conf: Conf) -> None:
        fresh = not tuns
        if fresh:
            tuns.append(Tun(args.tun, ipv6=args.ipv6))
        tuns[0].configure(conf, args.route)
        if fresh:
            tuns[0].pump(peer.send)
            _say(f"READY client {args.tun} {','.join(conf.ips)}")

    def write(frame: Frame) -> None:
        try:
            tuns[0].write(frame)
        except KernelRefused as exc:
            peer.journal.violation(str(exc))

    peer = BaseClient(
        args.url,
        args.token,
        generation=args.generation,
        expect_continue=not args.no_expect,
        proxied=args.proxied,
        ca_file=args.ca_file,
        timers=_timers(args),
        on_conf=configure if args.tun else None,
        on_packet=write if args.tun else None,
        tell=_tell,
    )
    orders |= {signal.SIGUSR1: peer.rotate_get, signal.SIGUSR2: peer.rotate_put}
    try:
        with peer:
            _attend(peer, done, orders)
    finally:
        for tun in tuns:
            tun.close()
    return min(100, len(peer.violations))


def _server(
    args: argparse.Namespace,
    done: threading.Event,
    orders: dict[signal.Signals, Callable[[], None]],
) -> int:
    """The interface first, then the port."""
    net = ipaddress.IPv4Interface(args.net)
    clients = tuple(args.client)
    peer = BaseServer(
        clients,
        host=args.host,
        port=args.port,
        generation=args.generation,
        mtu=args.mtu,
        prefix=net.network.prefixlen,
        proxied=args.proxied,
        http10=args.http10,
        get_lifetime_s=args.get_lifetime,
        router=Router((str(net.ip), *args.ips), tuple(args.route), clients),
        timers=_timers(args),
        tell=_tell,
    )
    with Tun(args.tun, ipv6=args.ipv6) as tun:

        def write(frame: Frame) -> None:
            try:
                tun.write(frame)
            except KernelRefused as exc:
                raise peer.exit(str(exc)) from exc

        def end_gets() -> None:
            for seat in peer.seats.values():
                seat.end_get()

        def ping_all() -> None:
            for seat in peer.seats.values():
                seat.ping()

        peer.on_local = write
        tun.configure(Conf(args.mtu, net.network.prefixlen, (str(net.ip),)))
        for address in args.ips:
            tun.configure(Conf(args.mtu, 32, (address,)))
        # "for every client's `ip`/`routes` outside `net`", or nothing would come back from behind them
        behind = [prefix for client in clients for prefix in client.prefixes()]
        outside = [str(prefix) for prefix in behind if not prefix.subnet_of(net.network)]
        tun.configure(Conf(args.mtu, net.network.prefixlen, ()), outside)
        orders |= {signal.SIGUSR1: end_gets, signal.SIGUSR2: ping_all}
        with peer:
            tun.pump(peer.inject)
            _say(f"READY server {args.tun} {peer.host}:{peer.port}")
            _attend(peer, done, orders)
    return min(100, len(peer.violations))


def _timers(args: argparse.Namespace) -> Timers:
    timers = Timers(ping_s=args.ping, give_up_s=args.give_up, rotate_2_s=(args.rotate[0], args.rotate[1]))
    if args.retry is None:
        return timers
    retry_s = args.retry[0], args.retry[1]
    return replace(timers, retry_s=retry_s, retry_2_s=retry_s)


def _client_spec(text: str) -> ClientSpec:
    """`sha1:ip[:routes[:sources]]`, the last two with commas, and `test`-style raw tokens refused."""
    parts = text.split(":")
    if len(parts) not in (2, 3, 4) or len(parts[0]) != 40:
        raise argparse.ArgumentTypeError(f"{text!r} is not SHA1:IP[:ROUTE,...[:SOURCE,...]]")
    lists = [tuple(filter(None, part.split(","))) for part in [*parts[2:], "", ""]]
    return ClientSpec(parts[0], parts[1], lists[0], lists[1])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.basepeer", description=__doc__)
    both = argparse.ArgumentParser(add_help=False)
    both.add_argument("--generation", type=int, choices=(1, 2), default=1)
    both.add_argument("--proxied", action="store_true", help="a proxy stands in between")
    both.add_argument("--ipv6", action="store_true", help="hand out the TUN's IPv6 packets too")
    both.add_argument("--route", action="append", default=[], metavar="CIDR")
    both.add_argument("--ping", type=float, default=Timers.ping_s, metavar="S")
    both.add_argument("--give-up", type=float, default=Timers.give_up_s, metavar="S")
    both.add_argument("--retry", type=float, nargs=2, metavar="S")
    both.add_argument("--rotate", type=float, nargs=2, default=Timers.rotate_2_s, metavar="S", help="generation 2 GETs")
    roles = parser.add_subparsers(required=True)
    client = roles.add_parser("client", parents=[both], help="routes: into the tunnel")
    client.add_argument("url")
    client.add_argument("token", help="raw")
    client.add_argument("--tun", metavar="NAME", help="without it, packets go nowhere")
    client.add_argument("--ca-file", metavar="FILE", help="for an https:// URL")
    client.add_argument("--no-expect", action="store_true", help="PUT without Expect: 100-continue")
    client.set_defaults(run=_client)
    server = roles.add_parser("server", parents=[both], help="routes: treated as local")
    server.add_argument("--host", default="0.0.0.0")
    server.add_argument("--port", type=int, default=8080)
    server.add_argument("--net", required=True, metavar="IP/PREFIX")
    server.add_argument("--tun", required=True, metavar="NAME")
    server.add_argument("--mtu", type=int, default=1500)
    server.add_argument("--ips", action="append", default=[], metavar="IP")
    server.add_argument(
        "--client",
        action="append",
        default=[],
        type=_client_spec,
        metavar="SHA1:IP[:ROUTE,...[:SOURCE,...]]",
    )
    server.add_argument("--http10", action="store_true", help="answer in HTTP/1.0, unchunked")
    server.add_argument("--get-lifetime", type=float, default=3600.0, metavar="S")
    server.set_defaults(run=_server)
    return parser


if __name__ == "__main__":
    sys.exit(main())
