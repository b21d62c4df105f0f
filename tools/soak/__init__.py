"""Breaks a tunnel again and again, at random from a seed, while two checked UDP streams run through it, one of IPv4 and
one of IPv6.

    make soak SEED=7 FAULTS=200
    python -m tools.soak --seed 7 --faults 200

After each fault traffic of both families must flow again, in both directions, within the bound of that kind
(`BOUNDS_S`), and no packet may arrive twice or changed. The client reaches the server through nginx and a relay that
can answer wrongly or end connections. Its streams are rotated every few seconds all the time::

    client ---cable--- relay :80 - nginx :8081 - server :8080 ---cable--- generation 2, at times
       `------------------ a LAN, at times in the pushed network ------------------'

The relay is reached at an address behind the cable, so that a pushed network can cover it.

The bounds follow from the design, with a keepalive of 1 s:

- A silence is noticed after 3 keepalives, by a clock that ticks once a second: `NOTICE_S`.
- A stream that broke is tried again within `BACKOFF_S`. (The first retry at once does not apply: here the stream
  usually broke less than a minute before.) After an answer that shows that the path to the server works, the limit is
  `NEAR_S`.
- A client that starts has no such history: it connects at once.
- `SLACK_S` is for the start of a process, and for a machine with two cores and other work: usually it takes 1 s.

Seconds are counted from the moment at which the tunnel could work again, for example when the process was started or
the cable was plugged in.
"""

from __future__ import annotations

from typing import Final

NOTICE_S: Final = 3.0 + 2.0
BACKOFF_S: Final = 10.0
NEAR_S: Final = 4.0
SLACK_S: Final = 10.0
# The ages at which every request is ended, for a while. They are shorter than any rotation, and longer than the age up
# to which a client takes the end of a stream for a failure.
AGE_S: Final = (2.0, 2.5)

BOUNDS_S: Final = {
    # Both streams break at once. Until the server is back, nginx answers 502.
    "kill -9 server": BACKOFF_S + SLACK_S,
    "server restart, other MTU": BACKOFF_S + SLACK_S,
    "kill -9 client": SLACK_S,
    # Paused for at most 3 s: some pauses are noticed, most are not. A stream that was given up is tried again.
    "server paused": BACKOFF_S + SLACK_S,
    "client paused": BACKOFF_S + SLACK_S,
    # From the plugging in: an attempt that failed while the cable was out waits; one in progress goes on with its SYN.
    "cable unplugged": BACKOFF_S + SLACK_S,
    # Neither end is notified; the old address is only silent.
    "client address changed": NOTICE_S + BACKOFF_S + SLACK_S,
    "nginx restart": BACKOFF_S + SLACK_S,
    "connections cut": BACKOFF_S + SLACK_S,
    # Cut, tried again, and answered wrongly: twice the wait.
    "wrong answer": 2 * BACKOFF_S + SLACK_S,
    # The time until no request is ended. Two streams of a kind must be ended at that age, and each may need a new
    # attempt first.
    "fixed request age": 2 * (BACKOFF_S + AGE_S[1]) + SLACK_S,
    # The newer stream waits for the older one's end, at most a second.
    "rotation": 1.0 + SLACK_S,
    # While the network is pushed, and when it is taken back: the way to the server is kept out of it at once.
    "covering push": 1.0 + SLACK_S,
    # The new address and its removal are noticed after 1.5 s at most. No stream is affected.
    "roam into pushed network": 1.5 + SLACK_S,
    # The removal is noticed after 1.5 s at most, and the rule is put back at once.
    "rule removed": 1.5 + SLACK_S,
    "addresses flushed": 1.5 + SLACK_S,
    # The longest silence while the second process runs. It disturbs nothing, but a rotation may happen meanwhile.
    "second start": 1.0 + SLACK_S,
    # It tries again 5 to 10 s after its streams broke, for any reason; our client has its own bound within that.
    "generation 2 restart": 10.0 + SLACK_S,
    # A restart takes two attempts. In each, only the name is tried for up to 2 s.
    "no names": BACKOFF_S + 2 * 2.0 + SLACK_S,
}
