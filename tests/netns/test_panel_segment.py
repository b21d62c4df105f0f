"""The panel of a server with a TAP interface, in a real browser: the table of its switch."""

from __future__ import annotations

import json
from typing import Final

import pytest

from tests.harness import Host, Lab, command, wait_for_ping

from .panels import PATIENCE_S, station
from .topologies import TUNNEL_SERVER, allowed

pytestmark = pytest.mark.netns

PINNED: Final = "02:00:5e:10:00:07"


def mac_of(host: Host) -> str:
    return str(host.ip("link show tun0")[0]["address"])


def test_the_table_of_the_switch(lab: Lab) -> None:
    """The client learns from its server what it is. Its address shows as soon as it has sent."""
    camera = allowed("camera", "10.10.0.9", macs=[PINNED])
    with station(lab, allowed("laptop"), camera, device="tap") as it:
        assert wait_for_ping(it.client, TUNNEL_SERVER, PATIENCE_S).ok
        window = it.window
        it.log_in()
        card = "#interfaces article"
        window.wait_for_text(card, f"TAP {mac_of(it.server)}")
        window.wait_for_text(f"{card} .macs-details summary", "3 MAC addresses")
        assert window.text(f"{card} .macs tbody") == ""  # nobody has asked for it yet
        window.click(f"{card} .macs-details summary")
        window.wait("document.querySelectorAll(arguments[0]).length === 3", f"{card} .macs tbody tr")
        rows = window.script(
            "return [...document.querySelectorAll(arguments[0])].map((row) =>"
            " [...row.cells].map((cell) => cell.textContent))",
            f"{card} .macs tbody tr",
        )
        own, pinned, learned = rows
        assert own[:2] == [mac_of(it.server), "the server's side"]
        assert own[2].startswith("this server")
        assert pinned == [PINNED, "camera", "pinned"]
        assert learned[:2] == [mac_of(it.client), "laptop"]
        assert learned[2].endswith(" ago")

        # The same as the command has it.
        answer = it.server.run([*command(), "status", "--macs", "--json"], timeout=PATIENCE_S)
        [table] = json.loads(answer.stdout)["processes"][0]["interfaces"]
        assert {(row["mac"], row["client"] or "the server's side") for row in table["macs"]} == {
            (mac, where) for mac, where, _ in rows
        }
        it.assert_clean()
