"""The host's network as an interface wants it: computed, applied, watched and undone.

Read `desired` first (pure: config and the server's parameters in, wanted addresses, routes and rules out), then
`reconciler` (the task that makes the kernel agree, and undoes everything at its end). `installed` records what is in
the kernel and changes it; `repairer` puts back what others take, as often as `repair` allows; `transport_guard` and
`transport_routes` keep the transport out of its own tunnel.
"""
