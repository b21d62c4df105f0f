"""The root object's ``update``: from type-checked JSON (`Node`) to an `UpdateConfig`. The rules are those of
`validate`."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from typing import Final, cast

import msgspec

from . import parsers, urls
from .context import LoadContext
from .diagnostics import InvalidValue, quote
from .model import Secret, UpdateConfig, UpdateMode, Url
from .typecheck import Node
from .validate_tls import validate_tls

ROOT_FILE_BYTES: Final = 512_000
LONGEST: Final = "30d"
_INSECURE: Final = (
    "leaves the repository unverified: what it publishes is signed, but anyone on the path learns the login and what"
    " this machine runs"
)


class _Signed(msgspec.Struct):
    kind: str = msgspec.field(name="_type")


class _Metadata(msgspec.Struct):
    """The fields of TUF metadata that show whether a file is root metadata. Its signatures are verified later."""

    signed: _Signed


def validate_update(root: Node, context: LoadContext) -> UpdateConfig | None:
    """None: invalid, or not given."""
    node = root.get("update", Node)
    if node is None:
        return None
    found = context.parse_field(node, "url", parse_repository)
    channel = context.parse_field(node, "channel", parsers.parse_channel)
    every_s = context.parse_field(node, "every", lambda text: parsers.parse_duration(text, "1m", LONGEST))
    spread_s = context.parse_field(node, "spread", lambda text: parsers.parse_duration(text, "0s", LONGEST))
    mode = cast("UpdateMode | None", node.get("mode", str))
    root_file = _validate_root_file(node, context)
    proxy = context.parse_field(node, "proxy", urls.parse_proxy)
    tls = validate_tls(node, None if found is None else found[0].scheme, context, _INSECURE)
    if find_spec("tuf") is None:
        problem, remedy = "needs the package tuf, which is not installed", "run pip install 'tapotun-trio[update]'"
        context.findings.warning(node.path, "", problem, remedy)  # no error: tunnels work without it
    if found is None or channel is None or every_s is None or spread_s is None or mode is None:
        return None
    url, login = found
    return UpdateConfig(url, login, mode, channel, every_s, spread_s, root_file, proxy, tls)


def shipped_root() -> bytes | None:
    """Return the root metadata that this build of the program trusts; None: it has none."""
    from importlib.resources import files  # imported here, because most configs have no ``update``

    file = files("tapotun_trio").joinpath("update", "root.json")
    return file.read_bytes() if file.is_file() else None


def parse_repository(text: str) -> tuple[Url, Secret | None]:
    """Parse the URL of a repository: without a query, and with a slash at its end. Returns also the login in it."""
    url, login = urls.parse_url(text)
    if "?" in url.target:
        raise InvalidValue("has a query", "write the URL of the repository's directory", shown=quote(url.shown))
    return replace(url, target=url.target if url.target.endswith("/") else f"{url.target}/"), login


def _validate_root_file(node: Node, context: LoadContext) -> str | None:
    """Return the absolute path."""
    name = node.get("root_file", str)
    if name is None:
        if "root_file" not in node.given and shipped_root() is None:
            problem = "is missing, and this build of the program has no root metadata of its own"
            remedy = 'add "root_file" with the path of the root.json that the publisher gave you'
            context.findings.error(node.at("root_file"), "", problem, remedy)
        return None
    content = context.read_file(node.at("root_file"), name, ROOT_FILE_BYTES, regular=True)
    if content is not None:
        try:
            kind = msgspec.json.decode(content.data, type=_Metadata).signed.kind
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            kind = ""
        if kind != "root":
            problem, remedy = "holds no root metadata of a TUF repository", "write the path of its root.json"
            context.findings.error(node.at("root_file"), quote(name), problem, remedy)
    return context.absolute_path(name)
