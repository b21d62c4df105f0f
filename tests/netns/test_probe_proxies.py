"""`tapotun probe` next to a running client, one after the other, and through proxies that the project ships no config
for."""

from __future__ import annotations

import sys
from contextlib import ExitStack

import pytest

from tests.basepeer import sha1
from tests.harness import ROOT, Lab
from tests.harness.recipes import NAME, RECIPES

from .other_proxies import OTHERS, other_proxy
from .test_probe import faults, pair, probe, report
from .topologies import SERVER, TUNNEL_CLIENT, TUNNEL_SERVER, UPLOADING, client_config, running, server_config, token

pytestmark = pytest.mark.netns


def test_next_to_a_running_client(lab: Lab) -> None:
    """Behind each recipe the path is good, and nothing is said that could not be tested."""
    with ExitStack() as stack:
        probes = {}
        for kind, recipe in RECIPES.items():
            server, client = stack.enter_context(pair(lab, kind))
            stack.enter_context(running(server, server_config(listen="127.0.0.1")))
            proxy = stack.enter_context(recipe(server))
            stack.callback(proxy.process.kill)  # a stop takes some of them seconds
            ca_file = str(proxy.ca_file)
            entry = client_config(server=f"https://{NAME}/ip", tls={"ca_file": ca_file})
            stack.enter_context(running(client, entry, until=UPLOADING))
            probes[kind] = probe(client, f"https://{NAME}/ip", "--ca-file", ca_file)
        reports = {kind: report(process) for kind, process in probes.items()}
    for kind, found in reports.items():
        assert found["token_in_use"], found
        assert (found["usable"], found["exit"], faults(found)) == (True, 0, set()), found
        assert found["upload"]["state"] == ("streams" if kind in ("nginx", "haproxy") else "not-tested"), found


def test_a_base_server_behind_each_proxy(lab: Lab) -> None:
    with ExitStack() as stack:
        probes = {}
        for kind, recipe in RECIPES.items():
            server, client = stack.enter_context(pair(lab, kind))
            base = ["--net", f"{TUNNEL_SERVER}/24", "--tun", "tun0"]
            base += ["--client", f"{sha1(token('laptop'))}:{TUNNEL_CLIENT}"]
            argv = [sys.executable, "-m", "tests.basepeer", "server", "--proxied", *base]
            peer = stack.enter_context(server.start(argv, name="base-server", cwd=ROOT))
            peer.wait_for_log("READY", 20)
            proxy = stack.enter_context(recipe(server))
            stack.callback(proxy.process.kill)  # a stop takes some of them seconds
            url, options = f"https://{NAME}/ip", ("--ca-file", str(proxy.ca_file), "--idle-limit", "0")
            probes[kind] = probe(client, url, *options)
        reports = {kind: report(process) for kind, process in probes.items()}
        for host in lab.hosts:
            for process in host.processes:
                if process.running and process.name.endswith("base-server"):
                    process.kill()
    for found in reports.values():
        assert found["http"]["server"] == "base", found
        assert (found["usable"], found["exit"], faults(found)) == (True, 0, set()), found


def test_a_probe_leaves_nothing_behind(lab: Lab) -> None:
    """The next one finds the token free, also behind a proxy that does not notice when a client goes."""
    with ExitStack() as stack:
        probes = {}
        # Apache is one that does not notice. A WebSocket can be closed; it needs something else where none passes.
        for number, kind in enumerate([*RECIPES, "apache without a WebSocket"]):
            replace = {" upgrade=websocket": ""} if "without" in kind else {}
            server, client = stack.enter_context(pair(lab, str(number)))
            stack.enter_context(running(server, server_config(listen="127.0.0.1")))
            proxy = stack.enter_context(RECIPES[kind.split()[0]](server, replace=replace))
            stack.callback(proxy.process.kill)  # a stop takes some of them seconds
            options = ("--ca-file", str(proxy.ca_file), "--idle-limit", "1")
            probes[kind] = client, options, probe(client, f"https://{NAME}/ip", *options)
        for _, _, process in probes.values():
            assert report(process)["usable"]
        again = {kind: probe(client, f"https://{NAME}/ip", *options) for kind, (client, options, _) in probes.items()}
        for kind, process in again.items():
            found = report(process)
            assert (kind, found["token_in_use"], found["usable"]) == (kind, False, True), found


def test_other_proxies(lab: Lab) -> None:
    """They are recognized, and both their headers are shown."""
    with ExitStack() as stack:
        probes = {}
        for kind in OTHERS:
            server, client = stack.enter_context(pair(lab, kind))
            stack.enter_context(running(server, server_config(listen="127.0.0.1")))
            stack.enter_context(other_proxy(server, kind))
            probes[kind] = probe(client, f"http://{SERVER}/ip", "--idle-limit", "0")
        reports = {kind: report(process) for kind, process in probes.items()}
    for kind, found in reports.items():
        print(kind, found["http"], found["verdict"])
    for kind, found in reports.items():
        assert found["http"]["proxy"] == kind, (kind, found["http"])
        assert found["usable"], found
