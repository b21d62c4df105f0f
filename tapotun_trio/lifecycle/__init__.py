"""The life of an interface: started, supervised, changed by a reload, and ended.

Read `interface` first: its nursery holds everything that an interface consists of. `supervisor` restarts interfaces
that fail and applies a changed config. `registry` finds running interfaces by name, through the Protocol in `tunnel`,
and `snapshot` takes their status.
"""
