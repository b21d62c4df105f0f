"""A short soak: one fault of each kind, by a seed. `make soak` is the long one."""

from __future__ import annotations

import os

import pytest

from tests.harness import Lab
from tools.soak.run import soak
from tools.soak.topology import FAULTS

pytestmark = pytest.mark.netns

SEED = int(os.environ.get("SEED", "1"))
LIMIT_S = 160.0  # usually it takes 70


@pytest.mark.timeout(LIMIT_S + 300)
def test_every_fault_once(lab: Lab) -> None:
    """After each, traffic flows again within its bound; nothing comes twice or changed; nothing is left."""
    report = soak(lab, SEED, len(FAULTS) + 1, LIMIT_S)
    print(f"\n{report}")
    assert not report.faults
