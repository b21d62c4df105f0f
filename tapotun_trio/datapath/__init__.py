"""Packets between the TUN device and the streams: the part of the program that is written for speed.

Read `tun_io` (reads and writes the device), then `sender` (frames onto a stream) and `receiver` (frames off it).
`tx_queue`, `codel`, `scheduler`, `pacing` and `congestion` decide what waits, what is dropped and how fast it leaves.
`gro_udp` and `gro_tcp` coalesce packets of one flow. Nothing here knows whether it runs in a client or in a server.
"""
