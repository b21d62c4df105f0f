"""The operating system: TUN devices, netlink, sockets and TLS, limits and capabilities."""
