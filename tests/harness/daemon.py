"""The program under test inside a host. The rest of the harness knows nothing of it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from .host import Host
from .process import Process

ROOT: Final = Path(__file__).resolve().parents[2]
EXAMPLES: Final = ROOT / "conf" / "examples"


def command() -> list[str]:
    """The program as an argument list, from this checkout and with the interpreter that runs the tests.

    Where TAPOTUN_COVERAGE is set (`make test` does), it is measured: a run that ends by itself or by SIGTERM
    leaves a data file next to the test run's own. pytest-cov combines them.
    """
    if os.environ.get("TAPOTUN_COVERAGE"):
        measured = ["-m", "coverage", "run", "--parallel-mode", f"--rcfile={ROOT / 'pyproject.toml'}"]
        return [sys.executable, *measured, f"--data-file={ROOT / '.coverage'}", "-m", "tapotun_trio"]
    return [sys.executable, "-m", "tapotun_trio"]


def tapotun(
    host: Host,
    config: str | os.PathLike[str] | Sequence[Mapping[str, Any]],
    *options: str,
    name: str = "tapotun",
    verb: str | None = None,
    env: Mapping[str, str] | None = None,
) -> Process:
    """Start ``tapotun [VERB] [OPTIONS] FILE`` in a host.

    `config` is a file, which is used as it stands, or the interface definitions themselves, which are written
    to a file that only we can read. `env` is added to the environment. It has only been started when this returns:
    wait for what the test needs.
    """
    if not isinstance(config, str | os.PathLike):
        file = host.tmp / f"{name}-{len(host.processes)}.json"
        file.touch(mode=0o600)
        file.write_text(json.dumps(config, indent=2), encoding="utf-8")
        config = file
    verbs = [verb] if verb is not None else []
    return host.start([*command(), *verbs, *options, config], name=name, cwd=ROOT, env=env)
