"""``python -m tools.sanitize``: the tests of the plane, with its native part built with ASan and UBSan.

The native part reads what strangers send. So its own tests, those of its hook, and the comparison with the pure path
run once more with a module that aborts at the first access behind a buffer, use after free, or undefined behaviour.
So do those of hostile peers, with the plane, and those of what else uses the module.

test_websocket and test_hostile_{http,log,bounds,load} do not, so that this stays short. test_websocket alone was not
done after 200 s beside other work. What it has for the module, masking, is in test_wire_websocket.

Leaks are not looked for here: Python itself leaves much at its end. `make fuzz` does that, in a program of its own.
Arguments go to pytest.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[1]
MODULE: Final = ROOT / "build" / "sanitize" / "_pump.abi3.so"
SOURCE: Final = ROOT / "tapotun_trio" / "datapath" / "_pump.c"
COMPILE: Final = (
    "gcc",
    "-std=gnu11",
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fPIC",
    "-shared",
    "-fvisibility=hidden",
)
SANITIZE: Final = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")
TESTS: Final = (
    "test_pump.py",
    "test_plane_hook.py",
    "test_plane_loans.py",
    "test_steps.py",
    "test_plane_differential.py",
    "test_plane_edges.py",
    "test_pump_ethernet.py",
    "test_plane_ethernet.py",
    "test_tls_records.py",
    "test_plane_tls.py",
    "test_wire_websocket.py",
    "test_hostile_frames.py",
    "test_hostile_server.py",
)


def main(arguments: list[str]) -> int:
    MODULE.parent.mkdir(parents=True, exist_ok=True)
    include = f"-I{sysconfig.get_path('include')}"
    subprocess.run([*COMPILE, *SANITIZE, include, str(SOURCE), "-o", str(MODULE)], check=True)
    # Python was not built with ASan, so its library has to be there before everything else.
    library = subprocess.run(
        ["gcc", "-print-file-name=libasan.so"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout.strip()
    environment = {
        **os.environ,
        "TAPOTUN_PUMP": str(MODULE),
        "LD_PRELOAD": library,
        "PYTHONMALLOC": "malloc",  # Python's own allocator would hide from ASan what is read behind an object
        "ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1",  # a test has no memory for a port
    }
    command = [sys.executable, "-m", "pytest", "-p", "tests.sanitized", "-q", "-s", "-k", "not pure", *arguments]
    command += [str(ROOT / "tests" / "unit" / name) for name in TESTS]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
