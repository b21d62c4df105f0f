"""The site of docs/, as a hook of mkdocs (mkdocs.yml): what a page links to outside of docs/ is a page of the site too.

The documents are written for a forge, where a link to ``../conf/proxies/nginx/site.conf`` shows that file. On the site
it leads to a page below ``files/`` that shows the file: rendered if it is Markdown, a list of files if it is a
directory. So the site works without a forge and without the Internet.

Links to other sites are counted and written to a file, for a person to open: nothing is fetched.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).resolve().parents[1]
DOCS: Final = ROOT / "docs"
EXTERNAL: Final = "external-links.txt"
ICON: Final = ROOT / "tapotun_trio" / "admin" / "static" / "icon.svg"

# A block of code, or code within a paragraph, in which nothing is a link; or a link, but not to another site.
_LINK: Final = re.compile(
    r"""(?msx)
    (?P<block> ^[ ]* (?P<fence>`{3,}) .*? ^[ ]* (?P=fence)`* [ ]* $)
    | (?P<code> (?P<ticks>`+) (?!`) (?: (?!\n[ ]*\n) . )+? (?<!`) (?P=ticks) (?!`))
    | \]\( (?!\w+:) (?P<target>[^)#\s]+) (?P<anchor>\#[^)\s]+)? \)
    """
)
_EXTERNAL: Final = re.compile(r'<a [^>]*href="(https?://[^"]+)"')
# By the end of a file's name, else by its directory. What is not here is shown without colours.
_LANGUAGES: Final = {
    ".c": "c",
    ".json": "json",
    ".py": "python",
    ".service": "ini",
    ".sh": "sh",
    ".toml": "toml",
    ".yaml": "yaml",
    ".yml": "yaml",
    "apache": "apache",
    "nginx": "nginx",
}
_NOT_FILES: Final = {"__pycache__"}

_origins: dict[str, Path] = {}
"""The file or directory of the repository that a page outside of docs/ shows, by the page's place in the site."""
_external: defaultdict[str, set[str]] = defaultdict(set)
"""The pages with a link to another site, by its URL."""


def on_config(config: MkDocsConfig) -> None:
    """A build begins, perhaps not the first one of this process. Fill in the directories of the navigation."""
    _origins.clear()
    _external.clear()
    for section in config.nav or []:
        for title, entry in section.items():
            if isinstance(entry, str) and entry.endswith("/"):
                section[title] = _pages_of(DOCS / entry)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of what is linked, and of what those link to.

    Raises PluginError if a link leads to nothing, or out of the repository.
    """
    files.append(File.generated(config, ICON.name, abs_src_path=str(ICON)))
    waiting = [DOCS / file.src_uri for file in files.documentation_pages()]
    while waiting:
        origin = waiting.pop()
        for linked in _linked(origin):
            place = _place(linked)
            if linked.is_relative_to(DOCS) or place in _origins:
                continue
            _origins[place] = linked
            files.append(File.generated(config, place, content=_content(linked)))
            waiting.append(linked)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have the links lead to where their targets are in the site."""
    here = page.file.src_uri
    origin = _origins.get(here, DOCS / here)
    if origin.suffix != ".md":
        return markdown

    def rewritten(link: re.Match[str]) -> str:
        target = (origin.parent / link["target"]).resolve()
        return f"]({os.path.relpath(_place(target), PurePosixPath(here).parent)}{link['anchor'] or ''})"

    return _with_links(markdown, rewritten)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> None:
    """Collect the links to other sites."""
    for url in _EXTERNAL.findall(html):
        _external[url].add(page.file.src_uri)


def on_post_build(config: MkDocsConfig) -> None:
    """Write the list of other sites, beside the site."""
    lines = (f"{url}\t{' '.join(sorted(pages))}\n" for url, pages in sorted(_external.items()))
    Path(config.site_dir).with_name(EXTERNAL).write_text("".join(lines), encoding="utf-8")


def _pages_of(directory: Path) -> list[str]:
    """A directory of pages in the navigation: its README, and the pages beside it in the order in which that links to
    them. One that it does not link to is left out, which fails a strict build."""
    index = directory / "README.md"
    linked = (path for path in _linked(index) if path.parent == directory and path.suffix == ".md")
    return list(dict.fromkeys(_place(path) for path in (index, *linked)))


def _place(path: Path) -> str:
    """The place in the site of something in the repository."""
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    # mkdocs leaves out what begins with a dot.
    name = "/".join(("files", *(part.lstrip(".") for part in path.relative_to(ROOT).parts)))
    if path.is_dir():
        return f"{name}/index.md"
    return name if path.suffix == ".md" else f"{name}.md"


def _linked(page: Path) -> Iterator[Path]:
    """Everything in the repository to which the page of a file or a directory leads. Raises PluginError."""
    if page.is_dir():
        yield from _entries(page)
        return
    if page.suffix != ".md":
        return
    found: list[Path] = []

    def note(link: re.Match[str]) -> str:
        target = (page.parent / link["target"]).resolve()
        if not target.is_relative_to(ROOT) or not target.exists():
            raise PluginError(f"{page.relative_to(ROOT)}: the link to {link['target']} leads nowhere in the repository")
        found.append(target)
        return link[0]

    _with_links(page.read_text(encoding="utf-8"), note)
    yield from found


def _with_links(markdown: str, replace: Callable[[re.Match[str]], str]) -> str:
    """The text with each link replaced, except in code."""
    return _LINK.sub(lambda found: replace(found) if found["target"] else found[0], markdown)


def _content(path: Path) -> str:
    """The page that shows a file or a directory. None of them is found by the search, before the pages about them."""
    head = "---\nsearch:\n  exclude: true\n---\n\n"
    title = f"# {path.relative_to(ROOT).as_posix()}\n\n"
    if path.is_dir():
        return head + title + "".join(f"- [{entry.name}]({_beside(path, entry)})\n" for entry in _entries(path))
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return head + text
    language = _LANGUAGES.get(path.suffix) or _LANGUAGES.get(path.parent.name, "text")
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{head}{title}{fence}{language}\n{text.rstrip()}\n{fence}\n"


def _entries(directory: Path) -> list[Path]:
    return sorted(entry for entry in directory.iterdir() if entry.name not in _NOT_FILES)


def _beside(directory: Path, entry: Path) -> str:
    return os.path.relpath(_place(entry), PurePosixPath(_place(directory)).parent)
