"""The daemon with something in it that is not its own: a test's `sitecustomize` module, which Python imports before
anything else (site(7) of its library reference) from the PYTHONPATH that we give that one process."""

from __future__ import annotations

import json
from collections.abc import Sequence

from tests.harness import ROOT, Host, Process, command

from .topologies import Config


def injected(host: Host, configs: Sequence[Config], source: str, *, name: str) -> Process:
    """Start the daemon with `source` as its sitecustomize. It logs everything.

    A `name` with tapotun in it promises a log without tracebacks (see `conftest`).
    """
    directory = host.tmp / f"{name}-{len(host.processes)}"
    directory.mkdir()
    (directory / "sitecustomize.py").write_text(source, encoding="utf-8")
    config = directory / "config.json"
    config.touch(mode=0o600)
    config.write_text(json.dumps(configs), encoding="utf-8")
    argv = [*command(), "--log-level", "debug", str(config)]
    return host.start(argv, name=name, cwd=ROOT, env={"PYTHONPATH": str(directory)})
