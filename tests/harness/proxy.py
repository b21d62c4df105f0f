"""An ordinary reverse proxy in a host: nginx in front of an HTTP server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from .host import START_S, Host
from .process import Process

# The options that a stream of frames needs are the middle block; everything else is about running nginx in
# the foreground, in one process (so that its log, its signals and its file descriptors are one process's),
# with every file of its own in a directory of ours.
_PLAIN: Final = 'proxy_set_header Connection "";'
_UPGRADE: Final = "proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;"
_CONFIG: Final = """
user root root;
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr {log_level};
events {{ worker_connections 256; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    map $http_upgrade $connection_upgrade {{ default upgrade; "" ""; }}

    server {{
        listen {listen} default_server;{listen_6}
        location / {{
            proxy_pass http://{upstream};
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $remote_addr;

            proxy_http_version {http_version};
            {upgrade}
            {more}
            proxy_buffering off;
            proxy_request_buffering {request_buffering};
            client_max_body_size 0;
            client_body_timeout {timeout};
            proxy_read_timeout {timeout};
            proxy_send_timeout {timeout};
            send_timeout {timeout};
        }}
    }}
}}
"""


@contextmanager
def nginx_proxy(
    host: Host,
    upstream: str = "127.0.0.1:8080",
    *,
    listen: int = 80,
    ipv6: bool = False,
    http_version: str = "1.1",
    request_buffering: bool = False,
    websocket: bool = False,
    timeout: str = "1d",
    log_level: str = "warn",
    more: str = "",
) -> Iterator[Process]:
    """nginx on all IPv4 addresses of a host at port `listen`, passing everything on to `upstream`. `ipv6`: and on all
    IPv6 addresses.

    Set up as its manual tells for endless bodies in both directions; `http_version="1.0"` is what it speaks
    to an upstream when nobody says otherwise, `request_buffering=True` is a proxy that was set up wrongly.
    `websocket`: connections may be upgraded.
    `timeout` is nginx's own notation. `more`: further directives of its one location. `upstream` may be ``unix:/path``.

    Raises ProcessError or WaitError with nginx's log if it does not come up.
    """
    directory = host.tmp / f"nginx-{listen}"
    directory.mkdir(exist_ok=True)  # it may be started again, on the same port
    config = directory / "nginx.conf"
    config.write_text(
        _CONFIG.format(
            directory=directory,
            listen=listen,
            listen_6=f" listen [::]:{listen} default_server;" if ipv6 else "",
            upstream=upstream,
            http_version=http_version,
            request_buffering="on" if request_buffering else "off",
            upgrade=_UPGRADE if websocket else _PLAIN,
            timeout=timeout,
            log_level=log_level,
            more=more,
        ),
        encoding="ascii",
    )
    with host.start(["nginx", "-e", "stderr", "-p", directory, "-c", config], name="nginx") as nginx:
        host.wait_for_listener(listen, START_S, by=nginx)
        yield nginx
