"""The admin listener of real daemons, as curl, Prometheus and a panel see it."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import pytest

from tests.harness import Host, Lab, Process, command, ping, tapotun, wait_until
from tests.harness.daemon import ROOT
from tests.integrity import CheckedUdp

from .topologies import (
    CLIENT,
    SERVER,
    STOP_S,
    TUNNEL_CLIENT,
    TUNNEL_SERVER,
    UPLOADING,
    cable,
    client_config,
    running,
    server_config,
    token,
)

pytestmark = pytest.mark.netns

PATIENCE_S: Final = 30.0
PORT: Final = 9090
URL: Final = f"http://127.0.0.1:{PORT}"
ADMIN: Final = token("admin")
BEARER: Final = f"Authorization: Bearer {ADMIN}"


class Answer(NamedTuple):
    status: int
    head: str
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def curl(host: Host, url: str, *options: str) -> Answer:
    """What curl got; status 0: nothing."""
    argv = ["curl", "-sS", "-m", "10", "-i", *options, url]
    found = host.run(argv, check=False, timeout=PATIENCE_S).stdout
    head, _, body = found.partition("\r\n\r\n" if "\r\n\r\n" in found else "\n\n")
    match = re.match(r"HTTP/1\.[01] (\d+)", head)
    return Answer(int(match[1]) if match else 0, head, body)


def write(host: Host, *entries: dict[str, Any], **root: Any) -> Path:
    file = host.tmp / "tapotun.json"
    file.touch(mode=0o600)
    file.write_text(json.dumps({"interfaces": entries, **root}), encoding="utf-8")
    return file


def admin(**changes: Any) -> dict[str, Any]:
    return {"listen": PORT, "token": ADMIN, **changes}


class Session:
    """A browser's, by curl: its cookie, and what it sends with an action."""

    def __init__(self, host: Host, url: str = URL) -> None:
        self.host, self.url = host, url
        answer = curl(host, f"{url}/api/login", "-X", "POST", "-d", json.dumps({"token": ADMIN}))
        assert answer.status == 204, answer
        cookie = re.search(r"(?i)^set-cookie: (tapotun_session=[^;]+); (.*)$", answer.head, re.MULTILINE)
        assert cookie is not None, answer
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie[2].strip().split("; "))
        self.cookie = f"Cookie: {cookie[1]}"
        self.origin = f"Origin: {url}"
        self.csrf = f"X-CSRF-Token: {self.get('/api/session').json['csrf']}"

    def get(self, path: str) -> Answer:
        return curl(self.host, self.url + path, "-H", self.cookie)

    def act(self, path: str, body: dict[str, Any], *, origin: str | None = None, csrf: str | None = None) -> Answer:
        headers = [self.cookie, self.origin if origin is None else origin, self.csrf if csrf is None else csrf]
        options = [option for header in headers for option in ("-H", header)]
        return curl(self.host, self.url + path, "-X", "POST", "-d", json.dumps(body), *options)


@contextmanager
def panel(host: Host, *headers: str, url: str = f"ws://127.0.0.1:{PORT}") -> Iterator[Process]:
    """Follows /api/live."""
    argv = [sys.executable, "-m", "tests.netns.live_panel", f"{url}/api/live", *headers]
    with host.start(argv, name="panel", cwd=ROOT) as process:
        yield process


def messages(process: Process, kind: str) -> list[Any]:
    lines = [line for line in process.log.splitlines() if line.startswith("{") and line.endswith("}")]
    return [found for found in map(json.loads, lines) if found["type"] == kind]


def wait_for_message(process: Process, kind: str, holds: Callable[[Any], bool]) -> Any:
    def look() -> list[Any]:
        return [message for message in messages(process, kind) if holds(message)]

    return wait_until(look, PATIENCE_S, f"a message of the kind {kind}", process.tail)[0]


def test_an_operator_watches_and_acts(lab: Lab) -> None:
    server, client = cable(lab)
    file = write(server, server_config(), admin=admin())
    with running(server, file) as daemon, running(client, client_config(), until=UPLOADING) as laptop:
        # Programs.
        assert curl(server, f"{URL}/healthz")[::2] == (200, "ok\n")
        assert curl(server, f"{URL}/readyz")[::2] == (200, "ready\n")
        assert curl(server, f"{URL}/metrics").status == 401
        metrics = curl(server, f"{URL}/metrics", "-H", BEARER, "-H", "Accept: application/openmetrics-text")
        assert metrics.status == 200
        assert re.search(r'tapotun_client_receive_bytes_total\{[^}]*client="laptop"[^}]*\} [0-9.e+]+', metrics.body)
        assert metrics.body.endswith("# EOF\n")
        assert curl(server, f"{URL}/metrics", "-H", f"x-api-key: {ADMIN}").status == 200
        assert curl(server, f"{URL}/metrics", "-H", "x-api-key: wrong").status == 401
        assert curl(client, f"http://{SERVER}:{PORT}/healthz").status == 0  # loopback only
        # A browser.
        page = curl(server, f"{URL}/")
        assert (page.status, "default-src 'none'" in page.head) == (200, True)
        session = Session(server)
        with panel(server, session.cookie, session.origin) as live:
            ping(client, TUNNEL_SERVER, count=5)

            def has_counted(message: Any) -> bool:
                [peer] = message["status"]["interfaces"][0]["peers"]
                return bool(peer["rx_packets"] >= 5 and peer["state"] == "connected")

            wait_for_message(live, "status", has_counted)
            assert session.act("/api/disconnect", {"client": "laptop"}, csrf="X-CSRF-Token: x").status == 403
            assert session.act("/api/disconnect", {"client": "laptop"}, origin="Origin: http://evil").status == 403
            before = laptop.log_end
            gone = session.act("/api/disconnect", {"interface": "tun0", "client": "laptop"})
            assert (gone.status, gone.json) == (200, {"sessions": 1})
            laptop.wait_for_log("disconnected by the operator", after=before)
            laptop.wait_for_log(UPLOADING, after=before)
            wait_for_message(
                live, "events", lambda it: any("disconnected tun0 laptop" in event["text"] for event in it["events"])
            )
            nobody = session.act("/api/disconnect", {"client": "nobody"})
            assert (nobody.status, "nobody" in nobody.json["error"]) == (404, True)
            assert session.act("/api/logout", {}).status == 204
            live.wait_for_log("closed 1008", timeout=PATIENCE_S)
        assert session.get("/api/status").status == 401
        with panel(server, session.cookie, session.origin) as refused:
            refused.wait_for_log("refused 401", timeout=PATIENCE_S)
        with panel(server, f"x-api-key: {ADMIN}") as live:
            wait_for_message(live, "status", lambda message: bool(message["status"]["interfaces"]))
            assert daemon.stop(STOP_S) == 0
            live.wait_for_log("closed 1001", timeout=PATIENCE_S)
        everything = daemon.log + metrics.body
        for secret in (ADMIN, session.cookie.partition("=")[2], session.csrf.split()[1]):
            assert secret not in everything


def examples(document: str) -> list[str]:
    """The lines with curl that stand in a block of code there."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", (ROOT / "docs" / document).read_text(encoding="utf-8"), re.M | re.S)
    return [line.removeprefix("$ ") for block in blocks for line in block.splitlines() if "curl " in line]


def test_the_examples_of_the_docs(lab: Lab) -> None:
    server, _ = cable(lab)
    path = server.tmp / "admin.http"
    answers: list[str] = []

    def ask(place: str, expected: list[str]) -> None:
        with running(server, write(server, server_config(), admin=admin(listen=place))):
            for line in expected:
                line = line.replace("/run/tapotun-proxy/admin.http", str(path)).replace(" TOKEN'", f" {ADMIN}'")
                done = server.run(["sh", "-ec", f"TOKEN={ADMIN}; {line} -sS -m 10 --fail-with-body"])
                answers.append(done.stdout)

    lines = [*examples("admin.md"), *examples("metrics.md")]
    assert len(lines) == 4
    ask("127.0.0.1:9433", [line for line in lines if "--unix-socket" not in line])
    ask(f"unix:{path}", [line for line in lines if "--unix-socket" in line])
    status, disconnected, metrics, ready = answers
    assert json.loads(status)["interfaces"][0]["name"] == "tun0"
    assert json.loads(disconnected) == {"sessions": 0}
    assert metrics.endswith("# EOF\n")
    assert ready == "ready\n"


def test_the_listener_changes_and_no_packet_is_lost(lab: Lab) -> None:
    server, client = cable(lab)
    file = write(server, server_config(), admin=admin(), log={"level": "info"})
    with (
        running(server, file) as daemon,
        running(client, client_config(), until=UPLOADING),
        CheckedUdp(client, TUNNEL_CLIENT, server, TUNNEL_SERVER, rate=500) as udp,
    ):
        udp.wait_for_flow()
        write(server, server_config(), admin=admin(listen="127.0.0.1:9191"), log={"level": "debug"})
        planned = curl(server, f"{URL}/api/reload", "-H", BEARER, "-d", '{"dry_run": true}')
        assert planned.json == {"changes": ["log: level changed", "admin: listen changed"]}
        assert curl(server, f"{URL}/healthz").status == 200
        assert curl(server, f"{URL}/api/reload", "-H", BEARER, "-X", "POST").json == planned.json
        assert curl(server, f"{URL}/healthz").status == 0
        assert curl(server, "http://127.0.0.1:9191/healthz").status == 200
        # To where somebody else is: nothing changes, and everybody is told.
        taken = server_config(mtu=1400)
        write(server, taken, admin=admin(listen=f"{SERVER}:8080"))
        answer = curl(server, "http://127.0.0.1:9191/api/reload", "-H", BEARER, "-X", "POST")
        assert (answer.status, "clashes with" in answer.json["error"]) == (409, True)
        with server.start([sys.executable, "-m", "http.server", "-b", "127.0.0.1", "9292"], name="other", cwd=ROOT):
            wait_until(lambda: curl(server, "http://127.0.0.1:9292/").status == 200, PATIENCE_S, "that answer")
            write(server, taken, admin=admin(listen="127.0.0.1:9292"))
            before = daemon.log_end
            daemon.signal(signal.SIGHUP)
            daemon.wait_for_log("ERROR .*admin: cannot listen on 127.0.0.1:9292: the port is in use", after=before)
        status = curl(server, "http://127.0.0.1:9191/api/status", "-H", BEARER).json
        assert "9292" in status["last_reload"]["error"]
        assert status["interfaces"][0]["mtu_bytes"] == 1500
        # Away, and back by a signal.
        write(server, server_config())
        server.run([*command(), "reload"], timeout=PATIENCE_S)
        assert curl(server, "http://127.0.0.1:9191/healthz").status == 0
        write(server, server_config(), admin=admin(token=token("other")))
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_log("reload: admin: added")
        wait_until(lambda: curl(server, f"{URL}/healthz").status == 200, PATIENCE_S, "that answer")
        assert curl(server, f"{URL}/metrics", "-H", BEARER).status == 401
        assert curl(server, f"{URL}/metrics", "-H", f"x-api-key: {token('other')}").status == 200
        udp.wait_for_flow()
        for way in udp.finish():
            assert (way.lost, way.duplicated, way.corrupted) == (0, 0, 0), way


# Around what docs/admin.md says: an nginx in the foreground, its files in a directory of ours.
NGINX: Final = """
user root root; daemon off; master_process off; pid {directory}/nginx.pid; error_log stderr warn;
events {{ worker_connections 64; }}
http {{
    access_log off; client_body_temp_path {directory}/body; proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi; uwsgi_temp_path {directory}/uwsgi; scgi_temp_path {directory}/scgi;
    map $http_upgrade $upgrade {{ default upgrade; '' ''; }}
    server {{
        listen 8000;
        {location}
    }}
}}
"""


def test_behind_the_proxy_of_the_docs(lab: Lab) -> None:
    server, client = cable(lab)
    location = re.search(r"```nginx\n(.*?)```", (ROOT / "docs" / "admin.md").read_text(encoding="utf-8"), re.DOTALL)
    assert location is not None
    config = server.tmp / "nginx.conf"
    config.write_text(NGINX.format(directory=server.tmp, location=location[1].replace(":9433", f":{PORT}")))
    file = write(server, server_config(), admin=admin())
    with (
        running(server, file) as daemon,
        server.start(["nginx", "-e", "stderr", "-p", server.tmp, "-c", config], name="nginx") as nginx,
    ):
        server.wait_for_listener(8000, PATIENCE_S, by=nginx)
        url = f"http://{SERVER}:8000"
        session = Session(client, url)
        daemon.wait_for_log(rf"admin: {CLIENT} \(through 127.0.0.1:\d+\) logged in")
        assert session.act("/api/reload", {"dry_run": True}).json == {"changes": []}
        assert session.act("/api/reload", {"dry_run": True}, origin=f"Origin: {URL}").status == 403
        with panel(client, session.cookie, session.origin, url=f"ws://{SERVER}:8000") as live:
            wait_for_message(live, "status", lambda message: bool(message["status"]["interfaces"]))
        # Who tries tokens from elsewhere holds up only itself.
        for _ in range(5):
            assert curl(client, f"{url}/metrics", "-H", "x-api-key: guess").status == 401
        assert curl(client, f"{url}/metrics", "-H", BEARER).status == 429
        assert curl(server, f"{URL}/metrics", "-H", BEARER).status == 200
        assert session.get("/api/status").status == 200


def test_a_client_is_ready_when_its_streams_are(lab: Lab) -> None:
    server, client = cable(lab)
    file = write(client, client_config(), admin={"listen": str(PORT)})
    with running(client, file, until="admin: listening") as daemon:
        daemon.wait_for_log("trying again")

        def reasons() -> str:
            answer = curl(client, f"{URL}/readyz")
            assert answer.status == 503
            return answer.body

        wait_until(lambda: re.match(r"tun0: connecting: .*refused", reasons()) is not None, PATIENCE_S, "that answer")
        assert curl(client, f"{URL}/healthz").status == 200
        with running(server, server_config()):
            wait_until(lambda: curl(client, f"{URL}/readyz").status == 200, PATIENCE_S, "that answer")
        wait_until(lambda: curl(client, f"{URL}/readyz").status == 503, PATIENCE_S, "that answer")
        # Without a token there is nothing else.
        for path in ("/", "/api/status"):
            answer = curl(client, URL + path)
            assert (answer.status, "no token is configured" in answer.body) == (403, True)
        assert curl(client, f"{URL}/metrics").status == 200


def test_through_the_tunnel(lab: Lab) -> None:
    """At an address of the process's own interface, which is not there yet when it begins to listen; at both ends."""
    server, client = cable(lab)
    files = [
        write(server, server_config(), admin=admin(listen=f"{TUNNEL_SERVER}:{PORT}")),
        write(client, client_config(), admin=admin(listen=f"{TUNNEL_CLIENT}:{PORT}")),
    ]
    with running(server, files[0]) as hub, running(client, files[1], until=UPLOADING) as laptop:
        for host, daemon, address in ((client, hub, TUNNEL_SERVER), (server, laptop, TUNNEL_CLIENT)):
            assert f"admin: listening on {address}:{PORT}, as soon as this machine has that address" in daemon.log
            assert "is not loopback" not in hub.log
            url = f"http://{address}:{PORT}"
            assert curl(host, f"{url}/readyz").body == "ready\n"
            assert curl(host, f"{url}/metrics").status == 401
            assert curl(host, f"{url}/metrics", "-H", BEARER).status == 200


def test_it_cannot_listen_at_the_start(lab: Lab) -> None:
    server, _ = cable(lab)
    file = write(server, server_config(), admin=admin())
    with (
        server.start([sys.executable, "-m", "http.server", "-b", "127.0.0.1", str(PORT)], name="other", cwd=ROOT),
        running(server, server_config(port=8081), name="tapotun-first"),
    ):
        wait_until(lambda: curl(server, f"{URL}/").status == 200, PATIENCE_S, "that answer")
        with tapotun(server, file, name="tapotun-second") as daemon:
            assert daemon.wait(PATIENCE_S) == 1
            [line] = daemon.log.splitlines()
            assert re.search(rf"ERROR +admin: cannot listen on 127.0.0.1:{PORT}: the port is in use", line)


def test_a_low_port_is_to_be_had_after_rights_were_dropped(lab: Lab) -> None:
    server, _ = cable(lab)
    file = write(server, server_config(), admin=admin(listen=80))
    with running(server, file):
        assert curl(server, "http://127.0.0.1/healthz").status == 200
        write(server, server_config(), admin=admin(listen=81))
        server.run([*command(), "reload"], timeout=PATIENCE_S)
        assert curl(server, "http://127.0.0.1:81/healthz").status == 200


def test_a_unix_socket(lab: Lab) -> None:
    server, _ = cable(lab)
    path = server.tmp / "admin.http"
    file = write(server, server_config(), admin=admin(listen=f"unix:{path}"))
    with running(server, file):
        assert curl(server, "http://h/readyz", "--unix-socket", str(path)).body == "ready\n"
        assert curl(server, "http://h/metrics", "--unix-socket", str(path)).status == 401
    assert not path.exists()


def test_who_holds_connections_open_keeps_nobody_out(lab: Lab) -> None:
    server, _ = cable(lab)
    file = write(server, server_config(), admin=admin())
    holder = (
        "import contextlib, socket, time\n"
        f"held = [socket.create_connection(('127.0.0.1', {PORT})) for _ in range(300)]\n"
        "for it in held[::2]:\n  with contextlib.suppress(OSError): it.send(b'GET / HT')\n"
        "print('held', flush=True)\ntime.sleep(60)\n"
    )
    with running(server, file) as daemon:
        sockets = daemon.fds()
        with server.start([sys.executable, "-c", holder], name="holder", cwd=ROOT) as process:
            process.wait_for_log("held", timeout=PATIENCE_S)
            assert curl(server, f"{URL}/healthz").status == 200
            assert curl(server, f"{URL}/metrics", "-H", BEARER).status == 200
            assert sum(daemon.fds().values()) - sum(sockets.values()) < 150
        wait_until(lambda: sum(daemon.fds().values()) <= sum(sockets.values()) + 1, PATIENCE_S, "that answer")
