"""The panel as a page: many peers, foreign text, small screens, both colour schemes, and without a mouse."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

import pytest

from tapotun_trio.status.duration import ago
from tapotun_trio.status.render import rate, size
from tests.harness import Lab, wait_until

from .panels import DESKTOP, PATIENCE_S, PHONE, station
from .topologies import TUNNEL_CLIENT, TUNNEL_SERVER, allowed

pytestmark = pytest.mark.netns

MANY: Final = 500
HOSTILE: Final = '<img src=x onerror="window.owned=1"><b>\'&amp;'

# What text is too faint on what it stands on (WCAG 2.2, 1.4.3: 4.5 to 1), as lines for the report.
_FAINT: Final = """
  const part = (it) => it <= 0.04045 ? it / 12.92 : ((it + 0.055) / 1.055) ** 2.4;
  const light = ([r, g, b]) => 0.2126 * part(r / 255) + 0.7152 * part(g / 255) + 0.0722 * part(b / 255);
  const rgba = (text) => { const it = text.match(/[\\d.]+/g).map(Number); return it.length === 3 ? [...it, 1] : it; };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
    if (node.closest(":disabled, noscript, option")) continue;
    let ground = node;
    while (ground && rgba(getComputedStyle(ground).backgroundColor)[3] < 1) ground = ground.parentElement;
    const back = light(rgba(getComputedStyle(ground ?? document.documentElement).backgroundColor));
    const front = light(rgba(getComputedStyle(node).color));
    const contrast = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (contrast < 4.5) found.push(`${contrast.toFixed(2)} ${node.className}: ${walker.currentNode.data}`);
  }
  return found;
"""
# What is wider than the screen. A table or a list that scrolls by itself would be one too.
_TOO_WIDE: Final = """
  const width = document.documentElement.clientWidth;
  const shown = [...document.body.querySelectorAll("*")].filter((it) => it.checkVisibility({visibilityProperty: true}));
  return shown.filter((it) => it.getBoundingClientRect().right > width + 0.5 && !it.closest(".visually-hidden, thead"))
    .map((it) => `${it.tagName} ${it.className} ${it.getBoundingClientRect().right}`);
"""


def test_many_peers(lab: Lab) -> None:
    others = [allowed(f"node-{n:03}", f"10.10.{1 + n // 250}.{1 + n % 250}") for n in range(MANY - 2)]
    clients = [allowed("laptop"), allowed(HOSTILE, "10.10.0.3"), *others]
    with station(lab, *clients, net="10.10.0.1/16") as it:
        window = it.window
        it.log_in()
        window.wait_for_text("#peers-count", f"1 of {MANY} connected")
        rows = "document.querySelectorAll('tr.peer').length"
        assert window.script(f"return {rows}") == 50
        # Names are text, whatever is in them.
        window.wait_for_text("#peers-body", HOSTILE)
        window.wait_for_text("#plot-scope", HOSTILE)
        assert window.script("return window.owned") is None
        assert window.script("return document.querySelectorAll('#peers img, #plots img').length") == 0
        # Search, filter, sort.
        window.write("#peers-search", "node-12 10.10.1.")
        window.wait(f"{rows} === 10")
        window.write("#peers-search", "")
        window.choose("#peers-which", "Connected")
        window.wait(f"{rows} === 1")
        assert window.text("tr.peer .name .main") == "laptop"
        window.choose("#peers-which", "All states")
        window.wait(f"{rows} === 50")
        assert window.text("tr.peer .name .main") == "laptop"  # those that were never there come last
        window.click("th.name .sort")
        window.wait("document.querySelector('tr.peer .name .main').textContent !== 'laptop'")
        window.click("th.state .sort")
        window.wait("document.querySelector('tr.peer .name .main').textContent === 'laptop'")
        assert window.script("return document.querySelector('th.state').getAttribute('aria-sort')") == "ascending"
        window.click("th.state .sort")
        window.wait("document.querySelector('th.state').getAttribute('aria-sort') === 'descending'")
        window.wait("document.querySelector('tr.peer').dataset.state === 'offline'")
        window.click("#peers-all-button")
        window.wait(f"{rows} === {MANY}")
        # Rows are changed in their place: the same elements after many updates, open ones and the focus with them.
        window.click("th.name .sort")
        window.write("#peers-search", "laptop")
        window.wait(f"{rows} === 1")
        window.press("tr.peer .toggle", "\ue007")
        window.wait("document.querySelector('tr.detail') !== null")
        window.script("document.querySelector('tr.peer').marked = document.querySelector('tr.detail').marked = true")
        told = window.text("#process-about")
        wait_until(lambda: window.text("#process-about") != told, PATIENCE_S, "a later status", window.page)
        assert window.script(
            "return document.querySelector('tr.peer').marked && document.querySelector('tr.detail').marked"
        )
        assert window.script("return document.activeElement.className") == "toggle"
        it.assert_clean()


# An IPv6 address may have 39 characters.
LONG_NET: Final = "2001:db8:1234:5678:9abc:def0:1234:5601/120"
LONG: Final = "2001:db8:1234:5678:9abc:def0:1234:5678"


def test_small_screens_and_both_schemes(lab: Lab) -> None:
    laptop = {
        **allowed("laptop", routes=["10.60.0.0/24", "2001:db8:1111:2222:3333:4444:5555:0/112"]),
        "ip": [TUNNEL_CLIENT, LONG],
        "sources": ["2001:db8:7777:7777:7777:7777:7777:7777"],
    }
    other = allowed("n" * 60, "10.10.0.3")
    nets, ips = [f"{TUNNEL_SERVER}/24", LONG_NET], ["2001:db8:1234:5678:9abc:def0:1234:56fe"]
    with station(lab, laptop, other, net=nets, ips=ips, push_routes=["2001:db8:8888:8888:8888:8888::/96"]) as it:
        window = it.window
        assert window.script(_FAINT) == []
        window.look(PHONE)
        assert window.script(_TOO_WIDE) == []
        it.log_in()
        window.wait("document.querySelectorAll('tr.peer').length === 2")
        window.click("tr.peer .toggle")
        for text in ("10.60.0.0/24", *laptop["routes"], *laptop["ip"], *laptop["sources"]):
            window.wait_for_text("tr.detail", text)
        window.wait_for_text("body", LONG_NET)
        for size in (PHONE, (390, 844), (768, 1024), DESKTOP):
            for dark in (False, True):
                window.look(size, dark=dark)
                assert window.script("return document.documentElement.scrollWidth") == size[0]
                assert window.script(_TOO_WIDE) == [], size
                assert window.script(_FAINT) == [], (size, dark)
                background = window.script("return getComputedStyle(document.documentElement).backgroundColor")
                assert background == ("rgb(14, 18, 23)" if dark else "rgb(244, 246, 248)")
        # The dialogs, and what is shown only when something is wrong.
        window.look(PHONE)
        window.click("#reload-button")
        window.wait_for_text("#reload-text", "The config has not changed.")
        assert window.script(_TOO_WIDE) == []
        window.click("#reload-close")
        it.daemon.kill()
        window.wait_for_text("#lost-what", "Lost since ")
        for dark in (False, True):
            window.look(PHONE, dark=dark)
            assert window.script(_TOO_WIDE) == []
            assert window.script(_FAINT) == []
        it.assert_clean(network=("ERR_",))


def test_numbers_are_written_as_on_the_terminal(lab: Lab) -> None:
    amounts = [0, 1, 9, 999, 999.6, 1000, 1023, 1024, 5555, 93_100_000, 1.21 * 2**30, 3.3e12, 7e15]
    spans = [0, 1, 59, 60, 61, 3599, 3600, 7500, 86_399, 86_400, 273_600]
    then = datetime(2026, 11, 28, tzinfo=UTC)
    with station(lab) as it:
        shown = it.window.script(
            """const [amounts, spans] = arguments;
            return import("/format.js").then(({ size, rate, span }) =>
              [amounts.map((it) => size(Math.trunc(it))), amounts.map(rate), spans.map((it) => span(it * 1000))]);""",
            amounts,
            spans,
        )
        assert shown[0] == [size(int(it)) for it in amounts]
        assert shown[1] == [rate(it) for it in amounts]
        assert shown[2] == [ago(then, then + timedelta(seconds=it)) for it in spans]


def test_what_came_in_the_last_minute(lab: Lab) -> None:
    """Of counters that begin anew, that a peer leaves, that come late, on a clock that is set, and after a silence."""
    looks = [
        (0, {"a": 1000}, {"a": 0}),  # what there was before nobody saw coming
        (1, {"a": 1002}, {"a": 2}),
        (2, {"a": 1002, "b": 5}, {"a": 2, "b": 5}),
        (3, {"a": 4, "b": 5}, {"a": 2, "b": 5}),  # another daemon, or without that peer
        (4, {"a": 10, "b": 6}, {"a": 8, "b": 6}),
        (5, {"b": 7}, {"b": 7}),
        (6, {"a": 3, "b": 7}, {"a": 11, "b": 7}),
        (62, {"a": 4, "b": 7}, {"a": 10, "b": 2}),  # what came in the seconds 1 and 2 is a minute old
        (10, {"a": 9, "b": 9}, {"a": 0, "b": 0}),
        (11, {"a": 10, "b": 9}, {"a": 1, "b": 0}),
        (99, {"a": 500, "b": 9}, {"a": 0, "b": 0}),
        (100, {"a": 501, "b": 9}, {"a": 1, "b": 0}),
    ]
    with station(lab) as it:
        shown = it.window.script(
            """return import("/model.js").then(({ Recently }) => {
              const recently = new Recently();
              return arguments[0].map(([at, counters]) =>
                Object.fromEntries(recently.growth(at * 1000, new Map(Object.entries(counters)))));
            });""",
            [(at, counters) for at, counters, _ in looks],
        )
        assert shown == [grown for _, _, grown in looks]


def test_without_a_mouse(lab: Lab) -> None:
    """Everything can be reached with the Tab key, has a name, and works by Enter."""
    tab, enter, escape = "\ue004", "\ue007", "\ue00c"
    with station(lab) as it:
        window = it.window
        assert window.script("return document.activeElement.id") == "token"
        window.press("#token", "raw-token-of-admin" + enter)
        it.wait_until_live()
        window.wait("document.querySelector('tr.peer') !== null")
        window.script("document.activeElement.blur()")
        seen: list[str] = []
        name = "const it = document.activeElement; return it.id || it.getAttribute('aria-label') || it.textContent"
        for _ in range(40):
            window.keys(tab)
            seen.append(str(window.script(name)).strip())
            if window.script("return document.activeElement === document.body"):
                break
        for wanted in (
            "reload-button",
            "logout-button",
            "plot-scope",
            "plot-span",
            "Plot tun0",
            "peers-search",
            "Peer",
            "laptop",
            "Disconnect laptop",
            "events-search",
            "events-level",
        ):
            assert wanted in seen, seen
        window.press("tr.peer .toggle", enter)
        window.wait("document.querySelector('tr.peer .toggle').getAttribute('aria-expanded') === 'true'")
        window.press("tr.peer .actions button", enter)
        window.wait("document.querySelector('#disconnect-dialog').open")
        assert window.script("return document.querySelector('#disconnect-dialog').contains(document.activeElement)")
        window.keys(escape)
        window.wait("!document.querySelector('#disconnect-dialog').open")
        assert window.script("return document.activeElement.getAttribute('aria-label')") == "Disconnect laptop"
        unnamed = """
          return [...document.querySelectorAll("button, input, select, canvas")].filter((it) => it.checkVisibility() &&
            !(it.textContent.trim() || it.ariaLabel || it.labels?.length)).map((it) => it.outerHTML)"""
        assert window.script(unnamed) == []
        it.assert_clean()
