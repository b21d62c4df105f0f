"""How fast the tunnel is, compared with no tunnel and with a relay in C, on this machine and in this hour.

    make bench                  ten minutes
    make bench BENCH=quick      two
    make bench BENCH_PLANE=both with the native data path and without, side by side; a third longer
    make bench-scaling          a server with many clients and routes (bench/scaling)
    make bench-compare          beside WireGuard, OpenVPN and others (bench/compare)
    make bench-streams          one pair of streams against four on a path that loses packets (bench/streams)

The *variants*, each with machines of its own, are measured in turn, A B C D A B C D, so that whatever else the machine
does falls on all of them alike::

    behind 10.77.0.2 --- 10.77.0.1 client 192.0.2.2 --- 192.0.2.1 server

    veth            no tunnel: straight over the cable between client and server
    relay           crelay.c, GSO frames over two TCP connections, in C and with no features: the practical ceiling;
                    on the congestion control that the tunnel is seen to use
    relay-default   the same on the machine's default, where that is another one
    http            the installed `tapotun` at both ends
    https           the same through nginx on the server's machine, which ends TLS
    tap             as http, with TAP interfaces
    http-off        http and https without the native data path (`--plane both`)
    https-off

Nothing here asserts a speed. Only ratios within one run mean anything; the targets are printed next to them.
The program is used as installed, by its command and its config, and nothing of it is imported.
"""
