"""A client's interface definition: from type-checked JSON (`Node`) to a `ClientConfig`. The rules are those of
`validate`.

A choice of this program: a client's ``token`` that looks like a hash is an error, because nearly always it is the
server's line, copied to the wrong side. A raw token that looks like a hash can be kept in a ``token_file``, where it
causes a warning.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Literal, cast

from . import parsers, urls
from .context import LoadContext
from .diagnostics import MASK, InvalidValue, quote, show
from .model import (
    FULL_MASK,
    AuthHeader,
    Bridge,
    ClientConfig,
    DeviceKind,
    Mark,
    Secret,
    TransportChoice,
)
from .placeholders import PROBLEM, is_placeholder
from .typecheck import Node
from .validate import validate_mark, validate_name
from .validate_tap import OF_TAP_CLIENT, OF_TUN_CLIENT, refuse_on_tap, refuse_on_tun, validate_bridge, validate_mac
from .validate_tls import validate_tls

_HEAD_BYTES: Final = 15 * 1024  # a server accepts 16 KiB; the rest is for the tunnel's own headers
_INSECURE: Final = "leaves the server unverified: anyone on the path can impersonate it and take the token"


def validate_client(node: Node, context: LoadContext) -> ClientConfig | None:
    """A client's definition."""
    return _ClientValidator(node, context).validate()


class _ClientValidator:
    """One client's definition. ``_scheme`` is the scheme of its server's URL, or None if that is invalid."""

    def __init__(self, node: Node, context: LoadContext) -> None:
        self._node = node
        self._context = context
        self._findings = context.findings
        self._scheme: Literal["http", "https"] | None = None

    def validate(self) -> ClientConfig | None:
        node, context = self._node, self._context
        name = validate_name(node, context)
        device, bridge, mac = self._validate_device()
        mark = None if device == "tap" else validate_mark(node, context)
        found = context.parse_field(node, "server", urls.parse_url)
        server, url_login = (None, None) if found is None else found
        self._scheme = None if server is None else server.scheme
        token_path, token = self._validate_token()
        tls = validate_tls(node, self._scheme, context, _INSECURE)
        rotate_s = self._validate_rotation()
        transport = cast("TransportChoice | None", node.get("transport", str))
        transport_mark = self._validate_transport_mark(mark)
        proxy = context.parse_field(node, "proxy", urls.parse_proxy)
        auth_header = cast("AuthHeader | None", node.get("auth_header", str))
        login = self._validate_login(url_login, auth_header)
        headers = self._validate_headers()
        if server is not None and token is not None:
            context.conflicts.login(token_path, server, token)
        if name is None or server is None or token is None:
            return None
        if rotate_s is None or transport is None or auth_header is None:
            return None
        config = ClientConfig(
            name=name,
            server=server,
            token=token,
            mark=mark,
            tls=tls,
            rotate_s=rotate_s,
            transport=transport,
            auth_header=auth_header,
            headers=headers,
            login=login,
            proxy=proxy,
            transport_mark=transport_mark,
            device=device,
            bridge=bridge,
            mac=mac,
        )
        self._check_head_size(config)
        return config

    def _validate_device(self) -> tuple[DeviceKind | None, Bridge | None, bytes | None]:
        """The kind of interface that the client insists on, and what only a TAP interface has."""
        node, context = self._node, self._context
        device = cast("DeviceKind | None", node.get("device", str))
        if device == "tap":
            refuse_on_tap(node, OF_TUN_CLIENT, context)
        elif device == "tun" or "device" not in node.given:
            refuse_on_tun(node, OF_TAP_CLIENT, context)
            return device, None, None
        return device, validate_bridge(node, context), validate_mac(node, context)

    # --- token ---

    def _validate_token(self) -> tuple[str, Secret | None]:
        """The path of the field that holds or names the token, and the token."""
        node = self._node
        path, file_path = node.at("token"), node.at("token_file")
        if "token" in node.given and "token_file" in node.given:
            self._findings.error(file_path, "", 'is given in addition to "token"', "remove one")
        if "token" in node.given:
            return path, self._given_token(path)
        if "token_file" in node.given:
            name = node.get("token_file", str)
            return file_path, None if name is None else self._read_token(file_path, name)
        self._findings.error(
            path, "", "is missing", 'add "token": "<raw token>", or "token_file" with the path of a file'
        )
        return path, None

    def _given_token(self, path: str) -> Secret | None:
        token = self._context.parse_field(self._node, "token", parsers.parse_raw_token)
        if token is not None and parsers.looks_hashed(token.reveal()):
            self._findings.error(
                path,
                MASK,
                "looks like a hash, which belongs on the server",
                "write the raw token; if this is the raw token, keep it in a token_file",
            )
        return token

    def _read_token(self, path: str, name: str) -> Secret | None:
        token = self._read_secret(path, name, "token", parsers.parse_raw_token)
        if token is None:
            return None
        if parsers.looks_hashed(token.reveal()):
            self._findings.warning(
                path,
                quote(name),
                "holds what looks like a hash",
                "write the raw token into it, unless this is the raw token",
            )
        elif is_placeholder(token.reveal()):
            problem = f"holds a token that {PROBLEM}"
            self._findings.warning(path, quote(name), problem, "write the raw token into it")
        return token

    def _read_secret(self, path: str, name: str, what: str, parser: Callable[[str], Secret]) -> Secret | None:
        """Read the token or the password in a file. None: there is none, and an error was reported."""
        content = self._context.read_file(path, name, parsers.TOKEN_FILE_BYTES)
        if content is None:
            return None
        self._context.warn_if_public(path, name, content)
        try:
            return parser(parsers.secret_line(content.data, what))
        except InvalidValue as exc:
            self._findings.error(path, quote(name), f"holds a {what} that {exc.problem}", exc.remedy)
            return None

    # --- Basic auth and further headers ---

    def _validate_login(self, url_login: Secret | None, auth_header: AuthHeader | None) -> Secret | None:
        """Return the login for Basic auth. None: invalid, or not given."""
        node = self._node
        user_path, file_path = node.at("user"), node.at("password_file")
        user = self._context.parse_field(node, "user", parsers.parse_user)
        name = node.get("password_file", str)
        password = None if name is None else self._read_secret(file_path, name, "password", parsers.parse_password)
        given = [field for field in ("user", "password_file") if field in node.given]
        if url_login is not None and given:
            self._findings.error(node.at(given[0]), "", 'is given in addition to the login in "server"', "remove one")
        elif given == ["user"]:
            problem, remedy = 'is given without "password_file"', 'add "password_file" with the path of a file'
            self._findings.error(user_path, "", problem, remedy)
        elif given == ["password_file"]:
            self._findings.error(file_path, "", 'is given without "user"', 'add "user"')
        login = url_login
        if login is None and user is not None and password is not None:
            login = Secret(f"{user}:{password.reveal()}")
        # The login and the token would both be sent in the header Authorization, but a request may have only one.
        if (login is not None or given) and auth_header not in (None, "x-api-key"):
            self._findings.error(
                node.at("auth_header"),
                quote(auth_header),
                "needs the header Authorization for the token, which Basic auth needs for the login",
                'write "x-api-key", or remove the login',
            )
        return login

    def _validate_headers(self) -> tuple[tuple[str, Secret], ...]:
        """Return the valid ones of the further request headers."""
        found: dict[str, tuple[str, Secret]] = {}
        earlier: dict[str, str] = {}
        for path, name, text in self._node.members("headers"):
            try:
                key = parsers.parse_header_name(name).lower()
            except InvalidValue as exc:
                self._findings.error(path, quote(name), exc.problem, exc.remedy)
                continue
            value = self._context.parse(path, text, parsers.parse_header_value)
            if key in earlier:
                self._findings.error(path, quote(name), f"is the header of {earlier[key]} too", "keep one")
            elif value is not None:
                found[key] = name, value
            earlier.setdefault(key, path)
        return tuple(found.values())

    def _check_head_size(self, config: ClientConfig) -> None:
        """Report an error if the request head would be longer than a server accepts."""
        if not config.headers and config.login is None:
            return
        tokens = 2 if config.auth_header == "both" else 1
        size = (
            len(config.server.target)
            + tokens * len(config.token)
            + sum(len(name) + len(value) + len(": \r\n") for name, value in config.headers)
        )
        if config.login is not None:
            size += 4 * len(config.login) // 3
        if size > _HEAD_BYTES:
            self._findings.error(
                self._node.at("headers"),
                "",
                f"makes requests of {size} bytes, with the URL and the token, and a server accepts {_HEAD_BYTES}",
                "write fewer or shorter headers",
            )

    # --- transport ---

    def _validate_rotation(self) -> tuple[float, float] | None:
        numbers = self._node.numbers("rotate_s")
        if len(numbers) != 2:
            return None
        (_, least), (path, most) = numbers
        if most < least:
            # Whole numbers without ".0", as they are probably written in the file.
            first, second = (show(int(n) if n.is_integer() else n) for n in (least, most))
            self._findings.error(path, second, f"is less than the {first} before it", "write the lesser first")
            return None
        return least, most

    def _validate_transport_mark(self, mark: Mark | None) -> int | None:
        """None: invalid, or not given."""
        value = self._node.get("transport_mark", int)
        mark_node = self._node.get("mark", Node)
        marked = None if mark_node is None else mark_node.get("value", int)
        # These checks run even if the mark is invalid, and then assume the full mask.
        mask = FULL_MASK if mark is None else mark.mask
        if value is not None and mark_node is not None and marked is not None and not (marked ^ value) & mask:
            self._findings.error(
                self._node.at("transport_mark"),
                show(value),
                ("is" if marked == value else "is matched by")
                + f" the mark of {mark_node.at('value')} too, and the transport would enter its own tunnel",
                "choose another mark",
            )
        return value
