"""admin.browser and admin.limits: what browsers say, in every form, and how often a wrong token may be shown."""

from __future__ import annotations

import secrets
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tapotun_trio.admin import limits
from tapotun_trio.admin.access import Refused
from tapotun_trio.admin.answers import decode
from tapotun_trio.admin.api import Login
from tapotun_trio.admin.browser import is_same_origin, limited_as, session_ids
from tapotun_trio.admin.limits import MAX_ADDRESSES, Limiter
from tapotun_trio.admin.pages import Page, read_pages
from tapotun_trio.control.protocol import DisconnectArguments, ReloadArguments

from ..tables import table

ID: Final = secrets.token_urlsafe(32)
OTHER: Final = secrets.token_urlsafe(32)

# What may stand in a header: h11 lets nothing else pass.
VALUES: Final = st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"))
PIECES: Final = st.lists(
    st.sampled_from(["tapotun_session", "=", ID, ";", ",", " ", '"', "a=b", "Tapotun_session="]) | VALUES, max_size=12
).map("".join)


# ------------------------------------------------------------------ cookies


@table(
    "header found",
    ("alone", f"tapotun_session={ID}", [ID]),
    ("among others", f"a=b; tapotun_session={ID}; c=d", [ID]),
    ("joined by a proxy", f"a=b, tapotun_session={ID}", [ID]),
    ("no space", f"a=b;tapotun_session={ID}", [ID]),
    ("twice", f"tapotun_session={ID}; tapotun_session={OTHER}", [ID, OTHER]),
    ("none", "a=b", []),
    ("empty", "", []),
    ("no value", "tapotun_session=", []),
    ("another name", f"x_tapotun_session={ID}; tapotun_sessions={ID}; TAPOTUN_SESSION={ID}", []),
    ("too short", f"tapotun_session={ID[1:]}", []),
    ("too long", f"tapotun_session={ID}a", []),
    ("other letters", f"tapotun_session={ID[1:]}+", []),
    ("letters that only look so", f"tapotun_session={ID[1:]}\xb5", []),
    ("behind many", "a=b;" * 100 + f"tapotun_session={ID}", []),
)
def test_cookies(header: str, found: list[str]) -> None:
    assert session_ids({"cookie": header}) == found


def test_no_cookie() -> None:
    assert session_ids({}) == []


@given(PIECES)
def test_no_cookie_header_raises(header: str) -> None:
    for found in session_ids({"cookie": header}):
        assert len(found) == 43
        assert found in header


@given(
    st.lists(
        st.tuples(st.from_regex(r"[a-z]{1,9}", fullmatch=True), st.from_regex(r"[A-Za-z0-9]*", fullmatch=True)),
        max_size=20,
    )
)
def test_ours_is_found_wherever_it_stands(others: list[tuple[str, str]]) -> None:
    pairs = [f"{name}={value}" for name, value in others]
    for at in range(len(pairs) + 1):
        header = "; ".join([*pairs[:at], f"tapotun_session={ID}", *pairs[at:]])
        assert session_ids({"cookie": header}) == [ID]


# ------------------------------------------------------------------ Origin


@table(
    "origin host same",
    ("plain", "http://127.0.0.1:9090", "127.0.0.1:9090", True),
    ("behind a proxy that ends TLS", "https://admin.example.com", "admin.example.com", True),
    ("its port", "https://admin.example.com:8443", "admin.example.com:8443", True),
    ("capitals", "https://ADMIN.example.com", "admin.EXAMPLE.com", True),
    ("https has a port of its own", "https://h", "h:443", True),
    ("http too", "http://h:80", "h", True),
    ("IPv6", "http://[::1]:9090", "[::1]:9090", True),
    ("another host", "https://evil.example.com", "admin.example.com", False),
    ("another port", "http://127.0.0.1:9091", "127.0.0.1:9090", False),
    ("a port that is the other scheme's", "http://h:443", "h", False),
    ("a longer host", "https://admin.example.com.evil", "admin.example.com", False),
    ("a user name", "https://admin.example.com@evil", "admin.example.com", False),
    ("a host as its user name", "https://evil@admin.example.com", "admin.example.com", False),
    ("a path", "https://h/", "h", False),
    ("a page of nobody", "null", "null", False),
    ("empty", "", "", False),
    ("no scheme", "h", "h", False),
    ("no host in it", "https://", "", False),
    ("another scheme", "chrome-extension://h", "h", False),
    ("two", "https://h https://h", "h", False),
    ("a list", "https://h, https://h", "h", False),
)
def test_origins(origin: str, host: str, same: bool) -> None:
    assert is_same_origin({"origin": origin, "host": host}) is same


def test_without_an_origin_or_a_host() -> None:
    assert not is_same_origin({"host": "h"})
    assert not is_same_origin({"origin": "https://h"})


@given(VALUES, VALUES)
def test_no_origin_raises(origin: str, host: str) -> None:
    if is_same_origin({"origin": origin, "host": host}):
        assert host.lower().partition(":")[0] in origin.lower()


@given(st.from_regex(r"[a-z0-9.-]{1,20}(:[0-9]{1,5})?", fullmatch=True), st.sampled_from(["http", "https"]))
def test_the_same_host_is_the_same_origin(host: str, scheme: str) -> None:
    assert is_same_origin({"origin": f"{scheme}://{host}", "host": host})
    assert not is_same_origin({"origin": f"{scheme}://x{host}", "host": host})


# ------------------------------------------------------------------ whose failures


@table(
    "remote headers name",
    ("directly", "192.0.2.7", {}, "192.0.2.7"),
    ("a stranger's word is nothing", "192.0.2.7", {"x-forwarded-for": "203.0.113.1"}, "192.0.2.7"),
    ("this machine", "127.0.0.1", {}, "127.0.0.1"),
    ("a proxy on this machine", "127.0.0.1", {"x-forwarded-for": "9.9.9.9, 203.0.113.1"}, "203.0.113.1"),
    ("with a port", "::1", {"forwarded": 'for="203.0.113.1:4711"'}, "203.0.113.1"),
    ("IPv6 with a port", "::1", {"forwarded": 'for="[2001:db8:1:2:3::4]:4711"'}, "2001:db8:1:2:3::4"),
    ("IPv6", "2001:db8:1:2:3::4", {}, "2001:db8:1:2:3::4"),
    ("IPv4 in IPv6", "::ffff:192.0.2.7", {}, "192.0.2.7"),
    ("a proxy's socket", None, {"x-forwarded-for": "203.0.113.1"}, "203.0.113.1"),
    ("a socket", None, {}, "unix"),
    ("hidden by the proxy", None, {"forwarded": "for=_hidden"}, "unix"),
    ("nonsense", "127.0.0.1", {"x-forwarded-for": "'; drop table"}, "127.0.0.1"),
    ("gone", "", {}, "unknown"),
    ("link-local", "fe80::1%eth0", {}, "fe80::1%eth0"),
    ("link-local, a zone of any text", "fe80::1%\0 \n", {}, "fe80::1%\0 \n"),
    ("a zone that cannot be", "fe80::1%a%b", {}, "unknown"),
    ("a zone where none belongs", "::1%lo", {}, "::1"),
    ("a zone of any text", "::%\0\n", {"x-forwarded-for": "::1"}, "::"),
)
def test_whose_failures(remote: str | None, headers: dict[str, str], name: str) -> None:
    assert limited_as(remote, headers) == name


@given(st.sampled_from([None, "127.0.0.1", "::1", "192.0.2.7", "x"]), VALUES, VALUES)
def test_no_header_raises(remote: str | None, forwarded_for: str, forwarded: str) -> None:
    assert limited_as(remote, {"x-forwarded-for": forwarded_for, "forwarded": forwarded})


# ------------------------------------------------------------------ how often


def test_one_address() -> None:
    limiter = Limiter()
    for _ in range(limits.ADDRESS_BURST):
        assert limiter.wait_s("a", 100.0) == 0
        limiter.failed("a", 100.0)
    assert limiter.wait_s("a", 100.0) == limits.ADDRESS_INTERVAL_S
    assert limiter.wait_s("b", 100.0) == 0
    later = 100.0 + limits.ADDRESS_INTERVAL_S
    assert limiter.wait_s("a", later) == 0
    limiter.failed("a", later)
    assert limiter.wait_s("a", later) == limits.ADDRESS_INTERVAL_S


def test_a_fresh_address_is_not_locked_out_by_wrong_tokens_from_ever_new_ones() -> None:
    limiter = Limiter()
    for number in range(10_000):
        limiter.failed(f"a{number}", number / 1000)
    assert limiter.wait_s("operator", 10.0) == 0
    for _ in range(limits.ADDRESS_BURST):
        limiter.failed("operator", 10.0)
    assert limiter.wait_s("operator", 10.0) > 0


@given(st.lists(st.tuples(st.integers(0, 5000).map(str), st.floats(0, 100)), max_size=60))
def test_it_never_waits_for_ever_and_keeps_little(failures: list[tuple[str, float]]) -> None:
    limiter, now = Limiter(), 0.0
    most_s = limits.ADDRESS_BURST * limits.ADDRESS_INTERVAL_S
    for address, step_s in failures:
        now += step_s
        limiter.failed(address, now)
        assert 0 <= limiter.wait_s(address, now) <= most_s
        assert limiter.wait_s(address, now + most_s) == 0


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("::ffff:192.0.2.1", "::ffff:192.0.2.2", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff:ffff:ffff:ffff", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("fe80::1%eth0", "fe80::1%eth1", False),
        ("64:ff9b::192.0.2.1", "64:ff9b::192.0.2.2", False),
        ("@socket", "@other", False),
    ],
)
def test_whose_wrong_tokens_are_counted_together(one: str, other: str, together: bool) -> None:
    limiter = Limiter()
    for _ in range(5):
        limiter.failed(one, 0.0)
    assert limiter.wait_s(one, 0.0) > 0
    assert (limiter.wait_s(other, 0.0) > 0) == together
    assert len(limiter) == 1


@pytest.mark.parametrize(
    ("one", "other", "together"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2::2", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
        ("fe80::1%eth0", "fe80::1%eth1", False),
        ("64:ff9b::c000:201", "64:ff9b::c000:202", False),
    ],
)
def test_connections_whose_wrong_tokens_are_counted_together(one: str, other: str, together: bool) -> None:
    """As the admin listener counts them: `limited_as` must leave to the limiter what it needs."""
    limiter = Limiter()
    for _ in range(limits.ADDRESS_BURST):
        limiter.failed(limited_as(one, {}), 0.0)
    assert (limiter.wait_s(limited_as(other, {}), 0.0) > 0) == together


def test_memory_is_bounded() -> None:
    limiter = Limiter()
    for number in range(3 * MAX_ADDRESSES):
        limiter.failed(str(number), 0.0)
    assert len(limiter) == MAX_ADDRESSES
    assert limiter.wait_s(str(3 * MAX_ADDRESSES - 1), 0.0) == 0


# ------------------------------------------------------------------ bodies and tags

JSON: Final = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["token", "client", "dry_run"]), inner),
    max_leaves=6,
)


@given(st.binary(max_size=60), st.sampled_from([Login, DisconnectArguments, ReloadArguments]))
def test_no_body_raises_anything_else(body: bytes, kind: type) -> None:
    said = ""
    try:
        assert isinstance(decode(body, kind), kind)
    except Refused as exc:
        said = f"{exc.status}: {exc}"
    assert said == "" or said.startswith("400: the body is not a JSON object of: ")


def test_a_body_that_is_wrong_is_not_shown() -> None:
    for body in (b'{"token": "s3cr3t" x', b'{"tokn": "s3cr3t"}', b'["s3cr3t"]', b'{"token": ["s3cr3t"]}', b"[" * 99999):
        with pytest.raises(Refused) as caught:
            decode(body, Login)
        assert str(caught.value) == "the body is not a JSON object of: token"


def test_no_body_is_an_empty_object() -> None:
    assert decode(b"", ReloadArguments) == ReloadArguments(dry_run=False)


@table(
    "header known",
    ("the same", '"1"', True),
    ("weak", 'W/"1"', True),
    ("several", '"0", "1"', True),
    ("any", "*", True),
    ("another", '"2"', False),
    ("none", "", False),
    ("without quotes", "1", False),
)
def test_tags(header: str, known: bool) -> None:
    assert Page(b"", "text/html", '"1"').is_known(header) is known


def test_the_panels_files_are_found_where_it_is_installed() -> None:
    pages = read_pages()
    assert pages["/"].kind.startswith("text/html")
    assert "/index.html" not in pages
    assert len({page.tag for page in pages.values()}) == len(pages)
