"""Computes, applies, watches and undoes the network configuration that an interface needs on this host.

Read `desired` first (pure: config and the server's parameters in, wanted addresses, routes and rules out), then
`reconciler` (the task that applies it to the kernel, and undoes everything at its end). `installed` records what is in
the kernel and changes it; `repairer` puts back what other programs remove, as often as `repair` allows;
`transport_guard` and `transport_routes` keep the transport out of its own tunnel.
"""
