"""Renews the base image of packaging/Containerfile: the newest dated tag of Debian's slim image, with its digest.

Only the standard library is needed. It asks the registry's API (OCI Distribution Specification) for the list of tags,
page by page, then for the manifest of the newest one. The digest is computed here.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from email.message import Message
from pathlib import Path
from typing import Final

FILE: Final = Path(__file__).with_name("Containerfile")
REGISTRY: Final = "https://registry-1.docker.io"
REPOSITORY: Final = "library/debian"
SUITE: Final = "trixie"
# An index: the image of every architecture. Both names are in use.
INDEX: Final = "application/vnd.oci.image.index.v1+json, application/vnd.docker.distribution.manifest.list.v2+json"
TIMEOUT_S: Final = 30.0
LIMIT_BYTES: Final = 1 << 24
PAGES: Final = 100


class Registry:
    """One repository of a registry, read without an account."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._token = ""

    def newest(self) -> str:
        """The newest dated tag. Raises SystemExit if there is none."""
        dated = re.compile(rf"{SUITE}-\d{{8}}-slim")
        found = [tag for tag in self._tags() if dated.fullmatch(tag)]
        if not found:
            raise SystemExit(f"{self._url}: no tag of {REPOSITORY} looks like {SUITE}-YYYYMMDD-slim")
        return max(found)

    def digest(self, tag: str) -> str:
        """The digest of that tag's index."""
        body, _ = self._get(f"/v2/{REPOSITORY}/manifests/{tag}")
        if "manifests" not in json.loads(body):
            raise SystemExit(f"{self._url}: {tag} is an image of one architecture, not an index of all")
        return f"sha256:{hashlib.sha256(body).hexdigest()}"

    def _tags(self) -> Iterator[str]:
        path = f"/v2/{REPOSITORY}/tags/list?n=1000"
        for _ in range(PAGES):
            body, headers = self._get(path)
            yield from json.loads(body)["tags"]
            following = re.match(r'<([^>]+)>; *rel="?next', headers.get("Link", ""))
            if following is None:
                return
            path = urllib.parse.urljoin(f"{self._url}{path}", following[1]).removeprefix(self._url)
        raise SystemExit(f"{self._url}: more than {PAGES} pages of tags")

    def _get(self, path: str) -> tuple[bytes, Message]:
        for _ in range(2):
            headers = {"Accept": INDEX, **({"Authorization": f"Bearer {self._token}"} if self._token else {})}
            try:
                with urllib.request.urlopen(
                    urllib.request.Request(self._url + path, headers=headers), timeout=TIMEOUT_S
                ) as answer:
                    return answer.read(LIMIT_BYTES), answer.headers
            except urllib.error.HTTPError as exc:
                challenge = exc.headers.get("WWW-Authenticate", "")
                if exc.code != 401 or self._token or not challenge.startswith("Bearer "):
                    raise SystemExit(f"{self._url}{path}: {exc.code} {exc.reason}") from exc
                self._token = self._ask_for_token(dict(re.findall(r'(\w+)="([^"]*)"', challenge)))
            except OSError as exc:
                raise SystemExit(f"{self._url}{path}: {exc}") from exc
        raise AssertionError("the second answer returns or raises")

    def _ask_for_token(self, challenge: dict[str, str]) -> str:
        """Without an account: anybody may read (https://distribution.github.io/distribution/spec/auth/token)."""
        wanted = {"service": challenge.get("service", ""), "scope": f"repository:{REPOSITORY}:pull"}
        url = f"{challenge['realm']}?{urllib.parse.urlencode(wanted)}"
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
                token: str = json.loads(answer.read(LIMIT_BYTES))["token"]
                return token
        except OSError as exc:
            raise SystemExit(f"{url}: {exc}") from exc


def main() -> None:
    """Rewrite the line."""
    parser = argparse.ArgumentParser(description="Renews the base image that packaging/Containerfile names.")
    parser.add_argument("--registry", default=REGISTRY, help=f"default: {REGISTRY}")
    parser.add_argument("--file", type=Path, default=FILE, help="default: packaging/Containerfile")
    options = parser.parse_args()
    registry = Registry(options.registry)
    tag = registry.newest()
    line = f"ARG BASE=docker.io/{REPOSITORY}:{tag}@{registry.digest(tag)}"
    text, replaced = re.subn(r"(?m)^ARG BASE=.*$", line, options.file.read_text(encoding="utf-8"))
    if replaced != 1:
        raise SystemExit(f"{options.file}: has {replaced} lines ARG BASE=, not one")
    options.file.write_text(text, encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
