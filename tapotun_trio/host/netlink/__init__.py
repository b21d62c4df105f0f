"""The kernel's links, addresses, routes and rules, over NETLINK_ROUTE.

Read `network` first (adds and removes items), then `reader` (queries the current state) and `monitor` (reports
changes). `socket` sends and receives, `codec` and `link_codec` encode and decode messages, `tracker` keeps the state
that a stream of notifications describes, `route_lookup` finds the route to an address, `inventory` finds the items of
an interface that other programs have removed.
"""

from . import light_pyroute2

# Called before any module of this package imports from pyroute2, since it saves 11 MB.
light_pyroute2.install()
