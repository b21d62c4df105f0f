"""The exit codes, for service managers."""

from __future__ import annotations

from typing import Final

OK: Final = 0  # stopped on request; validate-config: the file is valid
FAILED: Final = 1  # the config has errors, or the start failed: starting it again will not help
USAGE: Final = 2  # wrong usage; argparse's own
RUNTIME: Final = 3  # failed while running: worth a restart
UPDATED: Final = 75  # replaced by an update: start what is there now, whatever else is said of restarts
INTERRUPTED: Final = 130  # by Ctrl-C, as shells have it: what was waited for did not come
