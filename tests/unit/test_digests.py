"""The hashes of tokens, which need no OpenSSL."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import pytest

from tapotun_trio import digests
from tapotun_trio.digests import are_equal, digest


@pytest.mark.parametrize("algorithm", ["sha1", "sha256"])
@pytest.mark.parametrize("built_in", [True, False])
def test_they_are_those_of_hashlib(algorithm: str, built_in: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not built_in:
        monkeypatch.setattr(digests, "_MODULES", {"sha1": ("no_such_module",), "sha256": ("json",)})
        monkeypatch.setitem(digests._NEW, algorithm, digests._constructor(algorithm))
    for data in (b"", b"test", bytes(range(256)) * 100):
        assert digest(algorithm, data) == hashlib.new(algorithm, data, usedforsecurity=False).digest()


def test_the_first_token_needs_no_descriptor() -> None:
    code = """
import resource, sys
from tapotun_trio.digests import digest
assert "hashlib" not in sys.modules
resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
print(digest("sha1", b"test").hex(), digest("sha256", b"test").hex()[:8])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == ("a94a8fe5ccb19ba61c4c0873d391e987982fbbd3 9f86d081\n", "")


def test_a_comparison() -> None:
    assert are_equal(b"same", b"same")
    assert not are_equal(b"same", b"sama")
    assert not are_equal(b"same", b"sam")


@pytest.mark.parametrize("module", ["tapotun_trio.server.server", "tapotun_trio.admin.access"])
def test_openssl_is_not_loaded(module: str) -> None:
    code = f"""
import sys
from tapotun_trio.cli import NEEDED_BY_FEW
from tapotun_trio.lazy_import import lazy_import
for name in NEEDED_BY_FEW:
    lazy_import(name)
import {module}
from tapotun_trio.digests import are_equal, digest
assert are_equal(digest("sha1", b"a"), digest("sha1", b"a")) and digest("sha256", b"a")
print([name for name in ("_ssl", "_hashlib") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
