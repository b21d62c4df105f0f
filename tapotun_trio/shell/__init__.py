"""Shell completions, generated from the argument parser. ``usage`` also serves the man page."""
