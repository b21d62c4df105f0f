"""Settings of this process: `privileges` (capabilities, limits), `user`, `sd_notify` (the service manager), `malloc`.

`app` uses these when the program starts. `interpreter` and `descriptors` are small helpers for the rest.
"""
