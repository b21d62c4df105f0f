"""TCP, Unix sockets and TLS: `dial` connects, `listen` accepts, `sockets` is one connection, `tls` encrypts it.

Read `sockets` first: everything above sends and receives through its `Connection`.
"""
