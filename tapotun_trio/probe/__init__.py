"""`tapotun probe`: tests whether a path carries a tunnel, and if not, names the line of a config to change.

::

    run        options, signals, the time limit, output
     └─ steps      the measurements and their order
         ├─ path       DNS, TCP, TLS
         ├─ streams    a download and an upload, as the client opens them
         ├─ segments   whether large packets are lost, watched during the other measurements
         ├─ idle       how long a silent stream lives
         ├─ ages       at what age a busy stream is ended
         └─ traffic    control frames through them: delay, round trip, throughput
    measured   the results
    identify   which proxy answered (pure)
    verdict    what the results mean, and what to change (pure)
    remedies   the lines for each proxy's config (pure)
    report     as text and as JSON (pure)

It sends no packet, and does not disturb a client that runs with the same token.
"""
