"""A real nginx between two base peers, unprivileged and on a free port."""

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NGINX: Final = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")

_CONFIG: Final = """
daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log {dir}/error.log warn;
events {{ worker_connections 128; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://127.0.0.1:{upstream};
            proxy_http_version {version};
            proxy_buffering off;
            proxy_request_buffering off;
            client_max_body_size 0;
        }}
    }}
}}
"""


@contextlib.contextmanager
def nginx(upstream: int, version: str = "1.1") -> Iterator[int]:
    """Run nginx in front of a local port, speaking HTTP 1.0 (its default) or 1.1 to it; gives its port."""
    if NGINX is None:
        raise FileNotFoundError("nginx")
    # Bound here and not listening, so that no other process gets the port. nginx sets SO_REUSEADDR, too.
    with socket.socket() as reserved, tempfile.TemporaryDirectory(prefix="basepeer-nginx-") as folder:
        reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reserved.bind(("127.0.0.1", 0))
        port: int = reserved.getsockname()[1]
        config = Path(folder, "nginx.conf")
        config.write_text(_CONFIG.format(dir=folder, port=port, upstream=upstream, version=version))
        command = [NGINX, "-p", folder, "-e", f"{folder}/error.log", "-c", str(config)]
        with subprocess.Popen(command) as process:
            try:
                _await_port(port, process)
                yield port
            finally:
                process.terminate()
                process.wait(10)


def _await_port(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 10
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port)).close()
            return
        time.sleep(0.01)
    raise TimeoutError("nginx does not listen")
