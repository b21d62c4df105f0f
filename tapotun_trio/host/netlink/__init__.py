"""The kernel's view of links, addresses, routes and rules, over NETLINK_ROUTE.

Read `network` first (adds and removes items), then `reader` (what stands now) and `monitor` (what changes). `socket`
sends and receives, `codec` knows the messages, `tracker` keeps the state that a stream of notifications describes.
"""
