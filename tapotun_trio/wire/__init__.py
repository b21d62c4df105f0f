"""The wire as pure bytes: frames, chunked bodies, virtio headers, packet views, x-tun-conf.

Nothing here knows a socket, a clock or which side we are.
"""
