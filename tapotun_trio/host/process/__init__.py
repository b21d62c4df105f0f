"""This process and its host: `privileges` (capabilities, limits), `sd_notify` (the service manager), `malloc`.

Each is used once, by `app`, when the program starts.
"""
