"""HTTP/1.1 heads and bodies, read push by push and strictly. No sockets here.

Every body reader has the same three parts: `feed(data)` gives the payload in it, `done` tells that the
body has ended, `rest` holds what came behind its end.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final, Protocol

MAX_HEAD: Final = 16 * 1024
MAX_CHUNK_LINE: Final = 256

_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+\Z")
_SIZE_LINE: Final = re.compile(rb"([0-9A-Fa-f]{1,16})([ \t]*;[^\r\n]*)?\Z")
_STATUS: Final = re.compile(r"HTTP/(1\.[01]) ([1-5][0-9][0-9])(?: (.*))?\Z")
_REQUEST: Final = re.compile(r"([A-Z]+) (\S+) HTTP/(1\.[01])\Z")


class HttpError(ValueError):
    """Bytes that are not the HTTP of docs/protocol.md#requests."""


@dataclass(frozen=True)
class Head:
    """Start line and headers; names in lower case, in the order of the wire."""

    start: str
    headers: tuple[tuple[str, str], ...]

    def every(self, name: str) -> list[str]:
        """All values of a header, as they stand."""
        return [value for key, value in self.headers if key == name]

    def has(self, name: str, word: str) -> bool:
        """Whether a comma list such as Connection holds a word."""
        words = ",".join(self.every(name)).lower().split(",")
        return word in (part.strip() for part in words)

    def status(self) -> tuple[str, int]:
        """HTTP version and status of a response. Raises HttpError."""
        match = _STATUS.match(self.start)
        if match is None:
            raise HttpError(f"bad status line {self.start!r}")
        return match[1], int(match[2])

    def request(self) -> tuple[str, str, str]:
        """Method, target and HTTP version of a request. Raises HttpError."""
        match = _REQUEST.match(self.start)
        if match is None:
            raise HttpError(f"bad request line {self.start!r}")
        return match[1], match[2], match[3]


def parse_head(raw: bytes) -> Head:
    """A head up to and without its empty line. Raises HttpError on anything loose."""
    try:
        lines = raw.decode("ascii").split("\r\n")
    except UnicodeDecodeError as exc:
        raise HttpError(f"head is not ASCII: {raw[:80]!r}") from exc
    headers = []
    for line in lines[1:]:
        name, colon, value = line.partition(":")
        if not colon or not _NAME.match(name) or "\n" in line or "\r" in line:
            raise HttpError(f"bad header line {line!r}")
        headers.append((name.lower(), value.strip(" \t")))
    return Head(lines[0], tuple(headers))


class Body(Protocol):
    """A body being read."""

    done: bool
    rest: bytes

    def feed(self, data: bytes) -> bytes:
        """The payload in `data`. Raises HttpError."""


class EndlessBody:
    """A body "that ends with the connection": the HTTP/1.0 form."""

    def __init__(self) -> None:
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """All of it."""
        return data


class LengthBody:
    """A body with a Content-Length."""

    def __init__(self, length: int) -> None:
        self._left = length
        self.done = length == 0
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """What belongs to the body; the remainder goes to `rest`."""
        payload, self.rest = data[: self._left], self.rest + data[self._left :]
        self._left -= len(payload)
        self.done = self._left == 0
        return payload


class ChunkedBody:
    """Transfer-Encoding: chunked. `odd` hears of what HTTP allows but nobody here should send."""

    def __init__(self, odd: Callable[[str], None]) -> None:
        self._odd = odd
        self._buffer = bytearray()
        self._left = 0
        self._state = "size"
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Payload of whole and half chunks alike: "Chunk boundaries mean nothing". Raises HttpError."""
        if self.done:
            self.rest += data
            return b""
        self._buffer += data
        payload = bytearray()
        while self._step(payload):
            pass
        return bytes(payload)

    def _step(self, payload: bytearray) -> bool:
        if self._state == "data":
            part = self._buffer[: self._left]
            del self._buffer[: len(part)]
            payload += part
            self._left -= len(part)
            if self._left == 0:
                self._state = "end of chunk"
            return self._left == 0
        line = self._line()
        if line is None:
            return False
        if self._state == "size":
            self._begin_chunk(line)
        elif self._state == "end of chunk":
            if line:
                raise HttpError(f"chunk is longer than it told: {line[:20]!r}")
            self._state = "size"
        elif line:
            self._odd(f"trailer {line[:80]!r} behind a chunked body")
        else:
            self.done = True
            self.rest = bytes(self._buffer)
            return False
        return True

    def _begin_chunk(self, line: bytes) -> None:
        match = _SIZE_LINE.match(line)
        if match is None:
            raise HttpError(f"bad chunk size line {line[:80]!r}")
        if match[2]:
            self._odd(f"chunk extension {match[2][:80]!r}")
        self._left = int(match[1], 16)
        self._state = "data" if self._left else "trailer"

    def _line(self) -> bytes | None:
        """The next line without its CRLF; None where it is not whole yet."""
        end = self._buffer.find(b"\n")
        if end < 0:
            if len(self._buffer) > MAX_CHUNK_LINE:
                raise HttpError(f"endless chunk line {bytes(self._buffer[:80])!r}")
            return None
        line = bytes(self._buffer[: end + 1])
        if not line.endswith(b"\r\n"):
            raise HttpError(f"line ends without CRLF: {line[:80]!r}")
        del self._buffer[: end + 1]
        return line[:-2]


def body_of(head: Head, version: str, odd: Callable[[str], None]) -> Body:
    """The reader for a message's body, response or request. Raises HttpError where it is ambiguous."""
    codings = head.every("transfer-encoding")
    lengths = head.every("content-length")
    if codings and lengths:
        raise HttpError("both Transfer-Encoding and Content-Length")
    if codings:
        if [coding.lower() for coding in codings] != ["chunked"]:
            raise HttpError(f"Transfer-Encoding {codings!r}")
        if version == "1.0":
            raise HttpError("Transfer-Encoding in HTTP/1.0")
        return ChunkedBody(odd)
    if lengths:
        if len(lengths) != 1 or not re.fullmatch("[0-9]{1,15}", lengths[0]):
            raise HttpError(f"Content-Length {lengths!r}")
        return LengthBody(int(lengths[0]))
    return EndlessBody()


@dataclass(frozen=True)
class Chunking:
    """How a peer cuts the body that it sends; the default is one chunk for everything at hand.

    `next_size` gives the size of each chunk, `segment` the bytes of each send (1 splits every byte,
    chunk heads too), `extension` stands behind each size, `;` included. "any proxy may re-chunk".
    """

    next_size: Callable[[], int] | None = None
    segment: int | None = None
    extension: bytes = b""

    def chunks(self, data: bytes) -> Iterator[bytes]:
        """`data` as chunks with their heads and CRLF."""
        while data:
            size = len(data) if self.next_size is None else max(1, self.next_size())
            part, data = data[:size], data[size:]
            yield b"%x%s\r\n%s\r\n" % (len(part), self.extension, part)

    def segments(self, data: bytes) -> Iterator[bytes]:
        """`data` in the pieces that go to the socket one by one."""
        step = self.segment or len(data) or 1
        for at in range(0, len(data), step):
            yield data[at : at + step]


END_OF_CHUNKS: Final = b"0\r\n\r\n"
