"""The site that `make docs` makes: complete, the same as on a forge, usable in a real browser without the Internet."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

import pytest
from markdown_it import MarkdownIt

from tests.harness import ROOT, Host, Lab
from tests.harness.browser import Browser, BrowserError, browser
from tests.unit.test_config_reference import PREFIXES, fields
from tests.unit.test_documents import DOCS, anchors, slug

from .panels import DESKTOP, PHONE

BUILD_S: Final = 120.0
PORT: Final = 8000
ORIGIN: Final = f"http://127.0.0.1:{PORT}"
# Elements whose number tells whether a page was read as a forge reads it.
COMPARED: Final = ("li", "ol", "ul", "table", "tr", "pre", "blockquote", "h1", "h2", "h3", "h4", "img", "strong", "em")


@dataclass
class Html(HTMLParser):
    """What the tests want to know of a page."""

    links: list[str] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    headings: list[str] = field(default_factory=list)
    fetched: list[str] = field(default_factory=list)
    elements: Counter[str] = field(default_factory=Counter)
    in_article: bool = False

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.in_article |= tag == "article"
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag in ("link", "script", "img", "iframe", "source"):
            self.fetched.append(values.get("src") or values.get("href") or "")
        if self.in_article:
            self.elements[tag] += 1
            if re.fullmatch("h[1-6]", tag):
                self.headings.append(values.get("id", ""))

    def handle_endtag(self, tag: str) -> None:
        self.in_article &= tag != "article"


def read(page: str) -> Html:
    found = Html()
    found.feed(page)
    return found


def build(project: Path, site: Path) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--config-file",
        f"{project}/mkdocs.yml",
        "--site-dir",
        str(site),
    ]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, check=False, capture_output=True, text=True, env=environment, timeout=BUILD_S)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site. It was built without a warning."""
    out = tmp_path_factory.mktemp("docs") / "site"
    done = build(ROOT, out)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Html]:
    return {path: read(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def page_of(site: Path, source: Path) -> Path:
    name = "index.html" if source.name == "README.md" else f"{source.stem}.html"
    return site / source.relative_to(DOCS).with_name(name)


def test_every_link_leads_somewhere(site: Path, pages: dict[Path, Html]) -> None:
    """The anchors, too. The page for what is not found is served in any directory, so its links begin at the root."""
    dead = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or path.name == "404.html":
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in pages[target].ids):
                dead.append(f"{path.relative_to(site)}: {link}")
    assert dead == []
    assert sum(len(page.links) for page in pages.values()) > 1000


def test_every_field_of_the_config_has_an_anchor(site: Path, pages: dict[Path, Html]) -> None:
    found = set(pages[site / "config.html"].ids)
    assert {slug(f"{PREFIXES[struct]}: `{name}`") for struct, name in fields()} - found == set()


@pytest.mark.parametrize("source", sorted(DOCS.rglob("*.md")), ids=lambda path: str(path.relative_to(DOCS)))
def test_a_page_is_what_it_is_on_a_forge(site: Path, pages: dict[Path, Html], source: Path) -> None:
    """The same anchors, and as many lists, tables, blocks of code and so on: mkdocs does not read CommonMark."""
    page = pages[page_of(site, source)]
    assert page.headings == anchors(source)
    forge = read(
        f"<article>{MarkdownIt('commonmark').enable('table').render(source.read_text(encoding='utf-8'))}</article>"
    )
    assert {it: page.elements[it] for it in COMPARED} == {it: forge.elements[it] for it in COMPARED}


def test_files_of_the_repository_are_pages(site: Path) -> None:
    shown = (site / "files/conf/proxies/nginx/nginx.conf.html").read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", "", shown)
    for line in ("proxy_request_buffering off;", "client_max_body_size 0;"):
        assert line in text
    assert (site / "files/CHANGELOG.html").exists()


def test_other_sites_are_listed(site: Path) -> None:
    lines = site.with_name("external-links.txt").read_text(encoding="utf-8").splitlines()
    assert any(line.startswith("https://www.rfc-editor.org/rfc/rfc4193\tconfig.md") for line in lines)


def test_nothing_is_fetched_from_another_site(site: Path, pages: dict[Path, Html]) -> None:
    fetched = {url for page in pages.values() for url in page.fetched}
    assert {url for url in fetched if urlsplit(url).netloc} == set()
    assert any(url.endswith(".js") for url in fetched)
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert re.findall(r"""url\(["']?(?:https?:)?//[^)]*\)""", styles) == []


GOOD: Final = "# A\n\n`[x](../code.txt)` [b](other.md#b) [c](../LICENSE)\n"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A small project with the real configuration, but for its navigation."""
    project = tmp_path / "project"
    for file in ("tools/docs_site.py", "docs/site.css", "tapotun_trio/admin/static/icon.svg", "LICENSE"):
        (project / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, project / file)
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    config = re.sub(r"(?ms)^nav:\n.*?^\n", "nav: [{A: README.md}, {B: other.md}]\n\n", config)
    (project / "mkdocs.yml").write_text(config, encoding="utf-8")
    (project / "docs" / "README.md").write_text(GOOD, encoding="utf-8")
    (project / "docs" / "other.md").write_text("# B\n", encoding="utf-8")
    return project


def test_a_directory_in_the_navigation(project: Path, tmp_path: Path) -> None:
    """It stands for the pages that its index links to, in that order."""
    (project / "docs" / "dir").mkdir()
    for name, text in (("README", "[y](y.md), [b](../other.md#b), [x](x.md), [y](y.md)"), ("x", ""), ("y", "")):
        (project / "docs" / "dir" / f"{name}.md").write_text(f"# page {name}\n\n{text}\n", encoding="utf-8")
    config = (project / "mkdocs.yml").read_text(encoding="utf-8")
    (project / "mkdocs.yml").write_text(config.replace("{B: other.md}", "{B: other.md}, {C: dir/}"), encoding="utf-8")
    done = build(project, tmp_path / "site")
    assert done.returncode == 0, done.stderr
    links = read((tmp_path / "site" / "other.html").read_text(encoding="utf-8")).links
    in_order = [link for link in dict.fromkeys(links) if link.startswith("dir/")]
    assert in_order == ["dir/index.html", "dir/y.html", "dir/x.html"]


@pytest.mark.parametrize(
    ("page", "text", "complaint"),
    [
        ("README.md", "[x](absent.md)", "absent.md"),
        ("README.md", "[x](../absent.txt)", "leads nowhere in the repository"),
        ("README.md", "[x](../../../../../../etc/passwd)", "leads nowhere in the repository"),
        ("README.md", "[x](#absent)", "#absent"),
        ("README.md", "[x](other.md#absent)", "#absent"),
        ("README.md", "[x](/other.md)", "/other.md"),
        ("lonely.md", "# C", 'not included in the "nav"'),
    ],
)
def test_what_fails_the_build(project: Path, tmp_path: Path, page: str, text: str, complaint: str) -> None:
    """A dead link, and a page that the navigation lacks."""
    (project / "docs" / page).write_text(f"{GOOD}\n{text}\n", encoding="utf-8")
    done = build(project, tmp_path / "site")
    assert done.returncode == 1
    assert complaint in done.stderr


# ------------------------------------------------------------------ in a browser


@contextmanager
def reader(host: Host, site: Path) -> Iterator[Browser]:
    """A browser on a host where nothing but the site is to be had."""
    server = [sys.executable, "-m", "http.server", str(PORT), "--bind", "127.0.0.1", "--directory", str(site)]
    with host.start(server) as daemon:
        host.wait_for_listener(PORT, by=daemon)
        with browser(host) as window:
            yield window


@pytest.mark.netns
def test_a_reader_finds_a_field(lab: Lab, site: Path) -> None:
    """By the search, on a desktop and on a phone; and nothing on the way is wider than the screen."""
    wide = "return document.documentElement.scrollWidth - document.documentElement.clientWidth"
    with reader(lab.host("reader"), site) as window:
        for size in (DESKTOP, PHONE):
            window.look(size)
            for page in (
                "index",
                "comparison",
                "config",
                "deploy",
                "architecture",
                "packages",
                "update",
                "howto/index",
                "howto/site-to-site",
                "files/conf/proxies/nginx/nginx.conf",
            ):
                window.open(f"{ORIGIN}/{page}.html")
                assert window.script(wide) == 0, (page, size)
            window.open(f"{ORIGIN}/index.html")
            if size == PHONE:
                window.click("label.md-header__button[for='__search']")
            window.write("input.md-search__input", "transport_mark")
            window.click(".md-search-result__link[href*='config.html'][href$='#client-transport_mark']")
            window.wait("location.hash === '#client-transport_mark'")
            top = "document.getElementById('client-transport_mark').getBoundingClientRect().top"
            window.wait(f"{top} >= 0 && {top} < innerHeight")
        window.open(f"{ORIGIN}/index.html")
        for dark in (False, True):
            window.look(DESKTOP, dark=dark)
            window.wait(f"document.body.dataset.mdColorScheme === '{'slate' if dark else 'default'}'")
        assert [it for it in window.messages() if ORIGIN in it.text] == []
        requests = {urlsplit(url).netloc for url in window.requests() if not url.startswith("data:")}
        assert requests == {urlsplit(ORIGIN).netloc}


@pytest.mark.netns
def test_a_page_that_is_not_there(lab: Lab, site: Path) -> None:
    """It ends the test above at once, with its address."""
    with reader(lab.host("reader"), site) as window:
        window.open(f"{ORIGIN}/howto/index.html")
        with pytest.raises(BrowserError, match=f"{ORIGIN}/howto/README.html: .*404"):
            window.open(f"{ORIGIN}/howto/README.html")
