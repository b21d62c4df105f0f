"""What the C library keeps of large blocks that are free."""

from __future__ import annotations

import subprocess
import sys
from typing import Final

# A large block is freed; further ones then lie on the heap, each below a small one that stays.
PROGRAM: Final = """
import re, sys
from tapotun_trio.host.process.malloc import set_mmap_threshold

def resident_kb():
    with open("/proc/self/status") as file:
        return int(re.search(r"VmRSS:\\s+(\\d+)", file.read())[1])

if sys.argv[1] == "ours":
    set_mmap_threshold()
bytearray(b"x" * 1_000_000)
stay, before = [], resident_kb()
blocks = []
for _ in range(40):
    blocks.append(b"x" * 500_000)
    stay.append(b"x" * 20_000)
del blocks
print(resident_kb() - before)
"""


def kept_kb(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True, timeout=30)
    return int(done.stdout)


def test_large_blocks_go_back_to_the_kernel() -> None:
    assert kept_kb("theirs") > 5_000, "this C library needs no telling: take the call away"
    assert kept_kb("ours") < 2_000
