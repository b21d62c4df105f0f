"""Packets between the TUN device and the streams: the part that is written for speed.

Read `tun_io` (reader and writer of the device), then `sender` (frames onto a stream) and `receiver` (frames off it).
`tx_queue`, `codel`, `scheduler`, `pacing` and `congestion` decide what waits, what is dropped and how fast it leaves.
`uniform`, `gro_udp` and `gro_tcp` treat many similar packets as one. Nothing here knows a client from a server.
"""
