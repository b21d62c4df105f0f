"""A test that takes too long fails alone, and its fixtures are torn down."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.harness import ROOT

TESTS: Final = """
import time
import pytest
import trio

@pytest.fixture
def plain():
    yield
    print("plain fixture torn down")

@pytest.fixture
async def of_trio():
    yield
    print("Trio fixture torn down")

def test_that_hangs(plain):
    time.sleep(60)

async def test_that_waits(plain, of_trio):
    await trio.sleep(60)

async def test_that_blocks(plain, of_trio):
    time.sleep(60)

async def test_of_virtual_time(autojump_clock):
    await trio.sleep(3600)

async def test_afterwards():
    await trio.sleep(0.01)
"""


def test_each_kind_of_test(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    options = ["-p", "tests.timeouts", "-p", "no:cacheprovider", "--timeout=2", "--timeout-method=signal"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rfp", *options, "-o", "trio_mode=true", "--rootdir", tmp_path, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    failed = re.findall(r"^FAILED \S+::test_that_(\w+)", done.stdout, re.MULTILINE)
    assert failed == ["hangs", "waits", "blocks"], done.stdout
    assert "3 failed, 2 passed" in done.stdout, done.stdout
    assert done.stdout.count("plain fixture torn down\n") == 3, done.stdout
    assert done.stdout.count("Trio fixture torn down\n") == 2, done.stdout
