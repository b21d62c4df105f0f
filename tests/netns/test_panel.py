"""The panel in a real browser, at a real server with a client: login, numbers, actions, and a daemon that is lost."""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import Any, Final

import pytest

from tests.harness import Lab, nginx_proxy, wait_until
from tests.harness.browser import Browser
from tests.harness.updates import Repository

from .panels import ADMIN, ORIGIN, PATIENCE_S, Station, peer_of, station, tide
from .topologies import TUNNEL_SERVER, allowed, server_config, token

pytestmark = pytest.mark.netns

MEGABIT: Final = 1e6
# What a browser writes about its own when an answer is no success.
REFUSED: Final = "status of 401"
GONE: Final = "ERR_CONNECTION_REFUSED"
BROKEN: Final = ("ERR_CONNECTION_RESET", "ERR_EMPTY_RESPONSE", "WebSocket connection to")

# For how long, as the page says it.
_LOST_FOR_S: Final = "Number(document.querySelector('#lost-next').textContent.match(/That was ([0-9]+) s/)?.[1])"
# The value of a plot's line, from its legend: what `rate` of format.js has written.
_RATE: Final = """(() => {
  const [number, unit] = document.querySelector(arguments[0]).textContent.split(" ");
  return number * {"bit/s": 1, "kbit/s": 1e3, "Mbit/s": 1e6, "Gbit/s": 1e9}[unit];
})()"""


def rate(window: Browser, css: str) -> float:
    """bit/s, as they are to be read there."""
    return float(window.script(f"return {_RATE}", css))


def picture(window: Browser, css: str) -> str:
    """A canvas: two are equal if the same is painted there."""
    return str(window.script("return document.querySelector(arguments[0]).toDataURL()", css))


def cookies(window: Browser) -> list[dict[str, Any]]:
    found = window.devtools("Network.getCookies", urls=[ORIGIN])["cookies"]
    assert isinstance(found, list)
    return found


def test_login_and_logout(lab: Lab) -> None:
    with station(lab) as it:
        window = it.window
        window.write("#token", "not-the-token")
        window.click("#login-button")
        window.wait_for_text("#login-error", "This token is wrong.")
        assert window.text("#panel") == ""
        assert cookies(window) == []
        it.log_in()
        assert window.text("#login") == ""
        assert window.text("#process-name") == "hub"
        status = it.status()
        about = window.text("#process-about")
        for part in (f"tapotun {status['version']}", f"pid {status['pid']}", "up for ", str(it.file)):
            assert part in about
        [cookie] = cookies(window)
        assert (cookie["httpOnly"], cookie["sameSite"]) == (True, "Strict")
        # A page that is loaded again goes on with the session; the token is nowhere in it.
        window.open(f"{ORIGIN}/")
        it.wait_until_live()
        kept = window.script(
            "return [document.documentElement.outerHTML, JSON.stringify({...localStorage}), document.cookie]"
        )
        assert not any(token("admin") in text or cookie["value"] in text for text in kept)
        window.click("#logout-button")
        window.wait("!document.getElementById('login').hidden")
        assert cookies(window) == []
        window.open(f"{ORIGIN}/")
        window.wait("!document.getElementById('login').hidden")
        assert window.text("#panel") == ""
        it.assert_clean(network=(REFUSED,))


def test_numbers_move_while_traffic_flows(lab: Lab) -> None:
    with station(lab) as it:
        window = it.window
        it.log_in()
        window.wait_for_text("#total-peers", "1 of 1")
        window.wait("document.querySelector('#total-rtt').textContent.endsWith(' ms')")
        row = "tr.peer"
        peer = peer_of(it.status())
        assert window.text(f"{row} .name .main") == "laptop"
        assert window.text(f"{row} .state .main") == "connected"
        assert window.text(f"{row} .endpoint .main") == peer["endpoint"]
        assert window.text(f"{row} .endpoint .aside") == f"HTTP · {peer['agent']}"
        before = [picture(window, "#plot-rate canvas"), picture(window, ".spark")]
        with tide(it.client, TUNNEL_SERVER, mbit_s=20, period_s=20):
            for css in ("#total-rx", f"{row} .rx .main", "#plot-rate .legend-item.rx .legend-value"):
                wait_until(lambda css=css: rate(window, css) > MEGABIT, PATIENCE_S, css, window.page)  # type: ignore[misc]
            after = [picture(window, "#plot-rate canvas"), picture(window, ".spark")]
            assert all(old != new for old, new in zip(before, after, strict=True))
            # The plots are of what is chosen, and tell the value under the pointer or the cursor.
            options = window.script(
                "return [...document.querySelectorAll('#plot-scope option')].map((it) => it.textContent)"
            )
            assert options == ["everything", "tun0, whole", "laptop"]
            for option in options:
                window.choose("#plot-scope", option)
                window.wait(
                    "document.querySelector('#plot-rate canvas').getAttribute('aria-label').includes(arguments[0])",
                    option,
                )
                assert rate(window, "#plot-rate .legend-item.rx .legend-value") > MEGABIT
            window.press("#plot-rate canvas", "\ue012")  # the left arrow
            window.wait_for_text("#plot-rate .tip", "bit/s")
            window.wait_for_text("#plot-rtt .tip", " ms")
        wait_until(lambda: rate(window, "#total-rx") < 1000, PATIENCE_S, "an idle tunnel", window.page)
        # All that is known of the peer.
        window.click(f"{row} .toggle")
        detail = window.text("tr.detail")
        status = it.status()
        for part in ("10.10.0.2", "Waiting to be sent", "Streams that broke", "not carried", peer["agent"], " packets"):
            assert part in detail
        assert peer_of(status)["rx_packets"] > 0
        card = window.text("#interfaces article")
        for part in ("tun0", "server", "up for ", "1 of 1 connected", "192.0.2.1:8080"):
            assert part in card
        it.assert_clean()


def test_disconnect(lab: Lab) -> None:
    with station(lab) as it:
        window = it.window
        it.log_in()
        it.wait_for_status(lambda status: peer_of(status)["state"] == "connected")
        window.click("tr.peer .actions button")
        window.wait_for_text("#disconnect-dialog", "Disconnect laptop?")
        window.click("#disconnect-dialog [data-close]")
        window.wait("!document.querySelector('dialog[open]')")
        assert peer_of(it.status())["reconnects"] == 0
        window.click("tr.peer .actions button")
        window.click("#disconnect-confirm")
        window.wait_for_text("#toast", "laptop was disconnected")
        assert window.script("return document.querySelector('dialog[open]')") is None
        it.wait_for_status(
            lambda status: peer_of(status)["reconnects"] == 1 and peer_of(status)["state"] == "connected"
        )
        window.wait_for_text("#events-list", "disconnected by the operator")
        window.wait_for_text("tr.peer .state .main", "connected")
        window.wait_for_text("#drops", "disconnected")
        # What is looked for stays, and nothing else.
        window.write("#events-search", "operator")
        window.wait(
            "[...document.querySelectorAll('#events-list li')].every((it) => it.textContent.includes('operator'))"
        )
        window.choose("#events-level", "Errors")
        window.wait_for_text("#events-none", "No event matches.")
        it.assert_clean()


def test_reload(lab: Lab) -> None:
    with station(lab) as it:
        window = it.window
        it.log_in()
        window.wait_for_text("#config-when", "not reloaded since")
        phone = allowed("phone", "10.10.0.3")
        it.write(server_config(allowed("laptop"), phone, keepalive=1, ips=["10.10.0.99"]))
        planned = ["tun0: ips changed (+10.10.0.99)", "tun0 phone: added"]
        # The plan first, which changes nothing.
        window.click("#reload-button")
        window.wait_for_text("#reload-text", "This will change")
        assert window.text("#reload-changes").split("\n") == planned
        window.click("#reload-close")
        assert [peer["name"] for peer in it.status()["interfaces"][0]["peers"]] == ["laptop"]
        window.click("#reload-button")
        window.click("#reload-apply")
        window.wait_for_text("#reload-text", "Done")
        window.click("#reload-close")
        window.wait_for_text("#config-when", "Changed by the last reload")
        assert window.text("#config-changes").split("\n") == planned
        window.wait_for_text("#total-peers", "1 of 2")
        window.wait_for_text("#peers-body", "phone")
        assert it.status()["last_reload"]["changes"] == planned
        # Nothing to be done is not done.
        window.click("#reload-button")
        window.wait_for_text("#reload-text", "The config has not changed.")
        assert window.text("#reload-apply") == ""
        window.click("#reload-close")
        # An error is told, and changes nothing.
        it.file.write_text(json.dumps({"interfaces": [{**server_config(), "mtu": 5}], "admin": {"listen": ADMIN}}))
        window.click("#reload-button")
        window.wait_for_text("#reload-error", "mtu")
        assert window.text("#reload-apply") == ""
        window.click("#reload-close")
        window.wait_for_text("#config-when", "Changed by the last reload")  # that was the plan only
        it.daemon.signal(signal.SIGHUP)
        window.wait_for_text("#config-when", "was refused, and the old config stays in use")
        window.wait_for_text("#config-error", "mtu")
        assert len(it.status()["interfaces"][0]["peers"]) == 2
        # Updates are shown once the config asks for them. A checkout installs none. This daemon cannot even look:
        # its first config asked for none, so it has given up what a check needs.
        assert window.text("#update") == ""
        it.server.run(["mount", "-t", "tmpfs", "tmpfs", "/var/lib"])  # what a check keeps there is this test's alone
        repository = Repository(it.file.parent / "updates")
        repository.add("99.0", b"a program that nobody fetches")
        served = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(repository.directory)]
        it.server.start([*served, "8099"], name="http.server")
        it.server.wait_for_listener(8099)
        update = {"url": "http://127.0.0.1:8099/", "root_file": str(repository.root_file), "mode": "apply"}
        it.write(server_config(), update={**update, "spread": "0s"})
        it.daemon.signal(signal.SIGHUP)
        window.wait_for_text("#update-lines", "Updates are only reported: this program is installed as checkout")
        window.wait_for_text("#update-lines", "The last check for updates failed: ")
        window.wait_for_text("#update-lines", "restart it")
        assert it.daemon.stop() == 0
        it.start()
        window.wait_for_text("#login-why", "Log in to continue")
        it.log_in()
        window.wait_for_text("#update-lines", "Version 99.0 is available: git pull\nUpdates are only reported: ")
        assert "failed" not in window.text("#update-lines")
        # As the daemon of a pyz has it, which alone tries versions.
        found = {**it.status()["update"], "obstacle": None}
        for changes, lines in (
            ({}, ["Version 99.0 is available: git pull"]),
            (
                {"downloaded": "/a", "downloaded_version": "99.0"},
                ["Version 99.0 is available, and lies in /a: git pull"],
            ),
            (
                {"refused": ["98.0", "99.0"]},
                ["Version 99.0 is available. It did not start here, and is not installed again."],
            ),
            ({"available": None, "refused": ["99.0"]}, []),
        ):
            script = 'return import("/model.js").then(({ updateLines }) => updateLines(arguments[0]))'
            assert window.script(script, {**found, **changes}) == lines
        it.assert_clean(network=("status of 409", REFUSED, GONE, *BROKEN))


def test_who_is_plotted_may_be_away_for_a_while(lab: Lab) -> None:
    chosen = "document.querySelector('#plot-scope').selectedOptions[0].textContent === arguments[0]"
    phone = allowed("phone", "10.10.0.3")
    with station(lab, allowed("laptop"), phone) as it:
        window = it.window
        it.log_in()
        window.choose("#plot-scope", "phone")
        for clients, name in (((), "everything"), ((phone,), "phone")):
            it.write(server_config(allowed("laptop"), *clients, keepalive=1))
            it.daemon.signal(signal.SIGHUP)
            window.wait(chosen, name)
            window.wait(
                "document.querySelector('#plot-rate canvas').getAttribute('aria-label').includes(arguments[0])", name
            )
        it.assert_clean()


def test_a_lost_daemon_is_shown_as_lost_and_comes_back(lab: Lab) -> None:
    with station(lab) as it:
        window = it.window
        it.log_in()
        window.wait_for_text("#link-text", "live")
        # Killed: nobody answers. What is shown is how it was.
        it.daemon.kill()
        wait_until_lost(it)
        frozen = (picture(window, "#plot-rate canvas"), window.text("#total-rx-bytes"))
        window.wait(f"{_LOST_FOR_S} >= 3")
        assert (picture(window, "#plot-rate canvas"), window.text("#total-rx-bytes")) == frozen
        assert window.script("return document.querySelector('#reload-button').disabled")
        assert window.script("return document.title") == f"Lost: hub on {os.uname().nodename}"
        # Started again it knows no session, and what this page has seen is still there after the login.
        it.start()
        window.wait_for_text("#login-why", "Log in to continue")
        assert window.text("#panel") == ""
        it.log_in()
        window.wait_for_text("#link-text", "live")
        assert window.text("#lost") == ""
        window.wait_for_text("#events-list", "connected to the daemon again after")
        window.wait_for_text("#events-list", "connection to the daemon lost")
        window.wait_for_text("#process-about", f"pid {it.status()['pid']}")
        it.wait_for_status(lambda status: peer_of(status)["state"] == "connected")
        window.wait_for_text("tr.peer .state .main", "connected")
        # Stopped: the connection stays, and is silent. It goes on by itself with the same session.
        it.daemon.pause()
        wait_until_lost(it)
        it.daemon.resume()
        it.wait_until_live()
        window.wait("document.querySelector('#lost').hidden")
        it.assert_clean(network=(REFUSED, GONE, *BROKEN))


def wait_until_lost(it: Station) -> None:
    it.window.wait("document.documentElement.dataset.link === 'lost'")
    it.window.wait_for_text("#lost-what", "Lost since ")
    it.window.wait_for_text("#link-text", "lost")


def test_through_a_proxy(lab: Lab) -> None:
    """One that passes no WebSocket is named as what is wrong; one that does, and the daemon's end behind it."""
    port = 8088
    with station(lab) as it:
        window = it.window
        with nginx_proxy(it.server, ADMIN, listen=port):
            window.open(f"http://127.0.0.1:{port}/")
            window.write("#token", token("admin"))
            window.click("#login-button")
            window.wait_for_text("#lost-what", "a proxy must forward Host, Upgrade and Connection")
            assert window.text("#main") == ""
        with nginx_proxy(it.server, ADMIN, listen=port, websocket=True, log_level="crit"):
            it.wait_until_live()
            window.click("tr.peer .actions button")
            window.click("#disconnect-confirm")
            window.wait_for_text("#toast", "laptop was disconnected")
            it.daemon.kill()
            window.wait_for_text("#lost-what", "the response was 502 Bad Gateway")
            it.start()
            window.wait_for_text("#login-why", "Log in to continue")
            it.log_in()
        it.assert_clean(f"127.0.0.1:{port}", network=(REFUSED, GONE, *BROKEN, "status of 502"))
