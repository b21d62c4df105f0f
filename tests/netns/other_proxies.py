"""Proxies of which the project ships no config, in front of a server on loopback port 8080: what an operator would
write for a tunnel, as short as it can be. Each listens on port 80 of its host."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.harness import Host, Process

START_S: Final = 30.0  # Varnish compiles its config

_VARNISH: Final = """vcl 4.1;
backend default { .host = "127.0.0.1"; .port = "8080"; .between_bytes_timeout = 300s; }
sub vcl_recv {
    if (req.http.upgrade ~ "(?i)websocket") { return (pipe); }
    return (pass);
}
sub vcl_pipe {
    if (req.http.upgrade) {
        set bereq.http.upgrade = req.http.upgrade;
        set bereq.http.connection = req.http.connection;
    }
}
sub vcl_backend_response { set beresp.do_stream = true; }
"""
_SQUID: Final = """http_port 80 accel defaultsite=vpn.example.com no-vhost
cache_peer 127.0.0.1 parent 8080 0 no-query originserver
http_access allow all
http_upgrade_request_protocols websocket allow all
cache deny all
access_log none
cache_log {directory}/cache.log
pid_filename none
visible_hostname nginx-box
shutdown_lifetime 1 second
"""
_LIGHTTPD: Final = """server.modules = ( "mod_proxy" )
server.document-root = "{directory}"
server.port = 80
server.stream-request-body = 2
server.stream-response-body = 2
proxy.server = ( "" => ( ( "host" => "127.0.0.1", "port" => 8080 ) ) )
proxy.header = ( "upgrade" => "enable" )
"""
_NODE: Final = """const http = require('http');
const server = http.createServer((request, response) => {
  const upstream = http.request({ port: 8080, method: request.method, path: request.url, headers: request.headers });
  upstream.on('response', (answer) => {
    response.writeHead(answer.statusCode, answer.headers);
    answer.pipe(response);
  });
  upstream.on('error', () => response.destroy());
  response.on('close', () => upstream.destroy());
  request.pipe(upstream);
});
server.requestTimeout = 0;
server.listen(80);
"""
# Go's HTTP server names itself nowhere.
_GO: Final = """{{
	auto_https off
	admin off
}}
:80 {{
	header -Server
	reverse_proxy 127.0.0.1:8080
}}
"""
_ATS_RECORDS: Final = """
CONFIG proxy.config.http.server_ports STRING 80
CONFIG proxy.config.http.insert_response_via_str INT 2
CONFIG proxy.config.http.cache.http INT 0
CONFIG proxy.config.diags.output.error STRING E
"""


def _file(directory: Path, name: str, text: str) -> Path:
    file = directory / name
    file.write_text(text, encoding="ascii")
    return file


def _varnish(host: Host, directory: Path) -> Sequence[str | Path]:
    vcl = _file(directory, "default.vcl", _VARNISH)
    store = ["-s", "malloc,16m", "-p", "timeout_idle=300"]
    return ["varnishd", "-F", "-j", "none", "-n", directory / "work", "-a", ":80", "-f", vcl, *store]


def _squid(host: Host, directory: Path) -> Sequence[str | Path]:
    host.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/dev/shm"])  # its segments have fixed names
    directory.chmod(0o777)  # it becomes an ordinary user
    directory.parent.chmod(0o755)
    return ["squid", "-N", "-f", _file(directory, "squid.conf", _SQUID.format(directory=directory))]


def _lighttpd(host: Host, directory: Path) -> Sequence[str | Path]:
    return ["lighttpd", "-D", "-f", _file(directory, "lighttpd.conf", _LIGHTTPD.format(directory=directory))]


def _node(host: Host, directory: Path) -> Sequence[str | Path]:
    return ["node", _file(directory, "proxy.js", _NODE)]


def _go(host: Host, directory: Path) -> Sequence[str | Path]:
    return ["caddy", "run", "--config", _file(directory, "Caddyfile", _GO.format()), "--adapter", "caddyfile"]


def _trafficserver(host: Host, directory: Path) -> Sequence[str | Path]:
    etc = directory / "etc"
    shutil.copytree("/etc/trafficserver", etc)
    (etc / "records.config").write_text((etc / "records.config").read_text() + _ATS_RECORDS, encoding="ascii")
    _file(etc, "remap.config", "map / http://127.0.0.1:8080/\nmap ws:/// ws://127.0.0.1:8080/\n")
    _file(etc, "storage.config", "")
    host.run(["mount", "--bind", etc, "/etc/trafficserver"])
    for path in ("/var/log/trafficserver", "/var/cache/trafficserver", "/run/trafficserver"):
        host.run(["mkdir", "-p", path])
        host.run(["mount", "-t", "tmpfs", "-o", "mode=777", "tmpfs", path])
    return ["traffic_server"]


OTHERS: Final[dict[str, Callable[[Host, Path], Sequence[str | Path]]]] = {
    "varnish": _varnish,
    "squid": _squid,
    "lighttpd": _lighttpd,
    "trafficserver": _trafficserver,
    "node": _node,
    "traefik": _go,  # Traefik itself is not in Debian
}


@contextmanager
def other_proxy(host: Host, kind: str) -> Iterator[Process]:
    """It listens, and is killed at the end."""
    directory = host.tmp / kind
    directory.mkdir()
    argv = OTHERS[kind](host, directory)
    process = host.start(argv, name=kind, env={"HOME": str(directory)})
    try:
        host.wait_for_listener(80, START_S, by=process)
        yield process
    finally:
        process.kill()
