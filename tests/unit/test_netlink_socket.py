"""The netlink conversation against a kernel of canned answers: what goes wrong with the real one too rarely."""

from __future__ import annotations

import errno
import struct
from collections import deque
from collections.abc import Callable
from ipaddress import IPv6Network
from typing import cast

import pytest
import trio
import trio.testing

from tapotun_trio.errors import HostError
from tapotun_trio.host.items import MAIN_TABLE, Item, Route, Rule
from tapotun_trio.host.netlink.inventory import Inventory
from tapotun_trio.host.netlink.network import Netlink
from tapotun_trio.host.netlink.reader import NetworkReader
from tapotun_trio.host.netlink.socket import DEADLINE_S, GROUP, Refusal, Rtnetlink

HEADER = struct.Struct("=IHHII")
ERROR, DONE, OTHER = 2, 3, 24
MULTI, DUMP_INTR, CAPPED, ACK_TLVS, DUMP = 0x02, 0x10, 0x100, 0x200, 0x300


def message(kind: int, sequence: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return HEADER.pack(16 + len(payload), kind, flags, sequence, 0) + payload + b"\0" * (-len(payload) % 4)


def acknowledge(sequence: int, code: int = 0, words: str = "") -> bytes:
    payload = struct.pack("=i", -code) + bytes(16)
    if not words:
        return message(ERROR, sequence, payload, CAPPED)
    text = words.encode() + b"\0"
    payload += struct.pack("=HHI", 8, 2, 24)  # NLMSGERR_ATTR_OFFS comes first
    payload += struct.pack("=HH", 4 + len(text), 1) + text
    return message(ERROR, sequence, payload, CAPPED | ACK_TLVS)


def request() -> bytearray:
    return bytearray(message(OTHER, 0, b"body"))


class FakeKernel:
    """Stands in for the sockets of an `Rtnetlink`: ``answer`` makes datagrams of the messages of one send."""

    def __init__(self, answer: Callable[[list[tuple[int, int]]], list[bytes | OSError]]) -> None:
        self.answer = answer
        self.sends: list[list[tuple[int, int]]] = []  # sequence numbers and flags
        self.sockets: list[FakeSocket] = []
        self.closed = 0

    @property
    def opened(self) -> int:
        return len(self.sockets)

    def open(self) -> FakeSocket:
        self.sockets.append(FakeSocket(self))
        return self.sockets[-1]


class FakeSocket:
    def __init__(self, kernel: FakeKernel) -> None:
        self.kernel = kernel
        self.queue: deque[tuple[int, bytes | OSError]] = deque()

    def close(self) -> None:
        self.kernel.closed += 1

    async def send(self, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        seen: list[tuple[int, int]] = []
        offset = 0
        while offset < len(data):
            length, _, flags, sequence, _ = HEADER.unpack_from(data, offset)
            seen.append((sequence, flags))
            offset += (length + 3) & ~3
        self.kernel.sends.append(seen)
        self.queue += [(0, datagram) for datagram in self.kernel.answer(seen)]

    async def recvfrom_into(self, into: memoryview) -> tuple[int, tuple[int, int]]:
        await trio.lowlevel.checkpoint()
        if not self.queue:
            await trio.sleep_forever()
        pid, datagram = self.queue.popleft()
        if isinstance(datagram, OSError):
            raise datagram
        into[: len(datagram)] = datagram
        return len(datagram), (pid, 0)


def start(kernel: FakeKernel, *, last_sequence: int = 0) -> Rtnetlink:
    return Rtnetlink(cast(Callable[[], trio.socket.SocketType], kernel.open), last_sequence=last_sequence)


def refuse(wanted: dict[int, bytes]) -> Callable[[list[tuple[int, int]]], list[bytes | OSError]]:
    """Acknowledge as the kernel does: what is refused always, what succeeds if it asks for it."""

    def answer(seen: list[tuple[int, int]]) -> list[bytes | OSError]:
        result: list[bytes | OSError] = []
        for sequence, flags in seen:
            if sequence in wanted:
                result.append(wanted[sequence])
            elif flags & 4:
                result.append(acknowledge(sequence))
        return result

    return answer


async def test_a_batch_goes_out_in_groups_and_its_last_message_is_acknowledged() -> None:
    kernel = FakeKernel(refuse({}))
    link = start(kernel)
    assert await link.transact([request() for _ in range(GROUP * 2 + 1)]) == {}
    assert [len(send) for send in kernel.sends] == [GROUP, GROUP, 1]
    flat = [pair for send in kernel.sends for pair in send]
    assert [sequence for sequence, _ in flat] == list(range(1, GROUP * 2 + 2))
    assert [sequence for sequence, flags in flat if flags & 4] == [GROUP, GROUP * 2, GROUP * 2 + 1]
    assert await link.transact([]) == {}


async def test_refusals_are_told_by_index_with_the_kernels_words() -> None:
    refused = {
        2: acknowledge(2, errno.EEXIST),
        GROUP: acknowledge(GROUP, errno.EINVAL, "Invalid prefsrc address"),
        GROUP + 1: acknowledge(GROUP + 1, errno.ENODEV),
    }
    link = start(FakeKernel(refuse(refused)))
    assert await link.transact([request() for _ in range(GROUP + 2)]) == {
        1: Refusal(errno.EEXIST),
        GROUP - 1: Refusal(errno.EINVAL, "Invalid prefsrc address"),
        GROUP: Refusal(errno.ENODEV),
    }
    assert Refusal(errno.EEXIST).text == "File exists"
    assert Refusal(errno.EINVAL, "why").text == "Invalid argument (why)"


async def test_a_question_has_one_answer() -> None:
    reply = message(OTHER, 1, b"here")
    link = start(FakeKernel(lambda seen: [reply, acknowledge(seen[0][0])]))
    assert await link.ask(request()) == reply
    link = start(FakeKernel(lambda seen: [acknowledge(seen[0][0], errno.ENODEV)]))
    assert await link.ask(request()) == Refusal(errno.ENODEV)
    link = start(FakeKernel(lambda seen: [acknowledge(seen[0][0])]))
    with pytest.raises(HostError, match="did not answer"):
        await link.ask(request())


async def test_only_the_kernel_is_heard() -> None:
    kernel = FakeKernel(lambda _: [])
    link = start(kernel)
    kernel.answer = lambda seen: [acknowledge(seen[-1][0] + 77), acknowledge(seen[-1][0])]
    kernel.sockets[0].queue.append((4711, acknowledge(1, errno.EPERM)))
    assert await link.transact([request()]) == {}


async def test_a_dump_is_read_to_its_end() -> None:
    def answer(seen: list[tuple[int, int]]) -> list[bytes | OSError]:
        ((sequence, _),) = seen
        parts = [message(OTHER, sequence, bytes([i]) * 4, MULTI) for i in range(5)]
        done = message(DONE, sequence, struct.pack("=i", 0), MULTI)
        return [parts[0] + parts[1], parts[2] + parts[3], parts[4] + done]

    link = start(FakeKernel(answer))
    assert await link.dump(request(), lambda data: data[16]) == [0, 1, 2, 3, 4]
    assert await link.dump(request(), lambda data: data[16] if data[16] % 2 else None) == [1, 3]


async def test_an_interrupted_dump_is_tried_again_but_not_for_ever() -> None:
    def answer(seen: list[tuple[int, int]]) -> list[bytes | OSError]:
        ((sequence, _),) = seen
        flags = MULTI | (DUMP_INTR if interrupted(sequence) else 0)
        done = message(DONE, sequence, struct.pack("=i", 0), MULTI)
        return [message(OTHER, sequence, b"\1\1\1\1", flags) + done]

    interrupted: Callable[[int], bool] = lambda sequence: sequence < 3  # noqa: E731
    kernel = FakeKernel(answer)
    link = start(kernel)
    assert await link.dump(request(), lambda data: data[16]) == [1]
    assert len(kernel.sends) == 3

    interrupted = lambda _: True  # noqa: E731
    with pytest.raises(HostError, match="changes faster"):
        await link.dump(request(), lambda data: data[16])


async def test_a_dump_of_a_table_that_does_not_exist_is_empty() -> None:
    link = start(FakeKernel(lambda seen: [acknowledge(seen[0][0], errno.ENOENT)]))
    assert await link.dump(request(), bytes) == []
    done = struct.pack("=i", -errno.ENOENT)
    link = start(FakeKernel(lambda seen: [message(DONE, seen[0][0], done, MULTI)]))
    assert await link.dump(request(), bytes) == []
    link = start(FakeKernel(lambda seen: [acknowledge(seen[0][0], errno.EPERM)]))
    with pytest.raises(HostError, match="Operation not permitted"):
        await link.dump(request(), bytes)


def ipv4_route(sequence: int) -> bytes:
    return message(OTHER, sequence, struct.pack("=BBBBBBBBI", 2, 8, 0, 0, 254, 116, 253, 1, 0), MULTI)


def ipv4_address(sequence: int) -> bytes:
    payload = struct.pack("=BBBBI", 2, 16, 0, 253, 7)
    for kind in (1, 2):  # IFA_ADDRESS, IFA_LOCAL
        payload += struct.pack("=HH4s", 8, kind, bytes([169, 254, 1, 1]))
    return message(20, sequence, payload, MULTI)


@pytest.mark.parametrize("answer", [ipv4_route, errno.EAFNOSUPPORT, errno.EOPNOTSUPP])
async def test_a_kernel_without_ipv6_has_no_ipv6_routes_and_rules(answer: Callable[[int], bytes] | int) -> None:
    """With ipv6.disable=1 nobody answers for IPv6: a dump gets what the other families have (rtnl_dump_all,
    net/core/rtnetlink.c), or a refusal."""

    def answers(seen: list[tuple[int, int]]) -> list[bytes | OSError]:
        ((sequence, _),) = seen
        if isinstance(answer, int):
            return [acknowledge(sequence, answer)]
        return [answer(sequence) + message(DONE, sequence, struct.pack("=i", 0), MULTI)]

    kernel = start(FakeKernel(answers))
    reader = NetworkReader(kernel)
    assert await reader.routes(6, MAIN_TABLE) == []
    assert await reader.rules(6) == []
    assert await reader.slot_owners(6, {MAIN_TABLE}) == {}
    assert await reader.ours(lambda _: True, [6]) == []
    wanted: list[Item] = [Route(IPv6Network("2001:db8::/32")), Rule(1, 100, version=6)]
    present = await Inventory(kernel, reader, 7).read(wanted, {})
    assert not any(map(present.has, wanted))


async def test_ipv4_addresses_in_an_answer_about_ipv6_are_left_alone() -> None:
    """Neither `_misfits` nor `_remove_link_local` takes one for an IPv6 address."""
    requests: list[int] = []

    def answers(seen: list[tuple[int, int]]) -> list[bytes | OSError]:
        requests.append(len(seen))
        sequence, flags = seen[-1]
        if flags & DUMP == DUMP:
            return [ipv4_address(sequence) + message(DONE, sequence, struct.pack("=i", 0), MULTI)]
        if len(requests) % 2:  # which link it is
            link = struct.pack("=BxHiII", 0, 0xFFFE, 7, 1, 0) + struct.pack("=HHI", 8, 4, 1000)  # IFLA_MTU
            return [message(16, sequence, link), acknowledge(sequence)]
        return [acknowledge(sequence)]

    network = Netlink(start(FakeKernel(answers)))
    await network.link_up("tun0", 1500)
    assert requests == [1, 4, 1, 1]  # the link, the batch, the link as a port, the addresses: nothing is removed


async def test_lost_answers_are_a_host_error_and_the_next_call_has_a_fresh_socket() -> None:
    kernel = FakeKernel(lambda _: [OSError(errno.ENOBUFS, "No buffer space available")])
    link = start(kernel)
    with pytest.raises(HostError, match="No buffer space"):
        await link.transact([request()])
    kernel.answer = refuse({})
    assert await link.transact([request()]) == {}
    assert (kernel.opened, kernel.closed) == (2, 1)
    link.close()
    assert kernel.closed == 2
    with pytest.raises(trio.ClosedResourceError):
        await link.transact([request()])
    assert kernel.opened == 2


async def test_silence_is_a_host_error(autojump_clock: trio.testing.MockClock) -> None:
    link = start(FakeKernel(lambda _: []))
    before = trio.current_time()
    with pytest.raises(HostError, match="no answer within 5 s"):
        await link.transact([request()])
    assert trio.current_time() - before == pytest.approx(DEADLINE_S)


async def test_a_cancelled_exchange_leaves_nothing_for_the_next(autojump_clock: trio.testing.MockClock) -> None:
    kernel = FakeKernel(lambda _: [])
    link = start(kernel)
    with trio.move_on_after(1) as scope:
        await link.dump(request(), bytes)
    assert scope.cancelled_caught
    kernel.answer = refuse({})
    assert await link.transact([request()]) == {}
    assert (kernel.opened, kernel.closed) == (2, 1)


@pytest.mark.parametrize("broken", [b"\x10", HEADER.pack(15, 2, 0, 1, 0), HEADER.pack(99, 2, 0, 1, 0)])
async def test_half_a_message_is_a_host_error(broken: bytes) -> None:
    link = start(FakeKernel(lambda _: [broken]))
    with pytest.raises(HostError, match="half a message"):
        await link.transact([request()])


async def test_sequence_numbers_wrap_between_batches() -> None:
    kernel = FakeKernel(refuse({}))
    link = start(kernel, last_sequence=0xFFFF_FFFE)
    assert await link.transact([request(), request()]) == {}
    assert [sequence for sequence, _ in kernel.sends[0]] == [1, 2]
