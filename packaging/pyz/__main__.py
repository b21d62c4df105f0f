"""The first file that runs of tapotun.pyz. In words that old versions of Python understand too."""

import sys

if sys.version_info < (3, 11):
    found = ".".join(map(str, sys.version_info[:3]))
    sys.exit(
        "tapotun: needs Python 3.11 or newer, and "
        + str(sys.executable)
        + " is "
        + found
        + ": start it with another, such as python3.13 "
        + sys.argv[0]
    )

import signal

# As tapotun_trio/__main__.py does, which is not there yet: before imports, which take most of a start.
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGHUP, signal.SIGINT, signal.SIGTERM))

from _tapotun_pyz import main

sys.exit(main())
