"""The tunnel beside what people use for the same: WireGuard, OpenVPN, openconnect, ssh and others, in one run.

    make bench-compare            six minutes: five rounds
    make bench-compare ROUNDS=1

Each tool has three machines of its own as in the package above, and is set up as its manual says, with its defaults.
What this machine lacks is left out, and the table says why. `tools` has them all; a new one is a class of a page.

What they do differs, so the table says it: some carry packets, others only TCP connections (those answer no ping), not
all encrypt, and few pass an ordinary reverse proxy.
"""
