"""What a client sends to its server's URL, each on a connection of its own: GET, PUT, and a WebSocket's handshake."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

import trio

from ..config.model import ClientConfig, DeviceKind
from ..errors import EndReason, PeerError
from ..host.net.resolver import Resolver
from ..host.net.segments import SegmentLimits
from ..host.net.sockets import GONE, Connection
from ..host.net.tls import TlsClient
from ..http.client import (
    RESPONSE_S,
    answered,
    check_status,
    effective_proxy,
    open_connection,
    read_response,
    rest_of_refusal,
    send_request,
)
from ..http.heads import ResponseHead, basic
from ..http.refusal import RefusedError
from ..log import Log
from ..netconf.transport_guard import TransportGuard
from ..wire import control, tunconf
from ..wire.tunconf import TunConf
from .transport_choice import TransportSelector

# A failure for one of these reasons may be of this one address of the name only.
_NOT_THE_SERVER: Final = frozenset({EndReason.BAD_CONF, EndReason.BAD_RESPONSE, EndReason.SILENT})
WITHOUT_IPV6_S: Final = 60.0  # for so long IPv6 is not asked for, once the kernel has refused it
FOLLOW_S: Final = 10.0  # between two downloads that are opened because IPv6 was switched on or off


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a GET or to a WebSocket's handshake. Its holder closes the connection.

    Attributes:
        rest: the bytes that came after the head.
        conf: None: PARAMS has everything. Only with Ethernet, or with IPv6 if the client has no address of IPv4.
        features: the features that both ends have agreed on.
    """

    connection: Connection
    head: ResponseHead
    rest: bytes
    conf: TunConf | None
    features: frozenset[str]

    @property
    def device(self) -> DeviceKind:
        """What the frames carry."""
        return "tap" if control.TAP in self.features else "tun"


class FeatureOffer:
    """The features to offer to a server, and what its answer means.

    IPv6 is offered only if this machine has it, which is asked for each request. Ethernet is offered unless the config
    says that frames carry packets of IP.
    """

    def __init__(
        self, features: frozenset[str], has_ipv6: Callable[[], bool], log: Log, device: DeviceKind | None = None
    ) -> None:
        """
        Args:
            has_ipv6: whether this machine's kernel has IPv6; see `Host.has_ipv6`.
            device: what the frames have to carry; None: what the server says.
        """
        self._features = features if device != "tun" else features - {control.TAP}
        self._has_ipv6 = has_ipv6
        self._log = log
        self._device = device
        self._told = False
        self._had_ipv6: bool | None = None  # at the newest request; None: there was none
        self._without_until = -math.inf
        self._follow_at = -math.inf  # `is_outdated` says no before this time

    def features(self) -> frozenset[str]:
        """The features to offer now."""
        self._had_ipv6 = self._wants_ipv6()
        return self._features if self._had_ipv6 else self._features - {control.INET6}

    def is_outdated(self, now: float) -> bool:
        """Whether IPv6 was switched on or off on this machine since the newest request. Says so once in FOLLOW_S at
        most: two programs may disagree about it."""
        if now < self._follow_at or self._had_ipv6 in (None, self._wants_ipv6()):
            return False
        self._follow_at = now + FOLLOW_S
        return True

    def ipv6_refused(self) -> None:
        """The kernel has refused IPv6 on the running interface, whatever the settings say."""
        self._without_until = trio.current_time() + WITHOUT_IPV6_S

    def _wants_ipv6(self) -> bool:
        return trio.current_time() >= self._without_until and self._has_ipv6()

    def agreed(self, offered: frozenset[str], answer: frozenset[str]) -> frozenset[str]:
        """The features that hold from now on. Logs once if this machine has no IPv6.

        ``answer``: the features that the server has named.

        Raises PeerError if the server's interface is not of the kind that the config asks for.
        """
        agreed = answer
        for feature in (control.INET6, control.TAP):  # the parameters for these come in a control frame
            if not offered & answer >= {control.CTL, feature}:
                agreed -= {feature}
        if self._device == "tap" and control.TAP not in agreed:
            text = 'the server\'s interface carries IP packets, and this client\'s config says "device": "tap"'
            raise PeerError(f"{text}; correct one of the two", reason=EndReason.OTHER_DEVICE)
        if control.INET6 not in offered and not self._told:
            self._told = True
            is_tap = control.TAP in agreed
            self._log.info(
                "%s: %s", _NO_IPV6, "it gets no IPv6 address here" if is_tap else "the tunnel carries IPv4 only"
            )
        return agreed

    def explain_406(self, offered: frozenset[str]) -> str | None:
        """What a tapotun server's 406 means for a request that offered these features. None: as for any request."""
        if control.TAP in offered:
            return None
        ethernet = f"its interface carries Ethernet frames, and {_SAYS_TUN}"
        if control.INET6 in offered:
            return ethernet
        return f"either {ethernet}; or it has only IPv6 addresses for this client, and {_NO_IPV6}"


_NO_IPV6: Final = "this machine has no IPv6, or it is switched off (disable_ipv6)"
_SAYS_TUN: Final = 'this client\'s config says "device": "tun"'


class Requests:
    """Requests of one client. Each method raises PeerError. If it fails or is cancelled, it leaves no connection
    open."""

    def __init__(
        self,
        config: ClientConfig,
        selector: TransportSelector,
        guard: TransportGuard,
        limits: SegmentLimits,
        resolver: Resolver,
        tls: TlsClient | None,
        offer: FeatureOffer,
    ) -> None:
        """
        Args:
            guard: is told the addresses that connections go to.
            limits: learns which segment sizes are too large for the path.
            resolver: remembers the addresses at which the server was found.
            tls: None: the server's URL is not https.
            offer: the features to offer.

        Raises HostError if the proxy that the environment names cannot be used.
        """
        self._config = config
        self._selector = selector
        self._guard = guard
        self._limits = limits
        self._resolver = resolver
        assert tls is not None or config.server.scheme == "http", "https needs TLS"
        self._tls = tls
        self._offer = offer
        self._proxy = effective_proxy(config.server, config.proxy)
        self._session_id = os.urandom(16).hex()

    async def get(self, *, yields: bool) -> Answer:
        """Begin a download. ``yields``: the request fails if another machine uses the token
        (`control.YIELD_HEADER`)."""
        answer_s = self._selector.get_answer_s(trio.current_time(), RESPONSE_S)
        return await self._download(yields=yields, websocket=False, answer_s=answer_s)

    async def websocket(self, *, yields: bool) -> Answer:
        """Begin a WebSocket. ``yields``: as for `get`."""
        return await self._download(yields=yields, websocket=True, answer_s=RESPONSE_S)

    async def put(self, number: int | None, address: str | None, device: DeviceKind) -> Connection:
        """Send the head of an upload.

        Args:
            number: the upload's number; None if the download is not extended.
            device: what the upload's frames carry.
            address: the remote address of the download. An upload belongs to the server that serves the download, and
                the name may have the addresses of other servers too, or lead elsewhere by now.
        """
        headers = upload_fields(self._config, self._session_id, number, device)
        connection = await self._connect(address)
        with ExitStack() as undo:
            undo.callback(connection.close)
            await send_request(connection, "PUT", self._config.server, headers)
            undo.pop_all()
        return connection

    async def _download(self, *, yields: bool, websocket: bool, answer_s: float) -> Answer:
        url = self._config.server
        offered = self._offer.features()
        headers = download_fields(self._config, self._session_id, offered, yields=yields)
        connection = await self._connect()
        with ExitStack() as undo, self._judging(connection.remote_address):
            undo.callback(connection.close)
            with (
                trio.move_on_after(answer_s) as deadline,
                _one_failure_for_no_answer(),
                self._explaining_406(offered),
            ):
                if websocket:
                    from ..http.websocket import check_upgrade, open_websocket

                    head, rest = await answered(
                        connection, self._limits, partial(open_websocket, connection, url, headers)
                    )
                    deadline.deadline = math.inf  # the head has arrived; the rest has its own time limit
                    check_upgrade(head, url, await rest_of_refusal(connection, head, rest))
                else:
                    await send_request(connection, "GET", url, headers)
                    head, rest = await answered(connection, self._limits, partial(read_response, connection, "GET"))
                    deadline.deadline = math.inf
                    check_status(head, url, await rest_of_refusal(connection, head, rest))
            if deadline.cancelled_caught:
                raise PeerError(f"{url.authority} did not answer within {answer_s:.0f} s", reason=EndReason.SILENT)
            features = self._offer.agreed(offered, control.agree(head.headers.get(control.FEATURES_HEADER)))
            conf = _tun_conf(head, url.authority, features)
            if websocket and not features >= {control.CTL, control.WS}:
                raise PeerError(
                    f"{url.authority} answered a WebSocket without agreeing to one", reason=EndReason.NO_WEBSOCKET
                )
            undo.pop_all()
        return Answer(connection, head, rest, conf, features)

    @contextmanager
    def _explaining_406(self, offered: frozenset[str]) -> Iterator[None]:
        """A context for a request that offers these features. A tapotun server's 406 gets a text that fits to them."""
        try:
            yield
        except RefusedError as exc:
            hint = self._offer.explain_406(offered)
            if hint is None or not exc.is_own or exc.status != 406:
                raise
            text = f"{self._config.server.shown} answered 406 Not Acceptable: {hint}"
            raise RefusedError(text, status=406, is_own=True) from exc

    @contextmanager
    def _judging(self, address: str | None) -> Iterator[None]:
        """A context for work on a connection to ``address``. It remembers whether the server was found there."""
        place = self._proxy or self._config.server
        try:
            yield
        except PeerError as exc:
            foreign = isinstance(exc, RefusedError) and not (exc.is_own or exc.reason.is_answer)
            if self._proxy is None and (foreign or exc.reason in _NOT_THE_SERVER):
                self._resolver.doubt(place.host, place.port, address)
            raise
        self._resolver.worked(place.host, place.port, address)

    async def _connect(self, present: str | None = None) -> Connection:
        config = self._config
        with self._guard.attempt() as attempt:
            connection = await open_connection(
                config.server,
                self._tls,
                config.transport_mark,
                self._proxy,
                attempt,
                self._limits,
                self._resolver,
                present,
            )
            self._guard.opened(connection)
            return connection


def passes_ipv6(features: frozenset[str]) -> bool:
    """Whether a sender need not look for packets of IPv6, if these features are agreed on. In Ethernet frames there is
    nothing to look for."""
    return bool(features & {control.INET6, control.TAP})


@contextmanager
def _one_failure_for_no_answer() -> Iterator[None]:
    """A server that stops before it answers may close the connection or reset it. Both become the same failure."""
    try:
        yield
    except PeerError as exc:
        if exc.reason != EndReason.CLOSED and exc.key != GONE:
            raise
        text = "the server closed the connection without an answer"
        raise PeerError(text, reason=EndReason.CLOSED, key="no answer") from exc


def _tun_conf(head: ResponseHead, authority: str, features: frozenset[str]) -> TunConf | None:
    if control.TAP in features:
        return None
    value = head.headers.get("x-tun-conf")
    if value is None:
        if control.INET6 in features:
            return None
        raise PeerError(no_tun_conf(head, authority), reason=EndReason.BAD_CONF)
    return tunconf.decode(value)


def no_tun_conf(head: ResponseHead, authority: str) -> str:
    """What an answer of 200 without x-tun-conf means, for people."""
    text = f"{authority} answered without x-tun-conf: no tapotun server at this URL"
    if head.headers.get("content-type", "").startswith("text/html"):
        text += ", but a web page; or a captive portal: log in to this network with a browser"
    return text


def credential_fields(config: ClientConfig) -> list[tuple[str, str]]:
    """The headers that carry the token, the login for Basic auth, and the config's own headers."""
    token, header = config.token.reveal(), config.auth_header
    bearer = [("x-api-key", token), ("Authorization", f"Bearer {token}")]
    fields = {"x-api-key": bearer[:1], "authorization": bearer[1:], "both": bearer}[header]
    if config.login is not None:
        fields.append(("Authorization", basic(config.login)))
    return [*fields, *((name, value.reveal()) for name, value in config.headers)]


def download_fields(
    config: ClientConfig, session_id: str, features: frozenset[str], *, yields: bool
) -> list[tuple[str, str]]:
    """The headers of a GET or of a WebSocket's handshake, without Host."""
    fields = [
        *credential_fields(config),
        (control.FEATURES_HEADER, control.offer(features)),
        (control.SESSION_HEADER, session_id),
    ]
    return [*fields, (control.YIELD_HEADER, "1")] if yields else fields


def upload_fields(
    config: ClientConfig, session_id: str, number: int | None, device: DeviceKind
) -> list[tuple[str, str]]:
    """The headers of a PUT, without Host.

    Args:
        number: the upload's number; None if the download is not extended.
        device: what the frames carry. Ethernet is named, because a proxy may hold the upload until the server's
            interface is of the other kind, which would decode the frames as what they are not.
    """
    fields = [*credential_fields(config), ("Transfer-Encoding", "chunked")]
    if number is not None:
        fields += (control.SESSION_HEADER, session_id), (control.UPLOAD_HEADER, str(number))
        if device == "tap":
            fields.append((control.FEATURES_HEADER, control.TAP))
    return fields
