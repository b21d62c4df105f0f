"""The life of an interface: started, supervised, changed by a reload, found by whoever asks, and ended.

Read `interface` first: it is the front page of the program. `supervisor` restarts interfaces that fail and applies a
changed config, `registry` is where running interfaces are found, `snapshot` takes their status.
"""
