"""The documents: complete, and every place that something in the repository cites is there."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tapotun_trio import cli, exit_codes
from tapotun_trio.shell.usage import verbs
from tapotun_trio.wire import control
from tapotun_trio.wire.params import Params

ROOT: Final = Path(__file__).parents[2]
DOCS: Final = ROOT / "docs"
HOWTOS: Final = sorted((DOCS / "howto").glob("*.md"))
PAGES: Final = [
    *(ROOT / it for it in ("README.md", "SECURITY.md", "CONTRIBUTING.md")),
    *sorted(DOCS.glob("*.md")),
    *HOWTOS,
]

# Everything that people read or run, but for this file, which has the forbidden names. No build/ and no .venv.
_PLACES: Final = ("tapotun_trio", "tests", "docs", "packaging", "conf", "fuzz", "bench", "tools", ".ci")
_SUFFIXES: Final = {"", ".py", ".md", ".in", ".js", ".css", ".html", ".json", ".yml", ".cfg", ".conf", ".service", ".c"}
FILES: Final = [
    path
    for place in _PLACES
    for path in sorted((ROOT / place).rglob("*"))
    if path.is_file() and "__pycache__" not in path.parts and path.suffix in _SUFFIXES and path != Path(__file__)
] + [
    ROOT / it
    for it in (
        "README.md",
        "SECURITY.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
        "Makefile",
        "mkdocs.yml",
        "pyproject.toml",
    )
]

# Documents in which this project was planned, which a clone does not have. Names in the code are not meant: in Python
# only comments and strings are searched, and `messages.PROTOCOL`, {NAMES} and @NAMES@ are names there too.
FORBIDDEN: Final = re.compile(
    r"(?<![\w.`{/@])(?<!import )(?:PROTOCOL|DESIGN|STYLE|NAMES)(?![\w`(=])|\b(?:the|this|an) issue(?:s|'s)?\b"
)
CITATION: Final = re.compile(r"(?<![\w/.-])(?:\.\./)?(docs/(?:howto/)?[\w-]+\.md)(?:#([\w-]+))?")
LINK: Final = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def without_code(page: str) -> str:
    return re.sub(r"(?ms)^```.*?^```$", "", page)


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub makes it."""
    plain = re.sub(r"\[([^]]+)\]\([^)]*\)", r"\1", heading)
    return re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")


def anchors(page: Path) -> list[str]:
    return [slug(it) for it in re.findall(r"(?m)^#{1,6} (.+)$", without_code(text_of(page)))]


def citations(path: Path) -> Iterator[tuple[Path, str]]:
    """Page and anchor (empty: none) of everything that a file cites in docs/."""
    for file, anchor in CITATION.findall(text_of(path)):
        yield ROOT / file, anchor
    if path in PAGES:
        for target, anchor in LINK.findall(without_code(text_of(path))):
            yield (path.parent / target).resolve() if target else path, anchor


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_what_is_cited_is_there() -> None:
    missing = [
        f"{name(path)}: {name(page)}#{anchor}"
        for path in FILES
        for page, anchor in citations(path)
        if not page.exists() or (anchor and anchor not in anchors(page))
    ]
    assert missing == []


def test_citations_are_found() -> None:
    """The test above looks at something."""
    found = {(name(path), name(page)) for path in FILES for page, _ in citations(path)}
    assert {("README.md", "docs/deploy.md"), ("conf/proxies/nginx/nginx.conf", "docs/deploy.md")} <= found
    assert {("SECURITY.md", "docs/admin.md"), ("CONTRIBUTING.md", "docs/protocol.md")} <= found
    assert {("tapotun_trio/wire/control.py", "docs/protocol.md"), ("docs/status.md", "docs/deploy.md")} <= found
    assert len(FILES) > 200


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_anchors_are_unambiguous(page: Path) -> None:
    found = anchors(page)
    assert sorted(set(found)) == sorted(found)


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Line by line what a file says to people, with the number of the line."""
    if path.suffix != ".py":
        yield from enumerate(text_of(path).splitlines(), 1)
        return
    for token in tokenize.generate_tokens(io.StringIO(text_of(path)).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING):
            yield from enumerate(token.string.splitlines(), token.start[0])


def test_nothing_cites_a_document_that_is_not_here() -> None:
    found = [
        f"{name(path)}:{number}: {line.strip()}"
        for path in FILES
        for number, line in prose(path)
        if FORBIDDEN.search(line) and path != ROOT / "SECURITY.md"  # which says where else than in an issue
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    ["as PROTOCOL says", 'PROTOCOL, "Extended"', "# PROTOCOL; until", "see DESIGN.md", "STYLE's rules", "of the issue"],
)
def test_citations_of_documents_that_are_not_here_are_found(line: str) -> None:
    assert FORBIDDEN.search(line)


# ------------------------------------------------------------------ docs/cli.md


def test_every_verb_and_option_is_documented() -> None:
    parts = re.split(r"(?m)^#{2,3} (.+)\n", text_of(DOCS / "cli.md"))[1:]
    found = dict(zip(parts[::2], parts[1::2], strict=True))
    as_run, while_it_runs = {"server": "run", "client": "run"}, found["While it runs"]
    for verb in verbs(cli.build_parser()):
        section = found[verb.name] + found[as_run.get(verb.name, verb.name)] + while_it_runs
        for option in verb.options:
            found_here = any(f"`{flag}" in section for flag in option.flags)
            assert found_here or "--help" in option.flags, (verb.name, option.flags)
        for positional in verb.positionals:
            assert positional.metavar in section or positional.choices, (verb.name, positional.metavar)


def test_every_exit_code_is_documented() -> None:
    codes = re.findall(r"(?m)^\| (\d+) \|", text_of(DOCS / "cli.md"))
    assert codes == [str(value) for key, value in vars(exit_codes).items() if key.isupper()]


# ------------------------------------------------------------------ docs/protocol.md


def test_the_protocol_has_every_control_frame_and_header() -> None:
    page = text_of(DOCS / "protocol.md")
    kinds = re.findall(r"(?m)^\| (\d+) \| \[([A-Z_]+)\]", page)
    assert {name: int(kind) for kind, name in kinds} == {
        name: getattr(control, name) for name in ("PARAMS", "PING", "PONG", "UPLOAD_SEEN", "BYE", "AGENT", "PADDING")
    }
    for key, value in vars(control).items():
        if key.endswith("_HEADER"):
            assert f"| `{value}:" in page, value
    features = dict(re.findall(r"(?m)^\| `(\w+)` \|.*\| ((?:not )?built) \|$", page))
    assert {name for name, state in features.items() if state == "built"} == control.SUPPORTED
    for field in Params.__struct_fields__:
        assert f"| `{field.removesuffix('6')}` |" in page, field


# ------------------------------------------------------------------ docs/howto


def test_the_index_has_every_howto() -> None:
    index = DOCS / "howto" / "README.md"
    rows = re.findall(r"(?m)^\| \[[^]]+\]\(([\w-]+\.md)\)", text_of(index))
    assert sorted([*rows, index.name]) == [page.name for page in HOWTOS]


@pytest.mark.parametrize("page", HOWTOS, ids=name)
def test_a_howto_is_short(page: Path) -> None:
    """A page: what a screen or two shows, or two sheets of paper with the configs on them."""
    assert len(without_code(text_of(page)).split()) <= 500
    assert len(text_of(page).splitlines()) <= 150


def test_every_howto_is_run_or_says_that_it_is_not() -> None:
    """Each step of a page that a test follows has a machine, or is what the step before it prints."""
    tests = "".join(text_of(ROOT / "tests" / it) for it in ("netns/test_howtos.py", "packages/test_container.py"))
    run = set(re.findall(r'read_page\("([\w-]+)"\)', tests))
    others = {page.stem for page in HOWTOS if "was run by us" in text_of(page) or page.stem == "README"}
    assert run | others == {page.stem for page in HOWTOS}
    assert not run & others


@pytest.mark.parametrize("page", [page for page in HOWTOS if page.name != "README.md"], ids=name)
def test_a_howto_ends_the_server_whose_place_its_own_takes(page: Path) -> None:
    """Who followed the page on the proxy has a server with the same port."""
    text = " ".join(text_of(page).split())
    other = "(behind-nginx.md)" in text and '"port": 8080' in text and "`/etc/tapotun/office.json`" not in text
    assert ("systemctl disable --now tapotun@office" in text) == other


# ------------------------------------------------------------------ the README


def test_the_readme_is_short() -> None:
    assert len(text_of(ROOT / "README.md").split()) <= 1100


def test_the_glossary_is_short() -> None:
    glossary = text_of(DOCS / "protocol.md").partition("\n## Glossary\n")[2].partition("\n## ")[0]
    assert 10 < len(re.findall(r"(?m)^\| (?!term|-)", glossary)) <= 25
