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


def _shown(page: str, language: str) -> str:
    """The first block of a page that has this language."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


def _lines(text: str) -> set[str]:
    return {re.sub(r"\s*#.*", "", line).strip() for line in text.splitlines()} - {""}


@pytest.mark.parametrize("page", ["README.md", "docs/howto/behind-nginx.md"])
def test_pages_show_lines_of_the_recipe_for_nginx(page: str) -> None:
    # A `map` would have to be in another place than the rest of what is pasted (the tests of both pages paste it).
    assert _lines(_shown(page, "nginx")) - _directives("nginx/nginx.conf") == {"proxy_set_header Connection upgrade;"}


def test_the_howto_shows_the_recipe_for_caddy() -> None:
    """All of it, but for the certificate and the access log, with a site in place of the 404."""
    shown, recipe = _lines(_shown("docs/howto/behind-caddy.md", "caddy")), _directives("caddy/Caddyfile")
    assert shown - recipe == {"root * /var/www/html", "file_server"}
    assert {line.split()[0] for line in recipe - shown} == {"tls", "log", "respond"}


def test_the_howto_shows_the_compose_file() -> None:
    file = ROOT / "conf" / "compose" / "compose.yaml"
    assert _shown("docs/howto/containers.md", "yaml") == file.read_text(encoding="utf-8")
