"""Looks for a new version of the program, and fetches it.

Read `check` first: it is what the daemon and `tapotun update` call. It runs two processes without privileges, both of
`worker`: one fetches with `fetch`, the other has no network and verifies what the first one brought with `trust`.
`answers` is all that this process parses of either. `outcome` has the results.
"""
