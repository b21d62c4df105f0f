"""Whether several pairs of streams for one client would pay on a path that is long and loses packets.

    make bench-streams                  an hour on two cores
    make bench-streams BENCH=quick      three minutes

The daemon has no such feature. It is emulated by several interfaces of one process at each end, each with one pair of
streams, over which the kernel spreads flows by a hash of addresses, protocol and ports. That is what the feature would
do with them::

    client 198.51.100.2 --- road --- 192.0.2.1 server
      tun0 ─────────── one pair ─────────── tun0      10.98.0.2 and 10.98.0.1 are routed through tun0
      tun1 ─┐                             ┌─ tun1
      ...   ├──────── four pairs ─────────┤  ...      10.99.0.2 and 10.99.0.1 through tun1 to tun4, by flow
      tun4 ─┘                             └─ tun4

`python -m bench.streams.beside` (ten minutes) measures what a flow of the host's own gets next to a tunnel.

The road (road.c) is a link with a tail-drop queue and a wire that delays packets and loses some of them.
docs/streams-measured.md has the results, and what follows from them.
"""
