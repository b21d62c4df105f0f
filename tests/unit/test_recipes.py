"""conf/proxies: a file with pages has every line that the plain one beside it has for a tunnel."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).parents[2]
PROXIES: Final = ROOT / "conf" / "proxies"

PAIRS: Final = {
    "nginx/nginx.conf": "nginx/site.conf",
    "caddy/Caddyfile": "caddy/site.Caddyfile",
    "haproxy/haproxy.cfg": "haproxy/site.cfg",
    "apache/apache2.conf": "apache/site.conf",
}

# Where the two differ on purpose: which paths are whose, and what everything else gets.
PLACES: Final = re.compile(
    r"location |proxy_pass |return 404|handle |respond 404|http-request return|default_backend|backend |server tapotun"
    r"|<Location|</Location|ProxyPass "
)


def _directives(file: str) -> set[str]:
    lines = (PROXIES / file).read_text(encoding="utf-8").splitlines()
    plain = (re.sub(r"(^|\s+)#.*", "", line) for line in lines)
    return {re.sub(r"\s+", " ", line).strip() for line in plain} - {""}


@pytest.mark.parametrize("plain", PAIRS)
def test_a_site_has_all_that_a_tunnel_needs(plain: str) -> None:
    missing = _directives(plain) - _directives(PAIRS[plain])
    assert {line for line in missing if not PLACES.match(line)} == set()


def test_every_recipe_is_in_the_docs_and_in_a_pair() -> None:
    docs = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    files = {str(path.relative_to(PROXIES)) for path in PROXIES.rglob("*") if path.is_file()}
    assert files == {*PAIRS, *PAIRS.values()}
    for file in files:
        assert f"(../conf/proxies/{file})" in docs


def test_the_readme_shows_lines_of_the_recipe() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (snippet,) = re.findall(r"```nginx\n(.*?)```", readme, re.DOTALL)
    lines = {re.sub(r"\s*#.*", "", line).strip() for line in snippet.splitlines()} - {""}
    # A `map` would have to be in another place than the rest of what is pasted (tests/netns/test_readme.py pastes it).
    assert lines - _directives("nginx/nginx.conf") == {"proxy_set_header Connection upgrade;"}
