"""What the panel's files may not do: nothing that its Content-Security-Policy forbids, nothing from elsewhere, and no
markup made of text that came over the network. That it works is shown by tests/netns/test_panel*.py."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Final

import pytest

from tapotun_trio.admin.api import MAX_LIVE
from tapotun_trio.admin.pages import read_pages
from tapotun_trio.datapath.counters import DropReason
from tapotun_trio.errors import EndReason, RefusalReason

STATIC: Final = Path(__file__).parents[2] / "tapotun_trio" / "admin" / "static"
SCRIPTS: Final = sorted(STATIC.glob("*.js"))
MAX_LINES: Final = 400
MAX_COLUMNS: Final = 120

# How a text could become markup or code, dialogs that hold the page up, and what leaves the origin.
FORBIDDEN: Final = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|setHTMLUnsafe|document\.write|createContextualFragment|DOMParser|srcdoc"
    r"|\beval\b|new Function|setTimeout\(\s*[\"'`]|\b(?:alert|confirm|prompt)\(|sendBeacon|XMLHttpRequest|https?://"
)


class Page(HTMLParser):
    """Elements of index.html: their tags, attributes and text."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[tuple[str, str]] = []
        self.feed((STATIC / "index.html").read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.elements and data.strip():
            self.texts.append((self.elements[-1][0], data))


def test_the_markup_has_no_script_and_no_style_in_it() -> None:
    page = Page()
    assert len(page.elements) > 50
    for tag, attributes in page.elements:
        assert tag != "style"
        assert not [name for name in attributes if name == "style" or name.startswith("on")], (tag, attributes)
    assert not [text for tag, text in page.texts if tag == "script"]


def test_the_markup_refers_to_files_that_are_served() -> None:
    pages = read_pages()
    references = [it[name] for _, it in Page().elements for name in ("src", "href") if name in it]
    assert {"panel.js", "panel.css", "icon.svg"} <= set(references)
    assert all(f"/{name}" in pages for name in references)
    assert "/" in pages


def test_every_id_is_there_once_and_every_one_that_is_used_is_there() -> None:
    ids = [it["id"] for _, it in Page().elements if "id" in it]
    assert len(ids) == len(set(ids))
    used = {name for script in SCRIPTS for name in re.findall(r'byId\("([^"]+)"\)', script.read_text())}
    assert len(used) > 40
    assert used <= set(ids)
    labels = [
        it[name] for _, it in Page().elements for name in ("for", "aria-labelledby", "aria-describedby") if name in it
    ]
    assert {part for label in labels for part in (label or "").split()} <= set(ids)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda it: it.name)
def test_a_module_has_its_rules_on_top_and_does_nothing_forbidden(script: Path) -> None:
    source = script.read_text()
    assert source.startswith("// ")
    assert source.count("\n") <= MAX_LINES
    assert max(map(len, source.splitlines())) <= MAX_COLUMNS
    assert FORBIDDEN.findall(source) == []
    imported = re.findall(r'from "\./([^"]+)"', source)
    assert all(f"/{name}" in read_pages() for name in imported)
    assert len(imported) == len(re.findall(r"^import ", source, re.M)), "modules of our own only"


def test_the_styles_load_nothing() -> None:
    assert not re.findall(r"@import|url\(|https?:", (STATIC / "panel.css").read_text())
    picture = (STATIC / "icon.svg").read_text()
    assert "script" not in picture
    assert re.findall(r"https?://[^\"]+", picture) == ["http://www.w3.org/2000/svg"]  # its namespace


def test_a_form_never_puts_the_token_into_an_url() -> None:
    """If the script that sends it does not run, the browser does what the markup says; by default a GET."""
    forms = [it for tag, it in Page().elements if tag == "form"]
    assert [(it.get("method"), it.get("action")) for it in forms] == [("post", "api/login")]


def test_it_knows_how_many_panels_there_may_be() -> None:
    assert f"or {MAX_LIVE} panels are open already" in (STATIC / "link.js").read_text()


def test_the_page_has_the_meaning_of_each_reason() -> None:
    source = read_pages()["/reasons.js"].body.decode()
    meanings = json.loads(source.partition("export const MEANINGS = ")[2].partition(";\n")[0])
    assert meanings["packets"] == {reason: reason.meaning for reason in DropReason}
    assert meanings["requests"] == {reason: reason.meaning for reason in (*EndReason, *RefusalReason)}
    assert meanings["streams"] == {reason: reason.meaning for reason in EndReason}
    assert EndReason.http(502).meaning in source
    assert EndReason.http(502) not in meanings["streams"], "only the reasons that the code names"
