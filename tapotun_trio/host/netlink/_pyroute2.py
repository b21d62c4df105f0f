"""Lets pyroute2's message classes be imported without the rest of pyroute2.

Its package ``__init__`` imports all it has (NDB, IPDB, nl80211, asyncio, ...): measured in a bare interpreter,
24 MB and 0.14 s, of the 36 MB that this daemon may have. The four message classes alone cost 5 MB and 40 ms
(2 MB and 15 ms beside trio, which needs some of the same modules). They live in submodules, which need a package
of that name and nothing from its ``__init__``; so a bare module with the right ``__path__`` stands in for it.
If the program has imported the real package, that one is used.

Import the classes from here, and only when a netlink socket is opened.
"""

from __future__ import annotations

import importlib.util
import sys
import types


def _stand_in() -> None:
    if "pyroute2" in sys.modules:
        return
    spec = importlib.util.find_spec("pyroute2")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("pyroute2 is not installed", name="pyroute2")
    package = types.ModuleType("pyroute2")
    package.__path__ = list(spec.submodule_search_locations)
    package.__spec__ = spec
    sys.modules["pyroute2"] = package


_stand_in()

from pyroute2.netlink.rtnl.fibmsg import fibmsg  # noqa: E402
from pyroute2.netlink.rtnl.ifaddrmsg import ifaddrmsg  # noqa: E402
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg  # noqa: E402
from pyroute2.netlink.rtnl.rtmsg import rtmsg  # noqa: E402

__all__ = ["fibmsg", "ifaddrmsg", "ifinfmsg", "rtmsg"]
