"""The admin listener's routes: who may use them, what they answer, and what they do."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator
from functools import partial
from itertools import count
from typing import Final

import msgspec
import pytest
import trio
import trio.testing

from tapotun_trio import __version__
from tapotun_trio.admin import limits
from tapotun_trio.admin.access import MAX_SESSIONS, NO_TOKEN, READ_ONLY, SESSION_S, Access
from tapotun_trio.admin.api import Permission, join_cooperatively
from tapotun_trio.config.model import Secret, TokenHash
from tapotun_trio.control.handlers import Process, process_status
from tapotun_trio.errors import HostError
from tapotun_trio.http.heads import RequestHead
from tapotun_trio.lifecycle.registry import Registry
from tapotun_trio.lifecycle.supervisor import run_interfaces
from tapotun_trio.log import client_logger, interface_logger, process_logger
from tapotun_trio.peer.boottime import boottime
from tapotun_trio.reload import RefusedError
from tapotun_trio.server.status import PEERS_PER_STEP
from tapotun_trio.status.model import ProcessStatus

from ..fakes import MemoryHost
from ..tables import table
from .admin import BEARER, ORIGIN, PAGE, READ_TOKEN, READER, TOKEN, World, opened
from .support import allowed, client_config, free_port, server_config

ACTIONS: Final = [("/api/disconnect", b'{"client": "a"}'), ("/api/reload", b"{}")]
WATCHED: Final = ["/metrics", "/api/session", "/api/status", "/api/events", "/api/history", "/api/live"]


# ------------------------------------------------------------------ health


async def test_health() -> None:
    async with opened() as world:
        answer = await world.ask("GET", "/healthz?x=1")
        assert (answer.status, answer.body) == (200, b"ok\n")
        assert answer.headers["content-type"] == "text/plain; charset=utf-8"
        assert (await world.ask("GET", "http://127.0.0.1:9433/healthz?x=/metrics")).body == b"ok\n"
        head = await world.ask("HEAD", "/healthz")
        assert (head.status, head.headers["content-length"], head.body) == (200, "3", b"")


async def test_readiness_has_its_reasons() -> None:
    async with opened() as world:
        answer = await world.ask("GET", "/readyz")
        assert (answer.status, answer.body) == (503, b"no interface runs yet\n")
        record = world.registry.add(server_config(8080))
        world.registry.add(client_config("tun0", 8080))
        record.failed("cannot listen:\nthe port is in use")
        answer = await world.ask("GET", "/readyz")
        assert (answer.status, answer.body.decode().splitlines()) == (
            503,
            ["hub: failed: cannot listen:\\u000athe port is in use", "tun0: starting"],
        )


# ------------------------------------------------------------------ who may


@pytest.mark.parametrize("path", WATCHED)
async def test_who_watches_shows_the_token_or_has_a_session(path: str) -> None:
    async with opened() as world:
        stranger = await world.ask("GET", path)
        assert (stranger.status, stranger.headers["www-authenticate"]) == (401, "Bearer")
        browser = await world.browser()
        forged = await world.ask("GET", path, {"cookie": "tapotun_session=" + "A" * 43})
        assert forged.status == 401
        allowed_in = 426 if path == "/api/live" else 200
        for headers in (
            BEARER,
            {"x-api-key": TOKEN},
            {"authorization": "bearer " + TOKEN},
            {"x-api-key": "wrong", **BEARER},
            {"cookie": browser.cookie, "origin": ORIGIN},
            {"cookie": f"a=b; {browser.cookie}", "origin": ORIGIN, "authorization": "Basic eDp5"},
        ):
            assert (await world.ask("GET", path, headers)).status == allowed_in, headers
        # A token that is shown is judged, whatever else there is.
        both = await world.ask("GET", path, {"x-api-key": "wrong", "cookie": browser.cookie, "origin": ORIGIN})
        assert both.status == 401


@pytest.mark.parametrize(("path", "body"), ACTIONS)
async def test_who_acts_shows_the_token_or_comes_from_a_page_of_ours(path: str, body: bytes) -> None:
    async with opened() as world:
        browser = await world.browser()
        ask = partial(world.ask, "POST", path, body=body)
        done = 200 if path == "/api/reload" else 404
        assert (await ask({})).status == 401
        assert (await ask(browser.headers())).status == done
        assert (await ask(BEARER)).status == done  # no browser adds this by itself
        for name, wrong in (
            ("no CSRF token", browser.headers(x_csrf_token=None)),
            ("another session's", browser.headers(x_csrf_token=(await world.browser()).csrf)),
            ("an empty one", browser.headers(x_csrf_token="")),
            ("one beyond ASCII", browser.headers(x_csrf_token="\xe9")),
            ("no Origin", browser.headers(origin=None)),
            ("another Origin", browser.headers(origin="https://evil.example.com")),
            ("nobody's page", browser.headers(origin="null")),
            ("another Host", browser.headers(host="evil.example.com")),
        ):
            answer = await ask(wrong)
            assert answer.status == 403, name
            assert set(answer.json) == {"error"}
        assert world.reloads == [False] * (2 if path == "/api/reload" else 0)


def with_a_reader() -> World:
    return World(read_token=Secret(READ_TOKEN))


@pytest.mark.parametrize("path", WATCHED)
async def test_the_read_only_token_opens_what_is_only_read(path: str) -> None:
    async with opened(with_a_reader) as world:
        browser = await world.browser(READ_TOKEN)
        expected = 426 if path == "/api/live" else 200
        for headers in (READER, {"x-api-key": READ_TOKEN}, {"cookie": browser.cookie, "origin": ORIGIN}, BEARER):
            assert (await world.ask("GET", path, headers)).status == expected, headers
        assert (await world.ask("GET", path, {"x-api-key": "wrong"})).status == 401


@pytest.mark.parametrize(("path", "body"), ACTIONS)
async def test_the_read_only_token_changes_nothing(path: str, body: bytes) -> None:
    async with opened(with_a_reader) as world:
        reader = await world.browser(READ_TOKEN)
        for headers in (READER, {"x-api-key": READ_TOKEN}, reader.headers()):
            answer = await world.ask("POST", path, headers, body)
            assert (answer.status, answer.json) == (403, {"error": READ_ONLY})
        assert world.reloads == []
        # The full token still may, also beside the other one.
        done = 200 if path == "/api/reload" else 404
        for headers in (BEARER, {**BEARER, "x-api-key": READ_TOKEN}, (await world.browser()).headers()):
            assert (await world.ask("POST", path, headers, body)).status == done


async def test_no_action_is_open_to_the_read_only_token() -> None:
    """Whatever is added to the API later: a reader gets to nothing but GET, and the end of its own session."""
    exempt = {"/api/login", "/api/logout"}
    async with opened() as world:
        routes = world.apis[0].routes
    for path, methods in routes.items():
        for method, (permission, _) in methods.items():
            assert method == "GET" or permission is Permission.ACTORS or path in exempt, path


async def test_a_reader_knows_what_it_is_and_logs_out(caplog: pytest.LogCaptureFixture) -> None:
    async with opened(with_a_reader) as world:
        reader = await world.browser(READ_TOKEN)
        assert "logged in, read-only" in caplog.text
        for headers, may_act in (
            (READER, False),
            ({"cookie": reader.cookie}, False),
            (BEARER, True),
            ({"cookie": (await world.browser()).cookie}, True),
        ):
            assert (await world.ask("GET", "/api/session", headers)).json["may_act"] is may_act
        assert (await world.ask("POST", "/api/logout", reader.headers(x_csrf_token=None))).status == 403
        assert (await world.ask("POST", "/api/logout", reader.headers())).status == 204
        assert (await world.ask("GET", "/api/status", {"cookie": reader.cookie})).status == 401
        assert READ_TOKEN not in caplog.text


async def test_with_a_read_only_token_alone_nobody_acts() -> None:
    async with opened(lambda: World(None, read_token=Secret(READ_TOKEN))) as world:
        assert (await world.ask("GET", "/")).status == 200
        assert (await world.ask("GET", "/metrics")).status == 401
        assert (await world.ask("GET", "/metrics", READER)).status == 200
        assert (await world.ask("POST", "/api/reload", READER, b"{}")).status == 403
        assert (await world.ask("POST", "/api/reload", BEARER, b"{}")).status == 401


async def test_a_websocket_from_another_sites_page_is_refused() -> None:
    async with opened() as world:
        browser = await world.browser()
        for origin in (None, "https://evil.example.com"):
            answer = await world.ask("GET", "/api/live", browser.headers(origin=origin))
            assert answer.status == 403


async def test_without_a_token_only_what_is_open_is_there() -> None:
    async with opened(lambda: World(token=None)) as world:
        assert (await world.ask("GET", "/healthz")).status == 200
        assert (await world.ask("GET", "/metrics")).status == 200
        for method, path in (
            ("GET", "/"),
            ("GET", "/panel.js"),
            ("GET", "/api/status"),
            ("GET", "/api/live"),
            ("POST", "/api/reload"),
        ):
            answer = await world.ask(method, path, BEARER)
            assert answer.status == 403
            assert NO_TOKEN.encode() in answer.body.replace(b"\\", b"")
        answer = await world.ask("POST", "/api/login", body=b'{"token": ""}')
        assert (answer.status, answer.json) == (403, {"error": NO_TOKEN})
        assert world.reloads == []


def head(**headers: str) -> RequestHead:
    return RequestHead("GET", "/", "1.1", {name.replace("_", "-"): value for name, value in headers.items()})


@table(
    "token",
    ("raw", Secret(TOKEN)),
    ("SHA-1", TokenHash("sha1", hashlib.sha1(TOKEN.encode()).hexdigest())),
    ("SHA-256", TokenHash("sha256", hashlib.sha256(TOKEN.encode()).hexdigest())),
)
def test_a_token_in_every_form(token: TokenHash | Secret) -> None:
    access = Access(token)
    assert access.see(head(x_api_key=TOKEN), "a", 0.0).session is None
    digest = token.digest if isinstance(token, TokenHash) else hashlib.sha256(TOKEN.encode()).hexdigest()
    for wrong in (TOKEN[:-1], TOKEN + "x", digest, f"sha256:{digest}", "\xe9"):
        with pytest.raises(Exception, match="not the admin token"):
            access.see(head(x_api_key=wrong), wrong, 0.0)
    assert TOKEN not in repr(vars(access))


# ------------------------------------------------------------------ sessions


async def test_login_and_logout() -> None:
    async with opened() as world:
        answer = await world.ask("POST", "/api/login", body=json.dumps({"token": TOKEN}).encode())
        name, *attributes = answer.headers["set-cookie"].split("; ")
        assert name.startswith("tapotun_session=")
        assert sorted(attributes) == ["HttpOnly", "Max-Age=43200", "Path=/", "SameSite=Strict"]
        browser = await world.browser()
        session = await world.ask("GET", "/api/session", {"cookie": browser.cookie})
        about = {"name": "hub", "version": __version__, "pid": session.json["pid"]}
        assert session.json == {"csrf": browser.csrf, "may_act": True, **about}
        assert session.headers["cache-control"] == "no-store"
        assert (await world.ask("POST", "/api/logout", browser.headers(x_csrf_token=None))).status == 403
        gone = await world.ask("POST", "/api/logout", browser.headers())
        assert (gone.status, gone.body) == (204, b"")
        assert gone.headers["set-cookie"].startswith("tapotun_session=; Max-Age=0;")
        assert (await world.ask("GET", "/api/session", {"cookie": browser.cookie})).status == 401
        assert (await world.ask("POST", "/api/logout", BEARER)).status == 400


async def test_a_login_by_https_gets_a_cookie_for_https_only() -> None:
    async with opened() as world:
        for proto, secure in (("https", True), ("HTTPS", True), ("http", False), ("https, http", False)):
            body = json.dumps({"token": TOKEN}).encode()
            answer = await world.ask("POST", "/api/login", {"x-forwarded-proto": proto}, body)
            assert answer.headers["set-cookie"].endswith("; Secure") is secure


async def test_a_login_from_another_sites_page_is_refused() -> None:
    async with opened() as world:
        body = json.dumps({"token": TOKEN}).encode()
        assert (await world.ask("POST", "/api/login", {"origin": "https://evil"}, body)).status == 403


async def test_a_session_has_an_end(autojump_clock: trio.testing.MockClock) -> None:
    async with opened() as world:
        browser = await world.browser()
        await trio.sleep(SESSION_S - 1)
        assert (await world.ask("GET", "/api/session", {"cookie": browser.cookie})).status == 200
        await trio.sleep(2)
        assert (await world.ask("GET", "/api/session", {"cookie": browser.cookie})).status == 401


def test_sessions_are_few() -> None:
    access = Access(Secret(TOKEN))
    found = [access.log_in(TOKEN, head(), "a", float(number))[0] for number in range(MAX_SESSIONS + 1)]
    assert len(access.sessions) == MAX_SESSIONS
    for identifier, ended in ((found[0], True), (found[1], False), (found[-1], False)):
        request = head(cookie=f"tapotun_session={identifier}")
        if ended:
            with pytest.raises(Exception, match="not logged in"):
                access.see(request, "a", 100.0)
        else:
            assert access.see(request, "a", 100.0).session is not None
    access.log_in(TOKEN, head(), "a", 100.0 + SESSION_S)
    assert len(access.sessions) == 1


async def test_a_wrong_token_is_told_and_too_many_are_not_looked_at(autojump_clock: trio.testing.MockClock) -> None:
    async with opened() as world:
        for _ in range(limits.ADDRESS_BURST):
            answer = await world.ask("POST", "/api/login", body=b'{"token": "guess"}')
            assert (answer.status, answer.json) == (401, {"error": "this is not the admin token"})
        body = json.dumps({"token": TOKEN}).encode()
        for answer in (await world.ask("POST", "/api/login", body=body), await world.ask("GET", "/metrics", BEARER)):
            assert answer.status == 429
            assert 0 < int(answer.headers["retry-after"]) <= limits.ADDRESS_INTERVAL_S
        # Who comes through the proxy from elsewhere is somebody else.
        other = await world.ask("POST", "/api/login", {"x-forwarded-for": "203.0.113.7"}, body)
        assert other.status == 204
        await trio.sleep(limits.ADDRESS_INTERVAL_S)
        assert (await world.ask("POST", "/api/login", body=body)).status == 204


async def test_nobody_is_locked_out_while_others_try_tokens() -> None:
    async with opened() as world:
        browser = await world.browser()
        for number in range(100):
            await world.ask("GET", "/metrics", {"x-api-key": "guess", "x-forwarded-for": f"203.0.113.{number}"})
        fresh = {"x-forwarded-for": "10.9.8.7"}
        assert (await world.ask("GET", "/metrics", {"x-api-key": TOKEN, **fresh})).status == 200
        login = await world.ask(
            "POST", "/api/login", {"x-forwarded-for": "10.9.8.8"}, json.dumps({"token": TOKEN}).encode()
        )
        assert login.status == 204
        assert (await world.ask("GET", "/api/status", {"cookie": browser.cookie})).status == 200
        assert (await world.ask("GET", "/metrics", BEARER)).status == 200  # from where the token was shown before


# ------------------------------------------------------------------ pages


async def test_pages() -> None:
    async with opened() as world:
        page = await world.ask("GET", "/")
        assert (page.status, page.body, page.headers["etag"]) == (200, PAGE.body, PAGE.tag)
        policy = page.headers["content-security-policy"]
        for part in ("default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "base-uri 'none'"):
            assert part in policy
        assert "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "no-referrer"
        again = await world.ask("GET", "/", {"if-none-match": page.headers["etag"]})
        assert (again.status, again.body, again.headers["etag"]) == (304, b"", PAGE.tag)
        assert (await world.ask("GET", "/panel.js")).headers["content-type"] == "text/javascript; charset=utf-8"


async def test_what_is_not_there() -> None:
    async with opened() as world:
        for path in ("/panel", "/../etc/passwd", "/%2e%2e/x", "//", "/index.html", "*", "/static/panel.js"):
            answer = await world.ask("GET", path)
            assert (answer.status, answer.headers["content-type"]) == (404, "text/plain; charset=utf-8")
        assert (await world.ask("GET", "/api/nothing")).json == {"error": "there is no such page"}


async def test_another_method() -> None:
    async with opened() as world:
        for method, path, allow in (
            ("POST", "/healthz", "GET, HEAD"),
            ("GET", "/api/login", "POST"),
            ("DELETE", "/", "GET, HEAD"),
            ("PUT", "/api/reload", "POST"),
        ):
            answer = await world.ask(method, path, BEARER)
            assert (answer.status, answer.headers["allow"]) == (405, allow)


# ------------------------------------------------------------------ what they do


async def test_status_and_metrics_of_running_interfaces() -> None:
    port, registry, host = free_port(), Registry(), MemoryHost()
    async with opened(lambda: World(registry=registry)) as world, trio.open_nursery() as nursery:
        await nursery.start(run_interfaces, [server_config(port, allowed("laptop", "10.10.0.2"))], host, registry)
        status = (await world.ask("GET", "/api/status", BEARER)).json
        assert (status["name"], status["version"], status["config_file"]) == (
            "hub",
            __version__,
            "/etc/tapotun/hub.json",
        )
        assert [peer["name"] for peer in status["interfaces"][0]["peers"]] == ["laptop"]
        assert (await world.ask("GET", "/readyz")).body == b"ready\n"
        metrics = await world.ask("GET", "/metrics", {**BEARER, "accept": "application/openmetrics-text"})
        assert metrics.headers["content-type"].startswith("application/openmetrics-text")
        assert metrics.body.endswith(b"# EOF\n")
        assert b'client="laptop"' in metrics.body
        answer = await world.ask("POST", "/api/disconnect", BEARER, b'{"client": "laptop", "interface": null}')
        assert (answer.status, answer.json) == (200, {"sessions": 0})
        answer = await world.ask("POST", "/api/disconnect", BEARER, b'{"client": "laptop", "interface": "tun9"}')
        assert (answer.status, answer.json) == (404, {"error": "there is no interface tun9 here; running: hub"})
        nursery.cancel_scope.cancel()


async def test_a_config_file_of_any_name() -> None:
    """Some are older than UTF-8."""
    process = Process("hub", os.fsdecode(b"/etc/b\xfcro.json"), boottime())
    status = await process_status(process, Registry(), [])
    assert json.loads(msgspec.json.encode(status))["config_file"] == "/etc/b\\udcfcro.json"


async def test_a_status_of_many_peers_lets_others_run_meanwhile() -> None:
    registry, host = Registry(), MemoryHost()
    clients = [allowed(f"c{number}", f"10.10.0.{number + 2}") for number in range(200)]
    async with opened(lambda: World(registry=registry)) as world, trio.open_nursery() as nursery:
        await nursery.start(run_interfaces, [server_config(free_port(), *clients)], host, registry)
        turns = 0

        async def count_turns() -> None:
            nonlocal turns
            while True:
                await trio.lowlevel.checkpoint()
                turns += 1

        with trio.CancelScope() as scope:
            async with trio.open_nursery() as counting:
                counting.start_soon(count_turns)
                while not turns:
                    await trio.lowlevel.checkpoint()
                before = turns
                status = await process_status(Process("hub", "/x", boottime()), registry, [])
                assert turns - before >= 200 // PEERS_PER_STEP - 1  # either may run first
                scope.cancel()
        [interface] = status.interfaces
        assert [peer.name for peer in interface.peers] == [client.name for client in clients]
        assert (await world.ask("GET", "/api/status", BEARER)).json["interfaces"][0]["peers"][199]["name"] == "c199"
        nursery.cancel_scope.cancel()


@table(
    "others_ms turns",
    ("nobody else has much to do", 0.01, [3] * 33),
    ("they take as long", 2.0, [3, *[9] * 10]),
    ("they are many", 50.0, [3, *[17] * 5]),
)
async def test_metrics_are_made_in_turns_with_the_others(
    others_ms: float, turns: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Short ones while others have little to do, or packets would wait; longer ones while all is busy, or a scrape
    would take a turn of all the others for every few lines."""
    now_s, found, made = 0.0, list[int](), 0

    def parts() -> Iterator[bytes]:
        nonlocal now_s, made
        for _ in range(100):
            now_s += 2**-12  # a quarter of a millisecond
            made += 1
            yield b"x"

    async def others() -> None:
        nonlocal now_s, made
        found.append(made)
        made = 0
        now_s += others_ms / 1e3

    monkeypatch.setattr("tapotun_trio.admin.api.perf_counter", lambda: now_s)
    monkeypatch.setattr("trio.lowlevel.checkpoint", others)
    assert await join_cooperatively(parts()) == b"x" * 100
    assert found == turns


async def test_metrics_are_made_for_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a packet would wait for a part of each of them, and the memory hold all of them."""
    begun, most = 0, 0

    def render(status: ProcessStatus, accept: str | None) -> tuple[Iterator[bytes], str]:
        def parts() -> Iterator[bytes]:
            nonlocal begun, most
            begun += 1
            most = max(most, begun)
            yield from (b"a", b"b", b"c")
            begun -= 1

        return parts(), "text/plain"

    monkeypatch.setattr("tapotun_trio.admin.api.render_in_parts", render)
    monkeypatch.setattr("tapotun_trio.admin.api.perf_counter", count().__next__)  # a turn for each part
    async with opened() as world, trio.open_nursery() as nursery:

        async def scrape() -> None:
            assert (await world.ask("GET", "/metrics", BEARER)).body == b"abc"

        for _ in range(20):
            nursery.start_soon(scrape)
    assert (begun, most) == (0, 1)


async def test_reload() -> None:
    async with opened() as world:
        ask = partial(world.ask, "POST", "/api/reload", BEARER)
        assert (await ask(b'{"dry_run": true}')).json == {"changes": ["hub: mtu changed"]}
        assert (await ask()).json == {"changes": ["hub: mtu changed"]}
        assert world.reloads == [True, False]
        for failure in (RefusedError("nothing was changed: [0].mtu"), HostError("still starting")):
            world.reload_fails = failure
            answer = await ask(b"{}")
            assert (answer.status, answer.json) == (409, {"error": str(failure)})


async def test_events() -> None:
    async with opened() as world:
        process_logger().info("one\nline")
        interface_logger("tun0").warning("two")
        client_logger("hub", "laptop").error("three %s", 3)
        process_logger().debug("not kept")
        events = (await world.ask("GET", "/api/events", BEARER)).json["events"]
        assert [(it["number"], it["level"], it["interface"], it["text"]) for it in events] == [
            (1, "info", None, "one\\u000aline"),
            (2, "warning", "tun0", "two"),
            (3, "error", "hub", "laptop: three 3"),
        ]
        assert all(it["at"].endswith("Z") and len(it["at"]) == 20 for it in events)
        for number in range(300):
            process_logger().info("%s", f"{number} " + "x" * 5000)
        kept = (await world.ask("GET", "/api/events", BEARER)).json["events"]
        assert [it["number"] for it in kept] == list(range(104, 304))
        assert all(len(it["text"]) <= 1000 for it in kept)


async def test_what_is_done_is_logged_and_no_token_is(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("tapotun")
    logger.addHandler(caplog.handler)
    try:
        async with opened() as world:
            browser = await world.browser()
            await world.ask("POST", "/api/reload", browser.headers(), b"{}")
            await world.ask("POST", "/api/login", body=b'{"token": "a-guess"}')
            await world.ask("GET", f"/healthz?token={TOKEN}")
    finally:
        logger.removeHandler(caplog.handler)
    assert "logged in" in caplog.text
    assert "requested a reload" in caplog.text
    assert "sent a wrong token" in caplog.text
    for secret in (TOKEN, browser.cookie.partition("=")[2], browser.csrf, "a-guess"):
        assert secret not in caplog.text


async def test_several_requests_over_one_connection() -> None:
    async with opened() as world:
        client = world.client()
        for _ in range(3):
            assert (await client.ask("GET", "/healthz")).status == 200
            assert (await client.ask("GET", "/metrics")).status == 401
            assert (await client.ask("POST", "/api/reload", BEARER, b"{}")).status == 200
            assert (await client.ask("POST", "/api/login", body=b"[]")).status == 400
        closing = await client.ask("GET", "/healthz", {"connection": "close"})
        assert closing.headers["connection"] == "close"
        assert await client.connection.read_all() == b""
