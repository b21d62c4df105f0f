"""A tunnel that is broken again and again, at random but by a seed, while a checked UDP stream runs through it.

    make soak SEED=7 FAULTS=200
    python -m tools.soak --seed 7 --faults 200

After each fault traffic must flow again, in both directions, within the bound of that kind (`BOUNDS_S`), and nothing
may come twice or changed. The client asks the server through a relay that can lie and nginx; its streams are rotated
every few seconds all along::

    client ---cable--- relay :80 - nginx :8081 - server :8080 ---cable--- generation 2, at times

The bounds follow from the design, with a keepalive of 1 s:

- A silence is noticed after 3 keepalives, by a clock that ticks once a second: `NOTICE_S`.
- What broke is tried again within `BACKOFF_S` (here it usually broke less than a minute before, so that the "first
  retry at once" does not count), or within `NEAR_S` after an answer that shows that the way to the server works.
- A client that starts has no such history: it connects at once.
- `SLACK_S` is for the start of a process and a busy machine.

Seconds are counted from the moment on from which it could work again: the process was started, the cable mended.
"""

from __future__ import annotations

from typing import Final

NOTICE_S: Final = 3.0 + 2.0
BACKOFF_S: Final = 10.0
NEAR_S: Final = 4.0
SLACK_S: Final = 3.0

BOUNDS_S: Final = {
    # Both streams break at once. Who asks again before the server is there is answered 502 by nginx.
    "kill -9 server": BACKOFF_S + SLACK_S,
    "server restart, other MTU": BACKOFF_S + SLACK_S,
    "kill -9 client": SLACK_S,
    # At most 3 s: some are noticed, most are not. A stream that was given up is tried again.
    "server paused": BACKOFF_S + SLACK_S,
    "client paused": BACKOFF_S + SLACK_S,
    # From the mending on: an attempt that failed while the cable was down waits, one under way goes on at its SYN.
    "cable unplugged": BACKOFF_S + SLACK_S,
    # Nobody hears of it; the old address is only silent.
    "client address changed": NOTICE_S + BACKOFF_S + SLACK_S,
    "nginx restart": BACKOFF_S + SLACK_S,
    "connections cut": BACKOFF_S + SLACK_S,
    # Cut, tried again, and answered wrongly: twice the wait.
    "wrong answer": 2 * BACKOFF_S + SLACK_S,
    # The newer stream waits for the older one's end, at most a second.
    "rotation": 1.0 + SLACK_S,
    # While the network is pushed, and when it is taken back: the way to the server is kept out of it at once.
    "covering push": 1.0 + SLACK_S,
    # The longest silence while the second one runs: it disturbs nothing, and a rotation may fall into that time.
    "second start": 1.0 + SLACK_S,
    # It tries again 5 to 10 s after its streams broke, for any reason; our client has its own bound within that.
    "generation 2 restart": 10.0 + SLACK_S,
}
