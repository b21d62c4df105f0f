"""The panel of somebody who may only look, and what an operator sees first: which machine, and where trouble is."""

from __future__ import annotations

import os
import re
from typing import Any, Final

import pytest

from tests.harness import Lab, nginx_proxy

from .panels import ORIGIN, station, tide
from .topologies import CLIENT, SERVER, TUNNEL_SERVER, UPLOADING, allowed, client_config, running, server_config

pytestmark = pytest.mark.netns

PROXY_PORT: Final = 8081
HOME: Final = "\ue011"
RIGHT: Final = "\ue014"

# Which of the buttons that act can be seen.
_ACTING: Final = """
  const found = [...document.querySelectorAll("#reload-button, tr.peer .actions button")];
  return found.filter((it) => it.checkVisibility()).map((it) => it.textContent);
"""
# What the daemon says to an action of this page, whatever the page shows.
_ACT: Final = """
  return (async () => {
  const session = await (await fetch("api/session")).json();
  const headers = {"X-CSRF-Token": session.csrf};
  const answer = await fetch("api/disconnect", {method: "POST", headers, body: JSON.stringify({client: "laptop"})});
  return [answer.status, (await answer.json()).error];
  })();
"""
# What each row says about when the peer was there.
_SEEN: Final = """[...document.querySelectorAll("tr.peer")].map((it) => {
  const [name, seen] = [".name .main", ".state .aside"].map((css) => it.querySelector(css).textContent);
  return `${name}: ${seen.slice(0, 10)}`;
}).sort().join(", ")"""
# Whether the daemon's history has two samples of more than 1 Mbit/s.
_FAST: Final = """fetch("api/history").then((it) => it.json())
  .then(({ series }) => series[0].rx_bits_per_s.filter((it) => it > 1e6).length >= 2)"""
# The clock at the oldest sample of the daemon's history. Its milliseconds are computed anew for each answer.
_OLDEST: Final = """return Promise.all([import("/format.js"), fetch("api/history").then((it) => it.json())])
  .then(([{ clock }, { times_ms }]) => [-2, 0, 2].map((off) => clock(times_ms[0] + off)));"""
_NAMES: Final = "[...document.querySelectorAll('tr.peer .name .main')].map((it) => it.textContent).join(' ')"


def test_a_reader_sees_everything_and_no_button_that_acts(lab: Lab) -> None:
    with station(lab) as it:
        window = it.window
        it.log_in("reader")
        window.wait_for_text("#read-only", "read-only")
        window.wait_for_text("#total-peers", "1 of 1")
        window.wait_for_text("#peers-body", "laptop")
        assert window.script(_ACTING) == []
        status, error = window.script(_ACT)
        assert (status, "read_token" in error) == (403, True)
        assert it.status()["interfaces"][0]["peers"][0]["reconnects"] == 0
        # The page of another who may act, in the same browser.
        window.click("#logout-button")
        window.wait("!document.getElementById('login').hidden")
        it.log_in()
        window.wait_for_text("#peers-body", "laptop")
        assert window.script(_ACTING) == ["Reload config", "Disconnect"]
        assert window.text("#read-only") == ""
        it.assert_clean(network=("status of 403", "status of 401"))


def test_the_machine_and_trouble_come_first(lab: Lab) -> None:
    clients = allowed("aardvark", "10.10.0.3"), allowed("laptop"), allowed("zebra", "10.10.0.4")
    listening: dict[str, Any] = {"listen": [SERVER, "127.0.0.1"], "trusted_proxies": ["127.0.0.1"]}
    with station(lab, *clients, **listening) as it:
        window = it.window
        it.log_in()
        machine = os.uname().nodename
        window.wait("document.title === arguments[0]", f"hub on {machine}")
        assert window.text("header h1") == f"hub on {machine}"
        zebra = client_config("zebra", name="tun1", server=f"http://{SERVER}:{PROXY_PORT}/ip")
        https = "proxy_set_header X-Forwarded-Proto https;"  # as a proxy in front of this one would have
        proxy = nginx_proxy(it.server, listen=PROXY_PORT, log_level="crit", more=https)
        with proxy, running(it.client, zebra, until=UPLOADING):
            window.wait_for_text("#total-peers", "2 of 3")
            # The row has the peer's own address, and the opened one that of the proxy too.
            window.write("#peers-search", "zebra")
            window.wait("document.querySelector('tr.peer .endpoint .main').textContent === arguments[0]", CLIENT)
            assert window.text("tr.peer .encryption") == "encrypted"
            window.click("tr.peer .toggle")
            window.wait_for_text("tr.detail", f"{CLIENT} (through 127.0.0.1:")
            window.wait_for_text("tr.detail", "up to its proxy, as that says")
            window.write("#peers-search", "laptop")
            window.wait_for_text("tr.peer .encryption", "not encrypted")
            assert "has no TLS" in str(window.script("return document.querySelector('.encryption').title"))
            window.write("#peers-search", "")
        # One that was here and is gone is above those that are here, and one that never was is below them.
        window.wait(f"{_NAMES} === 'zebra laptop aardvark'")
        row = "tr.peer[data-state=offline]"
        window.wait_for_text(f"{row} .state .aside", "last seen ")
        # Both the page and the interface begin anew, which resets every counter.
        it.write(server_config(*clients, keepalive=1, **listening, path="/other"))
        window.click("#reload-button")
        window.click("#reload-apply")
        window.wait_for_text("#reload-text", "Done")
        window.open(f"{ORIGIN}/")
        it.wait_until_live()
        window.wait_for_text("#peers-body", "zebra")
        window.wait(f"{_SEEN} === 'aardvark: never seen, laptop: last seen , zebra: last seen '")
        it.assert_clean()


def test_a_page_that_is_opened_shows_what_was_before(lab: Lab) -> None:
    with station(lab) as it:
        window = it.window
        it.log_in()
        with tide(it.client, TUNNEL_SERVER, mbit_s=20, period_s=20):
            window.wait(_FAST)
        window.open(f"{ORIGIN}/")
        it.wait_until_live()
        window.wait_for_text("#peers-body", "laptop")
        for scope in ("everything", "tun0, whole", "laptop"):
            window.choose("#plot-scope", scope)
            # Beside the traffic stands what happened in that time, and nothing about others.
            window.wait_for_text("#plot-events", "laptop: connected from ")
            label = window.script("return document.querySelector('#plot-rate canvas').getAttribute('aria-label')")
            assert re.search(r", with [1-9]\d* events?\.", label), label
            admin = "admin: " in window.text("#plot-events")
            assert admin == (scope == "everything"), window.text("#plot-events")
            # From the oldest moment on, until one is found at which the traffic flowed.
            window.press("#plot-rate canvas", HOME)
            assert window.text("#plot-rate .tip strong") in window.script(_OLDEST)
            while "Mbit/s" not in window.text("#plot-rate .tip"):
                before = window.text("#plot-rate .tip")
                window.press("#plot-rate canvas", RIGHT)
                assert window.text("#plot-rate .tip") != before, scope
        it.assert_clean()
