"""What most processes do not need is not loaded, and is there for those that do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from tapotun_trio.lazy_import import lazy_import

RUN: Final = """
import sys
from tapotun_trio.cli import NEEDED_BY_FEW
from tapotun_trio.lazy_import import lazy_import
for name in NEEDED_BY_FEW:
    lazy_import(name)
    assert name in sys.modules
import tapotun_trio.app
"""


def run(code: str) -> str:
    """In a process of its own, where nothing is loaded yet."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert not done.stderr
    assert done.returncode == 0
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["_ssl", "_hashlib", "idna.core"])
def test_it_is_not_loaded_to_run_a_tunnel(module: str) -> None:
    assert run(f"{RUN}print({module!r} in sys.modules)") == "False"


def test_no_network_loads_multiprocessing() -> None:
    """pyroute2 imports it: `light_pyroute2`."""
    code = f"{RUN}import tapotun_trio.host.netlink.network\n"
    names = "'multiprocessing', 'multiprocessing.context', 'pyroute2.config'"
    assert run(f"{code}print([name in sys.modules for name in ({names})])") == "[False, False, True]"


def test_another_version_of_pyroute2_may_take_other_names_from_multiprocessing() -> None:
    code = """
import sys
from tapotun_trio.host.netlink.light_pyroute2 import _no_multiprocessing
with _no_multiprocessing():
    import multiprocessing
    from multiprocessing import Process, SimpleQueue
print(multiprocessing.Lock, SimpleQueue, hasattr(multiprocessing, "__path__"), "multiprocessing" in sys.modules)
"""
    assert run(code) == "None None False False"


def test_it_is_there_for_who_has_loaded_it_before() -> None:
    code = "import multiprocessing, sys; import tapotun_trio.host.netlink.network; import pyroute2.config as config"
    says = "print(sys.modules['multiprocessing'] is multiprocessing, config.MpPipe == multiprocessing.Pipe)"
    assert run(f"{code}; {says}") == "True True"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1", "nothing.invalid"])
def test_no_codec_is_loaded_to_resolve_a_host(host: str) -> None:
    code = f"""
import contextlib, sys, trio
from tapotun_trio.errors import PeerError
from tapotun_trio.host.net.resolver import Resolver
with contextlib.suppress(PeerError):
    trio.run(Resolver().resolve, {host!r}, 80)
print("encodings.idna" in sys.modules)
"""
    assert run(code) == "False"


@pytest.mark.parametrize("native", [True, False])
def test_no_codec_is_loaded_to_name_a_server_of_tls(native: bool) -> None:
    code = f"""
import socket, sys
from tapotun_trio.config.model import TlsConfig
from tapotun_trio.host.net import tls, tls_records
tls_records.wanted = lambda context: {native}
connection = tls.TlsClient(TlsConfig(insecure=True))._wrap(socket.socket(), "peer", "vpn.example.com", None)
print(connection._tls.server_hostname, "encodings.idna" in sys.modules)
"""
    assert run(code) == "vpn.example.com False"


@pytest.mark.parametrize(("kind", "other"), [("server", "client"), ("client", "server")])
def test_a_server_loads_no_client_and_a_client_no_server(kind: str, other: str) -> None:
    code = f"""{RUN}
import tapotun_trio.host.netlink.network
import tapotun_trio.lifecycle.interface
import tapotun_trio.{kind}.{kind}
others = ["tapotun_trio.{other}." + name for name in ("{other}", "session", "streams")]
print([name for name in others if name in sys.modules])
"""
    assert run(code) == "[]"


@pytest.mark.parametrize(
    ("use", "says"),
    [
        ("import ssl; print(ssl.create_default_context().verify_mode.name)", "CERT_REQUIRED"),
        ("from ssl import SSLError; print(issubclass(SSLError, OSError))", "True"),
        ("import hashlib; print(hashlib.new('sha1', b'', usedforsecurity=False).hexdigest()[:8])", "da39a3ee"),
        ("import hmac; print(hmac.compare_digest('a', 'a'))", "True"),
        ("import idna; print(idna.encode('ü.example').decode())", "xn--tda.example"),
        ("from trio import SSLStream; import ssl; print(SSLStream.__name__, ssl.__name__)", "SSLStream ssl"),
    ],
)
def test_it_is_there_for_who_uses_it(use: str, says: str) -> None:
    assert run(f"{RUN}{use}") == says


def test_what_is_loaded_already_stays() -> None:
    code = "import ssl, sys; from tapotun_trio.lazy_import import lazy_import; lazy_import('ssl')"
    assert run(f"{code}; print(sys.modules['ssl'] is ssl, type(ssl).__name__)") == "True module"


def test_whoever_comes_while_it_is_being_loaded_gets_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time; time.sleep(0.2); import slow; VALUE = hasattr(slow, 'VALUE')")
    code = f"""
import sys, threading
sys.path.insert(0, {str(tmp_path)!r})
from tapotun_trio.lazy_import import lazy_import
lazy_import("slow")
import slow
found = []
threads = [threading.Thread(target=lambda: found.append(slow.VALUE)) for _ in range(4)]
for it in threads: it.start()
for it in threads: it.join()
print(found, type(slow).__name__)
"""
    assert run(code) == "[False, False, False, False] module"


def test_what_it_does_not_have_it_does_not_have() -> None:
    use = "import ssl; print(hasattr(ssl, 'nothing'), hasattr(ssl, 'SSLError'))"
    assert run(f"{RUN}{use}") == "False True"


@pytest.mark.parametrize("module", ["_bz2", "_lzma", "tapotun_trio.status.render"])
def test_what_runs_interfaces_does_not_load(module: str) -> None:
    """The command line, whose help makes use of all of argparse, and then everything that an interface needs."""
    code = f"""
import sys
from tapotun_trio import cli
try:
    cli.main(["run", "--help"])
except SystemExit:
    pass
import tapotun_trio.app
print({module!r} in sys.modules, file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert "usage: tapotun run" in done.stdout
    assert done.stderr.split() == ["False"]


def test_a_module_that_this_python_does_not_have_is_left_to_the_import_statement() -> None:
    lazy_import("no_such_module_anywhere")
    with pytest.raises(ModuleNotFoundError):
        __import__("no_such_module_anywhere")
