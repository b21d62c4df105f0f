"""`tapotun probe`: whether a path carries a tunnel, and if not, which line to change.

::

    run        options, signals, the time that all of it may take; prints
     └─ steps      what is measured, in which order
         ├─ path       DNS, TCP, TLS
         ├─ streams    a download, an upload, a WebSocket, as the client opens them
         └─ traffic    what goes through them
    measured   what was found out
    identify   which proxy answered (pure)
    verdict    what that means, and what to change (pure)
    remedies   the lines of each proxy's config (pure)
    report     as text and as JSON (pure)

It sends no packet, and takes nothing from a client that runs with the same token.
"""
