"""The exit codes, for service managers."""

from __future__ import annotations

from typing import Final

OK: Final = 0  # stopped on request; validate-config: the file is valid
FAILED: Final = 1  # the config has errors, or the start failed: starting it again will not help
USAGE: Final = 2  # wrong usage
RUNTIME: Final = 3  # failed while running: restart it
AVAILABLE: Final = 4  # update: there is a newer version
UPDATED: Final = 75  # replaced by an update: always start it again, which runs the new version
INTERRUPTED: Final = 130  # interrupted by Ctrl-C before there was a result
