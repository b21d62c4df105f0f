"""http.heads: what deployed peers send, under every split; what smugglers send; and anything else."""

from __future__ import annotations

from typing import Final

import h11
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tapotun_trio.errors import PeerError
from tapotun_trio.http.heads import (
    MAX_HEAD_BYTES,
    REASONS,
    BadRequest,
    RequestHead,
    RequestParser,
    ResponseHead,
    ResponseParser,
    encode_request,
    encode_response,
)
from tapotun_trio.wire.body import ChunkedBody, CloseBody, LengthBody

from ..chunkings import cuts, every_chunking
from ..tables import table

# What a deployed client sends, exactly (docs/protocol.md#deployed-peers).
DEPLOYED_GET: Final = (
    b"GET /ip HTTP/1.1\r\nHost: 192.0.2.1:8080\r\nAccept: */*\r\n"
    b"Accept-Encoding: deflate, gzip, br, zstd\r\nx-api-key:test\r\n\r\n"
)
DEPLOYED_PUT: Final = (
    b"PUT /ip HTTP/1.1\r\nHost: 192.0.2.1:8080\r\n"
    b"Accept-Encoding: deflate, gzip, br, zstd\r\nx-api-key:test\r\n"
    b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n"
)


def request(line: str, *fields: str, host: bool = True) -> bytes:
    """A request head."""
    return "\r\n".join([line, *(["Host: h"] if host else []), *fields, "", ""]).encode("latin-1")


def parse(*pieces: bytes) -> tuple[RequestHead, bytes] | None:
    """Feed the pieces; what comes after the head is complete stays unused, as it does in the server."""
    parser = RequestParser()
    behind = iter(pieces)
    for piece in behind:
        assert not parser.started or piece
        done = parser.feed(piece)
        if done is not None:
            head, rest = done
            return head, rest + b"".join(behind)
    return None


def parsed(*pieces: bytes) -> RequestHead:
    done = parse(*pieces)
    assert done is not None
    return done[0]


# ------------------------------------------------------------------ requests


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=30), cuts)
def test_the_get_of_a_deployed_client(behind: bytes, places: list[int]) -> None:
    headers = {
        "host": "192.0.2.1:8080",
        "accept": "*/*",
        "accept-encoding": "deflate, gzip, br, zstd",
        "x-api-key": "test",
    }
    for pieces in every_chunking(DEPLOYED_GET + behind, places):
        done = parse(*pieces)
        assert done == (RequestHead("GET", "/ip", "1.1", headers), behind)
        assert done[0].keeps_alive
        assert not done[0].expects_continue
        assert done[0].body().ended


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=30), cuts)
def test_the_put_of_a_deployed_client(behind: bytes, places: list[int]) -> None:
    for pieces in every_chunking(DEPLOYED_PUT + behind, places):
        done = parse(*pieces)
        assert done is not None
        head, rest = done
        assert (head.method, head.target, head.version) == ("PUT", "/ip", "1.1")
        assert head.headers["x-api-key"] == "test"
        assert head.expects_continue
        assert head.keeps_alive
        assert isinstance(head.body(), ChunkedBody)
        assert rest == behind


def test_started() -> None:
    parser = RequestParser()
    assert not parser.started
    assert parser.feed(b"G") is None
    assert parser.started


@pytest.mark.parametrize("method", ["GET", "PUT", "POST", "DELETE", "PATCH", "M-SEARCH"])
@pytest.mark.parametrize("target", ["/", "/ip?x=%20y", "*", "http://h/ip", "/" + "a" * 8000])
def test_any_method_and_any_path(method: str, target: str) -> None:
    head = parsed(request(f"{method} {target} HTTP/1.1"))
    assert (head.method, head.target) == (method, target)


def test_repeated_fields_are_joined_and_names_are_lowercase() -> None:
    head = parsed(request("GET / HTTP/1.1", "Via: 1.1 a", "VIA:1.1 b", "X-Empty:", "X-Latin: caf\u00e9"))
    assert head.headers == {"host": "h", "via": "1.1 a, 1.1 b", "x-empty": "", "x-latin": "caf\u00e9"}


@table(
    "version fields keeps_alive",
    ("1.1", "1.1", [], True),
    ("1.1 keep-alive", "1.1", ["Connection: keep-alive"], True),
    ("1.1 close", "1.1", ["Connection: close"], False),
    ("1.1 close among others", "1.1", ["Connection: te , Close"], False),
    ("1.1 close in a second field", "1.1", ["Connection: te", "Connection: close"], False),
    ("1.1 something like close", "1.1", ["Connection: closed"], True),
    ("1.0", "1.0", [], False),
    ("1.0 keep-alive: we need the end of the connection", "1.0", ["Connection: keep-alive"], False),
)
def test_keeps_alive(version: str, fields: list[str], keeps_alive: bool) -> None:
    assert parsed(request(f"GET / HTTP/{version}", *fields)).keeps_alive == keeps_alive


@table(
    "version fields expects",
    ("as deployed", "1.1", ["Expect: 100-continue"], True),
    ("in capitals", "1.1", ["EXPECT: 100-Continue"], True),
    ("absent", "1.1", [], False),
    ("HTTP/1.0 must be ignored", "1.0", ["Expect: 100-continue"], False),
    ("something else", "1.1", ["Expect: 200-ok"], False),
)
def test_expects_continue(version: str, fields: list[str], expects: bool) -> None:
    assert parsed(request(f"PUT / HTTP/{version}", *fields)).expects_continue == expects


def test_http_1_0_needs_no_host() -> None:
    head = parsed(request("GET /ip HTTP/1.0", "x-api-key: t", host=False))
    assert (head.version, head.headers) == ("1.0", {"x-api-key": "t"})


@pytest.mark.parametrize(("version", "length"), [("1.0", 3), ("1.1", 3), ("1.1", 0), ("1.1", 10**19)])
def test_a_put_with_a_length(version: str, length: int) -> None:
    body = parsed(request(f"PUT / HTTP/{version}", f"Content-Length: {length}")).body()
    assert isinstance(body, LengthBody)
    assert body.ended == (length == 0)


def test_a_get_may_say_that_it_has_no_body() -> None:
    assert parsed(request("GET / HTTP/1.1", "Content-Length: 0")).body().ended


@table(
    "raw status",
    # What two parsers read differently.
    ("CL and TE", request("PUT / HTTP/1.1", "Content-Length: 5", "Transfer-Encoding: chunked"), 400),
    ("TE and CL", request("PUT / HTTP/1.1", "Transfer-Encoding: chunked", "Content-Length: 5"), 400),
    ("CL twice", request("PUT / HTTP/1.1", "Content-Length: 5", "Content-Length: 6"), 400),
    ("CL twice alike", request("PUT / HTTP/1.1", "Content-Length: 5", "content-length: 5"), 400),
    ("CL as a list", request("PUT / HTTP/1.1", "Content-Length: 5, 6"), 400),
    ("CL with a sign", request("PUT / HTTP/1.1", "Content-Length: +5"), 400),
    ("CL negative", request("PUT / HTTP/1.1", "Content-Length: -5"), 400),
    ("CL in hexadecimal", request("PUT / HTTP/1.1", "Content-Length: 0x5"), 400),
    ("CL with an underscore", request("PUT / HTTP/1.1", "Content-Length: 1_0"), 400),
    ("CL with a blank", request("PUT / HTTP/1.1", "Content-Length: 1 0"), 400),
    ("CL empty", request("PUT / HTTP/1.1", "Content-Length:"), 400),
    ("CL beyond what int() takes", request("PUT / HTTP/1.1", "Content-Length: " + "9" * 5000), 400),
    ("CL in other digits", request("PUT / HTTP/1.1", "Content-Length: \xb2"), 400),
    ("TE twice", request("PUT / HTTP/1.1", *["Transfer-Encoding: chunked"] * 2), 501),
    ("TE twice in one", request("PUT / HTTP/1.1", "Transfer-Encoding: chunked, chunked"), 501),
    ("TE gzip", request("PUT / HTTP/1.1", "Transfer-Encoding: gzip, chunked"), 501),
    ("TE identity", request("PUT / HTTP/1.1", "Transfer-Encoding: identity"), 501),
    ("TE xchunked", request("PUT / HTTP/1.1", "Transfer-Encoding: xchunked"), 501),
    ("TE behind a vertical tab", request("PUT / HTTP/1.1", "Transfer-Encoding: \x0bchunked"), 400),
    ("TE in HTTP/1.0", request("PUT / HTTP/1.0", "Transfer-Encoding: chunked"), 400),
    ("TE in HTTP/0.9", request("PUT / HTTP/0.9", "Transfer-Encoding: chunked"), 400),
    ("HTTP/0.9 with fields", request("PUT / HTTP/0.9"), 505),
    ("HTTP/2.0", request("PUT / HTTP/2.0"), 505),
    ("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("GET with a chunked body", request("GET / HTTP/1.1", "Transfer-Encoding: chunked"), 400),
    ("GET with a length", request("GET / HTTP/1.1", "Content-Length: 5"), 400),
    ("bare LF", b"GET / HTTP/1.1\nHost: h\n\n", 400),
    ("bare LF behind a field", b"GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", 400),
    ("bare LF at the end", b"GET / HTTP/1.1\r\nHost: h\r\n\n", 400),
    ("bare CR in a value", request("GET / HTTP/1.1", "X: a\rContent-Length: 5"), 400),
    ("CR CR LF", b"GET / HTTP/1.1\r\r\nHost: h\r\n\r\n", 400),
    ("a field before the first line's end", b"GET / HTTP/1.1 Host: h\r\n\r\n", 400),
    ("a folded first field", b"GET / HTTP/1.1\r\n Host: h\r\n\r\n", 400),
    ("blank before the colon", request("PUT / HTTP/1.1", "Content-Length : 5"), 400),
    ("tab before the colon", request("PUT / HTTP/1.1", "Transfer-Encoding\t: chunked"), 400),
    ("no colon", request("GET / HTTP/1.1", "garbage"), 400),
    ("no name", request("GET / HTTP/1.1", ": value"), 400),
    ("NUL in a name", request("GET / HTTP/1.1", "X\0: y"), 400),
    ("NUL in a value", request("GET / HTTP/1.1", "X: \0"), 400),
    ("NUL in the target", request("GET /\0 HTTP/1.1"), 400),
    ("a name beyond ASCII", request("GET / HTTP/1.1", "Content-Length\xe9: 5"), 400),
    # Whose answer would it be?
    ("no Host", request("GET / HTTP/1.1", host=False), 400),
    ("Host twice", request("GET / HTTP/1.1", "Host: h"), 400),
    ("the token twice", request("GET / HTTP/1.1", "x-api-key: a", "X-Api-Key: b"), 400),
    ("the login twice", request("GET / HTTP/1.1", "Authorization: Bearer a", "authorization: Bearer a"), 400),
    # What is no request line.
    ("an empty line first", b"\r\n" + DEPLOYED_GET, 400),
    ("two blanks", request("GET  / HTTP/1.1"), 400),
    ("a blank behind", request("GET / HTTP/1.1 "), 400),
    ("a blank before", request(" GET / HTTP/1.1"), 400),
    ("a tab between", request("GET\t/ HTTP/1.1"), 400),
    ("HTTP/0.9 as it was", b"GET /\r\n\r\n", 400),
    ("HTTP/11", request("GET / HTTP/11"), 400),
    ("http/1.1", request("GET / http/1.1"), 400),
    ("a target beyond ASCII", request("GET /\xe9 HTTP/1.1"), 400),
    ("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    # What is too much.
    ("a head over the limit", request("GET / HTTP/1.1", "X: " + "x" * MAX_HEAD_BYTES), 431),
    ("a head over the limit, of many fields", request("GET / HTTP/1.1", *["A:"] * 5000), 431),
    ("a head that does not end", request("GET / HTTP/1.1", "X: " + "x" * MAX_HEAD_BYTES)[:-4], 431),
    ("a line that does not end", b"G" * (MAX_HEAD_BYTES + 1), 431),
)
def test_refused(raw: bytes, status: int) -> None:
    for pieces in every_chunking(raw, [3, 30, 300]):
        with pytest.raises(BadRequest) as caught:
            parse(*pieces)
        assert caught.value.status == status
        assert caught.value.status in REASONS
        assert caught.value.reason == "bad-request"


@table(
    "raw",
    ("the value of TE", request("PUT / HTTP/1.1", "Transfer-Encoding:", " chunked")),
    ("the value of CL", request("PUT / HTTP/1.1", "Content-Length:", "\t5")),
    ("a field that looks like a framing one", request("PUT / HTTP/1.1", "X: y", " Content-Length: 5")),
)
def test_a_folded_field_is_refused(raw: bytes) -> None:
    """RFC 9112 section 5.2: a server must reject obs-fold or replace it before the message is used; a proxy before
    us may have read the second line as a field of its own, or not at all."""
    with pytest.raises(BadRequest):
        parse(raw)


def test_a_later_minor_version_is_1_1() -> None:
    """RFC 9110 section 2.5: as if it were the highest minor version that we know."""
    assert parsed(request("GET / HTTP/1.2")).version == "1.1"


def test_a_length_as_a_list_of_equals_is_refused() -> None:
    """RFC 9110 section 8.6 lets us take it or leave it; where the field itself is given twice we leave it."""
    with pytest.raises(BadRequest):
        parse(request("PUT / HTTP/1.1", "Content-Length: 5, 5"))


def test_the_limit_is_inclusive_and_what_is_behind_does_not_count() -> None:
    empty = len(request("GET / HTTP/1.1", "X: "))
    raw = request("GET / HTTP/1.1", "X: " + "x" * (MAX_HEAD_BYTES - empty))
    assert len(raw) == MAX_HEAD_BYTES
    behind = b"\0" * 100_000
    for pieces in ([raw + behind], [raw[:-1], raw[-1:] + behind]):
        done = parse(*pieces)
        assert done is not None
        assert done[1] == behind


@table(
    "raw",
    ("blank before the colon", request("GET / HTTP/1.1", "x-api-key : SECRET")),
    ("a control character in it", request("GET / HTTP/1.1", "x-api-key: SECRET\x0b")),
    ("given twice", request("GET / HTTP/1.1", "x-api-key: SECRET", "x-api-key: SECRET")),
    ("a bare LF elsewhere", request("GET / HTTP/1.1", "x-api-key: SECRET").replace(b"1.1\r", b"1.1")),
)
def test_the_text_of_a_refusal_does_not_hold_the_token(raw: bytes) -> None:
    """It is logged, and tokens never reach a log."""
    with pytest.raises(BadRequest) as caught:
        parse(raw)
    assert "SECRET" not in str(caught.value)


def test_the_text_of_a_refusal_is_short() -> None:
    with pytest.raises(BadRequest) as caught:
        parse(request("GET / HTTP/1.1", "X\0" + "x" * 15_000))
    assert len(str(caught.value)) < 500


def test_a_head_does_not_show_its_token() -> None:
    head = parsed(request("GET / HTTP/1.1", "x-api-key: SECRET"))
    assert "SECRET" not in repr(head)


# Pieces of which heads are made, right and wrong.
_LINES: Final = (
    "GET / HTTP/1.1|PUT /ip HTTP/1.1|GET / HTTP/1.0|HTTP/1.1 200 OK|HTTP/1.0 200 |HTTP/1.1 100 Continue|HTTP/1.1 101 X|"
    "Host: h|Content-Length: 5|Transfer-Encoding: chunked|Expect: 100-continue|x-api-key: t|Connection: close|"
)
_FRAGMENTS: Final = [
    *(line.encode() + b"\r\n" for line in _LINES.split("|")),
    *(b"Content-Length:", b"\r\n", b"\n", b"\r", b" ", b":", b"\0", b"\xff"),
]
hostile = st.binary(max_size=100) | st.lists(st.sampled_from(_FRAGMENTS), max_size=10).map(b"".join)


@settings(max_examples=150, deadline=None)
@given(hostile, cuts)
def test_any_bytes_raise_bad_request_at_most_and_alike_under_every_split(data: bytes, places: list[int]) -> None:
    outcomes: list[object] = []
    for pieces in every_chunking(data, places):
        try:
            outcomes.append(parse(*pieces))
        except BadRequest as exc:
            outcomes.append(REASONS[exc.status])
    assert all(outcome == outcomes[0] for outcome in outcomes)


@settings(max_examples=150, deadline=None)
@given(hostile)
def test_an_accepted_head_has_one_reading(data: bytes) -> None:
    """Whatever was accepted: its framing is stated once at most, and its parts are what the attributes promise."""
    try:
        done = parse(data)
    except BadRequest:
        return
    if done is None:
        return
    head, rest = done
    raw = data[: len(data) - len(rest)].lower()
    assert raw.endswith(b"\r\n\r\n")
    assert raw.count(b"\ncontent-length") + raw.count(b"\ntransfer-encoding") <= 1
    assert raw.count(b"\nx-api-key") <= 1
    assert head.version in ("1.0", "1.1")
    assert isinstance(head.body(), ChunkedBody) == ("transfer-encoding" in head.headers)


# ------------------------------------------------------------------ responses


def parse_response(*pieces: bytes, method: str = "GET") -> tuple[ResponseHead, bytes] | None:
    parser = ResponseParser(method)
    behind = iter(pieces)
    for piece in behind:
        done = parser.feed(piece)
        if done is not None:
            return done[0], done[1] + b"".join(behind)
    return None


DEPLOYED_200: Final = (
    b"HTTP/1.1 200 OK\r\nx-tun-conf: 3AUYCgoAAg==\r\nTransfer-Encoding: chunked\r\nConnection: keep-alive\r\n\r\n"
)


@settings(max_examples=30, deadline=None)
@given(st.binary(max_size=30), cuts)
def test_the_answer_of_a_deployed_server(behind: bytes, places: list[int]) -> None:
    for pieces in every_chunking(DEPLOYED_200 + behind, places):
        done = parse_response(*pieces)
        assert done is not None
        head, rest = done
        assert (head.status, head.reason) == (200, "OK")
        assert head.headers["x-tun-conf"] == "3AUYCgoAAg=="
        assert isinstance(head.body(), ChunkedBody)
        assert rest == behind


@table(
    "raw status reason body",
    ("no reason phrase", b"HTTP/1.1 200 \r\n\r\n", 200, "", CloseBody),
    ("nor the blank before it", b"HTTP/1.1 200\r\n\r\n", 200, "", CloseBody),
    ("HTTP/1.0, ended by the connection", b"HTTP/1.0 200 OK\r\nx-tun-conf: a\r\n\r\n", 200, "OK", CloseBody),
    ("with a length", b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\n\r\n", 403, "Forbidden", LengthBody),
    ("100 first", b"HTTP/1.1 100 Continue\r\n\r\n" + DEPLOYED_200, 200, "OK", ChunkedBody),
    ("more first", b"HTTP/1.1 102 P\r\nA: b\r\n\r\nHTTP/1.1 103 E\r\n\r\n" + DEPLOYED_200, 200, "OK", ChunkedBody),
    ("latin-1", b"HTTP/1.1 502 caf\xe9\r\n\r\n", 502, "caf\u00e9", CloseBody),
    ("the highest status", b"HTTP/1.1 999 X\r\n\r\n", 999, "X", CloseBody),
)  # fmt: skip
def test_response(raw: bytes, status: int, reason: str, body: type) -> None:
    for pieces in every_chunking(raw + b"rest", [4, 40]):
        done = parse_response(*pieces)
        assert done is not None
        head, rest = done
        assert (head.status, head.reason, rest) == (status, reason, b"rest")
        assert isinstance(head.body(), body)


@table(
    "raw",
    ("no HTTP at all", b"SSH-2.0-OpenSSH_9.2\r\n\r\n"),
    ("a request", DEPLOYED_GET),
    ("HTTP/1", b"HTTP/1 200 OK\r\n\r\n"),
    ("status of two digits", b"HTTP/1.1 20 OK\r\n\r\n"),
    ("status of four digits", b"HTTP/1.1 2000 OK\r\n\r\n"),
    ("status 000", b"HTTP/1.1 000 X\r\n\r\n"),
    ("a switch of protocols that nobody asked for", b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n"),
    ("CL and TE", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ("CL twice", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n"),
    ("CL beyond what int() takes", b"HTTP/1.1 200 OK\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n"),
    ("gzip", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n"),
    ("NUL", b"HTTP/1.1 200 OK\r\nX: \0\r\n\r\n"),
    ("a head that does not end", b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD_BYTES),
    ("an empty line first", b"\r\n" + DEPLOYED_200),
)
def test_response_refused(raw: bytes) -> None:
    for pieces in every_chunking(raw, [4, 40]):
        with pytest.raises(PeerError):
            parse_response(*pieces)


@settings(max_examples=150, deadline=None)
@given(hostile, cuts, st.sampled_from(["GET", "PUT"]))
def test_any_answer_raises_peer_error_at_most_and_alike_under_every_split(
    data: bytes, places: list[int], method: str
) -> None:
    outcomes: list[object] = []
    for pieces in every_chunking(data, places):
        try:
            done = parse_response(*pieces, method=method)
        except PeerError as exc:
            outcomes.append(exc.reason)
        else:
            outcomes.append(done)
            if done is not None:
                done[0].body()
    assert all(outcome == outcomes[0] for outcome in outcomes)


# ------------------------------------------------------------------ what we write


def test_encode_request_reads_back() -> None:
    raw = encode_request("PUT", "/ip?a=b", [("Host", "h:81"), ("x-api-key", "t"), ("Transfer-Encoding", "chunked")])
    assert raw == b"PUT /ip?a=b HTTP/1.1\r\nHost: h:81\r\nx-api-key: t\r\nTransfer-Encoding: chunked\r\n\r\n"
    head = parsed(raw)
    assert (head.method, head.target) == ("PUT", "/ip?a=b")
    assert isinstance(head.body(), ChunkedBody)


@pytest.mark.parametrize("token", ["a\r\nX: y", "a\nb", "a\0b"])
def test_encode_request_cannot_be_split(token: str) -> None:
    with pytest.raises(h11.LocalProtocolError):
        encode_request("GET", "/", [("Host", "h"), ("x-api-key", token)])


@pytest.mark.parametrize("status", [status for status in REASONS if status >= 200])
def test_encode_response_reads_back(status: int) -> None:
    done = parse_response(encode_response(status, [("x-tun-conf", "a"), ("Content-Length", "3")]) + b"ok\n")
    assert done is not None
    assert done[0] == ResponseHead(status, REASONS[status], {"x-tun-conf": "a", "content-length": "3"})
    assert done[1] == b"ok\n"


def test_encode_100() -> None:
    assert encode_response(100, []) == b"HTTP/1.1 100 Continue\r\n\r\n"


@table(
    "fields tokens",
    ("none", [], []),
    ("the key", ["x-api-key: a"], ["a"]),
    ("a bearer token", ["Authorization: Bearer a"], ["a"]),
    ("the scheme in any case, and more than one space", ["authorization: bEARER   a b"], ["a b"]),
    ("both, the key first", ["Authorization: Bearer b", "x-api-key: a"], ["a", "b"]),
    ("a login that is another's", ["Authorization: Basic dTpw", "x-api-key: a"], ["a"]),
    ("a scheme alone", ["Authorization: Bearer"], []),
)
def test_where_a_token_may_be(fields: list[str], tokens: list[str]) -> None:
    head = parsed(request("GET / HTTP/1.1", *fields))
    assert head.tokens == tokens
    assert "Bearer" not in repr(head)
    assert "x-api-key" not in repr(head)


@given(
    st.sampled_from([b"\x15", b"\x16", b"\x15\x02", b"\x15\x03\x01\0\2\2\x46", b"\x16\x03\x01\r\n\r\n"]),
    st.binary(max_size=8),
)
def test_what_may_be_tls_is_judged_alike_in_every_split(begin: bytes, rest: bytes) -> None:
    def verdict(pieces: list[bytes]) -> str:
        parser = ResponseParser("GET")
        try:
            assert all(parser.feed(piece) is None for piece in [*pieces, b""])
        except PeerError as exc:
            return exc.reason
        return "nothing"

    data = begin + rest
    expected = "tls" if data[1:2] == b"\x03" else "closed" if len(data) == 1 else "bad-response"
    assert {verdict([data]), verdict([bytes([byte]) for byte in data])} == {expected}
