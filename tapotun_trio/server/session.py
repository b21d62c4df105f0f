"""One allowed client of a server: its streams, and where the packets of its uploads go."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv4Network, ip_address
from itertools import count
from typing import Final, NamedTuple

from ..config.model import AllowedClient, DeviceKind, ServerConfig
from ..datapath.counters import Counters, DropReason, Transport
from ..datapath.plane import BY_ADDRESSES, DeliverNow, Flows, Lane, Verdict, current_plane
from ..datapath.receiver import Receiver
from ..datapath.rtt import RoundTrip
from ..datapath.sender import (
    BASE_DOWNLOAD_KEEPALIVE,
    GENERATION_2_KEEPALIVE,
    SILENT_KEEPALIVES,
    Sender,
    extended_keepalive,
)
from ..datapath.tun_io import DeviceWriter
from ..datapath.verdicts import Verdicts
from ..errors import EndReason, PeerError
from ..families import IPInterface, stays_on_link, with_prefix
from ..host.net.sockets import Connection
from ..log import Log, client_logger
from ..netconf.desired import pushed_routes
from ..peer.info import PeerInfo
from ..peer.session_log import SessionLog
from ..routing.router import BAD_SOURCE, TO_DEVICE, Router
from ..status.model import PeerState
from ..wire import control, params
from ..wire.frames import (
    ECHO_FIRST_BYTE,
    ECHO_PACKET_BYTES,
    HEADER_BYTES,
    MIN_IPV6_BYTES,
    ROUTED_HEAD,
    ROUTED_IPV6_HEAD,
    FrameRange,
    FrameReader,
    echoed_clock,
    flow_of,
)
from ..wire.tunconf import TunConf, encode_generation_1, encode_generation_2
from ..wire.vnet import is_bounded, validate_vnet_header
from .client_log import ClientLog
from .segment import Segment

# The limit of cached verdicts for one sender. If a client scans the address space, its cache is emptied again and
# again, which does no other harm.
CACHE_ENTRIES: Final = 4096
# While a client replaces its upload there are two; a proxy may keep a dead one open for a while.
MAX_UPLOADS: Final = 4
# The same limit for downloads. A client gets some seconds to read the end of an older download.
MAX_DOWNLOADS: Final = 4
# A deployed client pings an idle upload after 55 s. An upload that is silent for this long is dead.
BASE_UPLOAD_SILENCE_S: Final = 90.0


class ClientHello:
    """What the headers of a request say about the client: its session and its features. A base client sends none.

    Attributes:
        features: those that the client offers and this program knows. `Session.agreed` has those that are agreed on.
    """

    __slots__ = ("agent", "features", "session_id", "yields")

    def __init__(
        self, session_id: str | None, features: frozenset[str], *, yields: bool, agent: str | None = None
    ) -> None:
        self.agent = agent
        self.session_id = session_id
        self.features = features
        self.yields = yields

    @classmethod
    def of(cls, headers: Mapping[str, str]) -> ClientHello:
        """Parse the headers, which are untrusted input. Never raises."""
        return cls(
            control.session_id(headers.get(control.SESSION_HEADER)),
            control.agree(headers.get(control.FEATURES_HEADER)),
            yields=control.YIELD_HEADER in headers,
            agent=control.agent(headers.get("user-agent")),
        )

    @property
    def may_use_websocket(self) -> bool:
        """Whether the client supports WebSockets, and control frames, which a WebSocket always carries."""
        return self.features >= {control.CTL, control.WS}

    @property
    def extended(self) -> bool:
        """Whether control frames may be sent to the client."""
        return control.CTL in self.features


class ClientParameters:
    """The parameters that one config has for one client. References neither the config nor the client's entry, because
    a session outlives many configs.

    Attributes:
        device: what the frames carry.
        has_ipv6: whether the client has an address of IPv6.
    """

    __slots__ = ("_addresses", "_dns", "_keepalive_s", "_mtu", "_peers", "_pushed", "device", "has_ipv6")

    def __init__(self, config: ServerConfig, client: AllowedClient) -> None:
        self.device: DeviceKind = config.device
        self._mtu, self._peers = config.mtu, config.peers
        self._keepalive_s = config.keepalive_s
        self._addresses: tuple[IPInterface, ...] = tuple(
            with_prefix(ip, net.network.prefixlen)
            for net, ip in ((config.net4, client.ipv4), (config.net6, client.ipv6))
            if net is not None and ip is not None
        )
        self._pushed = pushed_routes(config, client)
        families = {each.version for each in self._addresses}
        self._dns = tuple(each for each in config.push_dns if each.version in families)  # no query reaches the others
        self.has_ipv6 = any(each.version == 6 for each in self._addresses)

    def agreed(self, offered: frozenset[str]) -> frozenset[str]:
        """Which of the features that a client offers it gets."""
        if self.device == "tun":
            offered -= {control.TAP}
        return offered if control.CTL in offered and self.has_ipv6 else offered - {control.INET6}

    def serves(self, offered: frozenset[str]) -> bool:
        """Whether a client that offers these features can use what it gets: frames of this kind, and an address."""
        if self.device == "tap":
            return offered >= {control.CTL, control.TAP}
        return control.INET6 in self.agreed(offered) or any(each.version == 4 for each in self._addresses)

    def carries_ipv6(self, agreed: frozenset[str]) -> bool:
        """Whether packets of IPv6 may be sent to a client with these features. Ethernet carries all kinds."""
        return self.device == "tap" or control.INET6 in agreed

    @property
    def tun_conf(self) -> str | None:
        """The value of x-tun-conf in the answer to a download; None: the client has no address of IPv4, or the frames
        carry Ethernet, of which no base client knows."""
        if self.device == "tap":
            return None
        address = next((each for each in self._addresses if isinstance(each, IPv4Interface)), None)
        if address is None:
            return None
        if self._peers == 1:
            return encode_generation_1(self._mtu, address)
        return encode_generation_2(
            TunConf(self._mtu, (address,), tuple(net for net in self._pushed if isinstance(net, IPv4Network)))
        )

    def params(self, agreed: frozenset[str]) -> bytes:
        """The payload of PARAMS. ``agreed``: the features."""
        parameters = params.Params(
            mtu=self._mtu,
            addresses=self._addresses,
            routes=self._pushed,
            dns=self._dns,
            device=self.device,
            keepalive=self._keepalive_s,
        )
        return params.encode(parameters if control.INET6 in agreed else parameters.without_ipv6())


class PreviousParameters(NamedTuple):
    """The parameters that a client had before the config changed, and the download that it got them on."""

    parameters: ClientParameters
    hello: ClientHello


class ForwardingTable:
    """Where the packets of an interface go. The sessions share it; only the server changes it.

    Attributes:
        router: decides by source and destination.
        sessions: the sessions, at the index that the router returns.
        device_verdicts: the cached verdicts for packets from the device, by key. A verdict is a sender; or False: no
            route; or True: the packet came from the same client that it would be sent to.
        writers: one for each queue of the device. Sessions share them where there are more sessions than queues.
        segment: of a TAP interface: it decides instead of the router. None: a TUN interface.
        ports: the numbers of the next sessions' ports.
    """

    __slots__ = ("device_verdicts", "ports", "router", "segment", "sessions", "writers")

    def __init__(self, writers: Sequence[DeviceWriter] = ()) -> None:
        """Nothing is routed at first. Without ``writers`` no session may receive."""
        self.router = Router((), (), ())
        self.sessions: list[Session] = []
        self.device_verdicts: Verdicts[Sender | bool] = Verdicts()
        self.writers = writers
        self.segment: Segment | None = None
        self.ports = count()


class Session:
    """Everything that a server keeps for one client, connected or not, for the lifetime of the interface.

    Attributes:
        port: names it in the switch of a TAP interface. Unlike ``index`` it never changes.
    """

    def __init__(self, index: int, client: AllowedClient, config: ServerConfig, table: ForwardingTable) -> None:
        """``index``: where the session is, or will be, in ``table.sessions``."""
        self.index = index
        self.port = next(table.ports)
        self.client = client
        self.client_log = ClientLog(config.name, client.name)
        self.counters = Counters()
        self.sender = Sender(self.counters)
        self.rtt = RoundTrip()
        self.peer_info = PeerInfo()
        self.disconnect_reason: str | None = None  # why this end closed the last streams; None: it did not
        self.removed = False  # the config no longer has it: packets that its client still sends are dropped
        self._session_log = SessionLog(self.counters, self.rtt)
        self.uploads: list[Receiver] = []
        self.downloads: list[Connection] = []
        self.transport: Transport | None = None  # the transport of the newest download; None: there was none yet
        self._config = config
        self._parameters = ClientParameters(config, client)
        self._hello: ClientHello | None = None  # the client of the newest download
        self._agreed: frozenset[str] = frozenset()  # the features of that download
        self._ipv6 = False  # whether they allow the client to send IPv6
        self._seen = b""  # the newest UPLOAD_SEEN of that client, while it has uploads
        self._table = table
        # Source and destination as one key -> the receiving session, True: the device, False: drop.
        self._verdicts: Verdicts[Session | bool] = Verdicts()

    @property
    def log(self) -> Log:
        """The log for lines that need no rate limit."""
        return self.client_log.plain

    def agreed(self, hello: ClientHello) -> frozenset[str]:
        """The features to agree on with this client."""
        return self._parameters.agreed(hello.features)

    @property
    def parameters(self) -> ClientParameters:
        """What the client gets in the answer to a download, and in PARAMS."""
        return self._parameters

    def download_began(
        self, hello: ClientHello, agreed: frozenset[str], name: str, transport: Transport, *, encrypted: bool | None
    ) -> None:
        """A download begins. From now on ``hello`` describes the client; uploads of another machine end.

        Args:
            agreed: the features that the answer has named.
            name: the client's address, for logs.
            encrypted: whether the client speaks TLS; None: not known.
        """
        before = self._hello
        continues = self.sender.streaming and before is not None and before.session_id == hello.session_id
        over = ", over a WebSocket" if transport == "websocket" else ""
        text = f"connected from {name} ({'extended' if hello.extended else 'base'}{over})"
        if continues and self.transport == transport:  # a rotation
            self.log.debug("%s", text)
        else:
            self.client_log.connected(text)
        if before is not None and before.session_id != hello.session_id:
            for upload in self.uploads:
                upload.end(PeerError("another machine uses this token", reason=EndReason.REPLACED))
            self._seen = b""  # the two machines number their uploads alike
        self._hello, self._agreed = hello, agreed
        self._set_ipv6(control.INET6 in agreed)
        if self._table.segment is not None:
            self._table.segment.began(self)
        self._session_log.begin()
        self.transport = transport
        self.disconnect_reason = None
        self.peer_info.mark_connected(name, hello.agent, extended=hello.extended, continues=continues)
        self.peer_info.encrypted = encrypted
        if hello.extended:
            self.sender.keepalive = extended_keepalive(self._config.keepalive_s)
        else:
            self.sender.keepalive = BASE_DOWNLOAD_KEEPALIVE if self._config.peers == 1 else GENERATION_2_KEEPALIVE

    def reconfigure(
        self, index: int, client: AllowedClient, config: ServerConfig, parameters: ClientParameters | None
    ) -> PreviousParameters | None:
        """Follow a changed config in which the client's token is the same. Cheap, since thousands of sessions change in
        one step. Returns what `send_update` needs; None: the client has nothing to learn.

        ``parameters``: the client's new parameters; None: nothing has changed for it.
        """
        name = self.client.name
        self.index, self.client, self._config = index, client, config
        self._change_lanes()
        if parameters is None:
            return None
        if client.name != name:
            self.client_log.plain = client_logger(config.name, client.name)
        before, self._parameters = self._parameters, parameters
        if parameters.device == "tun" and not parameters.has_ipv6 and (self._ipv6 or self.sender.ipv6):
            self._set_ipv6(False)
            self.sender.set_ipv6(False)
        return None if self._hello is None or not self.sender.streaming else PreviousParameters(before, self._hello)

    def _set_ipv6(self, allowed: bool) -> None:
        self.peer_info.ipv6 = allowed
        if allowed != self._ipv6:
            self._ipv6 = allowed
            self._verdicts.clear()  # the plane's copies have to follow

    def forget_verdicts(self) -> None:
        """Discard the cached verdicts, because the router was replaced."""
        self._verdicts.clear()

    def forget_verdict(self, key: bytes) -> None:
        self._verdicts.discard(key)

    def sends_into_device(self, key: bytes) -> bool:
        """Whether a cached verdict sends this client's packets with this key into the device."""
        return self._verdicts.get(key) is True

    def mark_removed(self) -> None:
        """The config no longer has this client, or the interface ends: forward none of its packets any more."""
        self.removed = True
        self._change_lanes()  # two sessions with verdicts for each other are a reference cycle

    def send_update(self, before: PreviousParameters) -> None:
        """Give the client its changed parameters. An extended client gets them in a PARAMS frame; a base client has to
        reconnect. So has an extended client if other features would be agreed on now. A client that has connected since
        the change has them already."""
        if self._hello is not before.hello or not self.sender.streaming:
            return
        offered = before.hello.features
        if before.hello.extended and not (
            self._parameters.serves(offered) and self.agreed(before.hello) == self._agreed
        ):
            self.disconnect("its versions of IP changed: the client has to reconnect for them", uploads=False)
        elif not before.hello.extended:
            if self._parameters.tun_conf != before.parameters.tun_conf:
                # A base client reconnects a lost download at once, but a lost upload only after the pause of an error.
                self.disconnect("its parameters changed: a base client has to reconnect for them", uploads=False)
        elif (payload := self._parameters.params(self._agreed)) != before.parameters.params(self._agreed):
            self.sender.set_keepalive(extended_keepalive(self._config.keepalive_s))
            self.sender.send_control(control.encode(control.PARAMS, payload))

    def stream_ended(self, reason: str) -> None:
        """A stream has ended for ``reason``. After the last one, one log line sums up the session."""
        if not self.downloads:
            self.peer_info.mark_disconnected()  # also for a download that failed before `downloading`
        if not self.downloads and not self.uploads:
            if self._table.segment is not None:
                self._table.segment.ended(self)
            self._session_log.end(self.log, self.disconnect_reason or reason)

    def replaced_by_another(self, hello: ClientHello) -> bool:
        """Whether a download of another machine runs, as its session ID shows."""
        newest = self._hello if self.sender.streaming else None
        return newest is not None and newest.session_id != hello.session_id

    def belongs_to_download(self, hello: ClientHello) -> bool:
        """Whether this upload belongs to the newest download, and control frames were agreed on that download."""
        newest = self._hello
        return newest is not None and newest.extended and newest.session_id == hello.session_id is not None

    @contextmanager
    def uploading(self, upload: Receiver) -> Iterator[Receiver | None]:
        """``upload`` is one of this session's uploads within the block. Yields the one before it, if that still runs.

        If there are more than MAX_UPLOADS, the oldest ends: most likely a proxy keeps a dead one open.
        """
        older = self.uploads[-1] if self.uploads else None
        if len(self.uploads) >= MAX_UPLOADS:
            self.uploads[0].end(PeerError("too many uploads at a time", reason=EndReason.REPLACED))
        self.uploads.append(upload)
        try:
            yield older
        finally:
            self.uploads.remove(upload)
            if not self.uploads:
                self._seen = b""

    def acknowledge(self, seen: bytes) -> None:
        """Tell the client now that an upload has arrived, and again on its next download. ``seen``: an UPLOAD_SEEN."""
        self._seen = seen
        self.sender.send_control(seen)

    def repeated_seen(self, hello: ClientHello) -> bytes:
        """The newest UPLOAD_SEEN, to repeat on a new download of the same client. The copy on the older download may be
        lost, if the path between the two ends has changed. May be empty."""
        return self._seen if self.belongs_to_download(hello) else b""

    @contextmanager
    def downloading(self, connection: Connection) -> Iterator[None]:
        """``connection`` is one of this session's downloads within the block.

        If there are more than MAX_DOWNLOADS, the oldest is aborted; its task then ends with PeerError.
        """
        if len(self.downloads) >= MAX_DOWNLOADS:
            self.downloads.pop(0).abort()
        self.downloads.append(connection)
        try:
            yield
        finally:
            if connection in self.downloads:
                self.downloads.remove(connection)
            if not self.downloads:
                self.peer_info.mark_disconnected()

    @property
    def cached_verdicts(self) -> int:
        """How many pairs of addresses have a cached verdict, at most CACHE_ENTRIES."""
        return len(self._verdicts)

    @property
    def state(self) -> PeerState:
        if self.sender.streaming and self.uploads:
            return "connected"
        return "connecting" if self.sender.streaming or self.uploads else "offline"

    @property
    def released(self) -> bool:
        """Whether this end has closed the last download, and there is no newer one."""
        return self.disconnect_reason is not None and not self.sender.streaming

    def left_early(self) -> None:
        """A base client left right after the answer to its download. If that repeats, a warning names `peers`."""
        self.client_log.left_early(self._config.peers)

    def disconnect(self, reason: str, *, uploads: bool = True) -> bool:
        """End the client's streams and say why in a BYE. The client may connect again. Returns whether it had streams.

        ``uploads``: false: end the download only.
        """
        connected = self.state != "offline"
        one_stream = self.sender.streaming and self.transport == "websocket"  # the client answers our close on it
        if self.sender.streaming:
            self.disconnect_reason = reason
            self.sender.release()
        if uploads and not one_stream:
            for upload in self.uploads:
                upload.end(PeerError(reason, reason=EndReason.DISCONNECTED))
        if connected:
            self.log.info("%s", reason)
        return connected

    def fail(self) -> None:
        """End the streams because of a bug of ours."""
        self.disconnect_reason = "an internal error of the server"
        self.sender.release()
        for upload in self.uploads:
            upload.end(PeerError("an internal error ended the session", reason=EndReason.INTERNAL_ERROR))

    def tick(self, now: float, tick_s: float) -> None:
        """Every ``tick_s``: send keepalives, drop packets that are too old, and end uploads that fell silent."""
        self.sender.tick(now, tick_s)
        extended = self._hello is not None and self._hello.extended
        silence_s = SILENT_KEEPALIVES * self._config.keepalive_s if extended else BASE_UPLOAD_SILENCE_S
        heard = [upload.tick(now, silence_s) for upload in self.uploads]
        self.peer_info.tick(now, self.counters, heard=any(heard))

    def deliver(self, reader: FrameReader, frames: list[FrameRange]) -> None:
        """Forward the frames of one receive of an upload. Raises PeerError and HostError as `forward` does."""
        if not self.removed:
            table = self._table
            writer = table.writers[self.index % len(table.writers)]
            if table.segment is None:
                self.forward(reader.view, frames, writer, table.sessions)
            else:
                table.segment.from_client(self, reader.view, frames, writer)

    def lane(self) -> Lane | DeliverNow:
        """Where the plane puts the frames of an upload: as `deliver`."""
        plane = current_plane()
        if plane is None or self.removed:
            return self.deliver
        writer = self._table.writers[self.index % len(self._table.writers)]
        if writer.outlet is None:
            return self.deliver
        if self._table.segment is not None:
            return self._table.segment.lane(self, writer.outlet, self.deliver, plane)
        if self._verdicts.flows is None:
            self._verdicts.flows = Flows(plane, BY_ADDRESSES, self.counters.drops)

        def judge(view: memoryview, at: int) -> Verdict:
            flow = flow_of(view, at)
            if flow is None or (flow[0] == 6 and not self._ipv6):
                return None
            version, key = flow
            to = self._verdicts.get(key)
            if to is None or to is True:
                return to
            if to is False:
                return drop_reason(key)
            return to.sender.port(plane) if version == 4 or to.sender.ipv6 else None

        return Lane(self._verdicts.flows, writer.outlet, self.deliver, judge, self.counters)

    def _change_lanes(self) -> None:
        """What this session's packets are decided by has changed, and maybe where they go."""
        if self._table.segment is not None:
            self._table.segment.change_lane(self)
        self._verdicts.clear()
        if self._verdicts.flows is not None:
            self._verdicts.flows.hand_back()

    def on_control(self, kind: int, payload: bytes) -> None:
        """Take a control frame of an upload. The receiver has already answered a PING."""
        if kind == control.PONG:
            self.rtt.sample(control.echoed_clock(payload), time.monotonic_ns())
            self.sender.answered()
        elif kind == control.AGENT:
            self.peer_info.agent = control.agent_payload(payload)
        elif kind == control.BYE:
            text = f"the client ends the session: {control.bye_reason(payload)}"
            self.client_log.goodbye(text)
            # Some proxies notice only at a later time that the client has closed its download. Until then the token
            # would seem to be in use.
            self.sender.release()

    def forward(
        self,
        view: memoryview,
        frames: Iterable[FrameRange],
        device: DeviceWriter,
        sessions: list[Session],
    ) -> None:
        """A server's per-frame loop: each frame goes to the device, or straight to another client's sender.

        Raises PeerError at a frame that no honest peer sends, after the frames before it were forwarded; HostError if
        the device is gone.
        """
        verdicts, unpack, unpack_ipv6 = self._verdicts, ROUTED_HEAD.unpack_from, ROUTED_IPV6_HEAD.unpack_from
        inward: list[FrameRange] = []
        run_to: Session | None = None
        run_at = run_end = packets = rx_packets = rx_bytes = 0
        try:
            for frame in frames:
                start, stop, count = frame
                length, gso_type, gso_size, first, key = unpack(view, start)
                if first >> 4 == 4:
                    to = verdicts.get(key)
                elif first >> 4 == 6 and self._ipv6 and length >= MIN_IPV6_BYTES:
                    payload_bytes, next_header, key = unpack_ipv6(view, start)
                    if not (payload_bytes or next_header):
                        self.counters.drops[DropReason.JUMBOGRAM] += count
                        rx_packets += count
                        rx_bytes += count * length
                        continue
                    to = verdicts.get(key)
                else:
                    self._take_other(view[start:stop], first, count)
                    continue
                if to is None:
                    to = self._decide(view[start : start + (stop - start) // count], key, sessions)
                rx_packets += count
                rx_bytes += count * length
                if to is True:
                    if gso_type and not is_bounded(length, gso_size):
                        raise PeerError("super-packet of absurdly small packets", reason=EndReason.BAD_VNET)
                    inward.append(frame)
                elif to is False:
                    self.counters.drops[drop_reason(key)] += count
                elif first >> 4 == 6 and not to.sender.ipv6:
                    self.counters.drops[DropReason.NOT_IPV4] += count
                else:
                    if not validate_vnet_header(
                        view[start:stop]
                    ):  # the frames of a block do not differ in what this checks
                        raise PeerError("frame with an impossible vnet header", reason=EndReason.BAD_VNET)
                    if to is not run_to or start != run_end:
                        if run_to is not None:
                            run_to.sender.send(view[run_at:run_end], packets)
                        run_to, run_at, packets = to, start, 0
                    run_end = stop
                    packets += count
        finally:  # the frames before a bad one are good
            self.counters.rx_packets += rx_packets
            self.counters.rx_bytes += rx_bytes
            if run_to is not None:
                run_to.sender.send(view[run_at:run_end], packets)
            device.write_all(view, inward, self.counters.drops)

    def _decide(self, frame: memoryview, key: bytes, sessions: list[Session]) -> Session | bool:
        half = len(key) >> 1
        source, destination = key[:half], key[half:]
        if not self._table.router.owns(self.index, source):
            # After a break, a deployed client may resume its upload in the middle of a frame; every frame from there on
            # is garbage. This shows here: the length in front of the frame differs from the length in its packet.
            if half == 4:
                length = int.from_bytes(frame[HEADER_BYTES + 2 : HEADER_BYTES + 4], "big")
            else:
                length = int.from_bytes(frame[HEADER_BYTES + 4 : HEADER_BYTES + 6], "big") + MIN_IPV6_BYTES
            if length != len(frame) - HEADER_BYTES:
                raise PeerError("frame whose length is not its packet's", reason=EndReason.BAD_FRAME)
        verdict = self._table.router.from_client(self.index, source, destination)
        if verdict == BAD_SOURCE:
            self.log.debug("source %s is not an address of this client", ip_address(source))
        to: Session | bool = sessions[verdict] if verdict >= 0 else verdict == TO_DEVICE
        if to is True:  # so that `TunnelServer.classify` decides again, and notices if the packet comes back
            self._table.device_verdicts.discard(key)
        if len(self._verdicts) >= CACHE_ENTRIES:
            self._verdicts.clear()
        self._verdicts[key] = to
        return to

    def _take_other(self, frame: memoryview, first: int, count: int) -> None:
        if first == ECHO_FIRST_BYTE and len(frame) == HEADER_BYTES + ECHO_PACKET_BYTES:
            self.rtt.sample(echoed_clock(frame), time.monotonic_ns())
        elif first >> 4 == 6 and not self._ipv6:
            self.counters.drops[DropReason.NOT_IPV4] += count
        elif first >> 4 == 6:
            text = f"frame with an IPv6 packet of {len(frame) // count - HEADER_BYTES} bytes"
            raise PeerError(text, reason=EndReason.BAD_FRAME)
        else:
            raise PeerError("frame without an IP packet", reason=EndReason.BAD_FRAME)


def drop_reason(key: bytes) -> DropReason:
    """Why the router lets no packet with these addresses of a client pass."""
    return DropReason.LINK_LOCAL if stays_on_link(key) else DropReason.BAD_SOURCE
