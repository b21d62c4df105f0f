"""https: a client believes who it should, and says in one line whom it does not, and why."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest
import trustme

from tapotun_trio.host.net.tls_records import can_open_records
from tests.harness import Host, Lab, Payload, command, download, no_leaks, ping, upload

from .test_status import peer
from .topologies import SERVER, TUNNEL_SERVER, UPLOADING, cable, client_config, running, server_config

pytestmark = pytest.mark.netns

NAME: Final = "vpn.example.com"
URL: Final = f"https://{NAME}/ip"

# nginx picks the certificate by the name that the client sends (SNI): without one, or with another one, this
# default's, which fits nobody.
_CONFIG: Final = """
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log stderr warn;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    ssl_protocols {protocols};
    {options}

    server {{
        listen 443 ssl default_server;
        ssl_certificate {directory}/default.pem;
        ssl_certificate_key {directory}/default.pem;
        return 404;
    }}
    server {{
        listen 443 ssl;
        server_name {name} {address};
        ssl_certificate {directory}/server.pem;
        ssl_certificate_key {directory}/server.pem;
        ssl_client_certificate {directory}/clients.pem;
        ssl_verify_client {clients};
        location /ip {{
            proxy_pass http://127.0.0.1:8080;
            proxy_http_version 1.1;
            proxy_buffering off;
            proxy_request_buffering off;
            client_max_body_size 0;
            proxy_set_header X-Forwarded-For $remote_addr;
            proxy_set_header X-Forwarded-Proto $scheme;
        }}
    }}
}}
"""


@dataclass(frozen=True)
class World:
    """A server behind nginx, which ends TLS, and a client that has the authority's certificate."""

    server: Host
    client: Host
    ca_file: Path
    authority: trustme.CA


@contextmanager
def _world(
    lab: Lab,
    *,
    name: str = NAME,
    expired: bool = False,
    protocols: str = "TLSv1.2 TLSv1.3",
    clients: bool = False,
    options: str = "",
) -> Iterator[World]:
    """`name` is what the certificate was issued for; with `clients` they need one of theirs, of the same authority."""
    server, client = cable(lab)
    authority = trustme.CA()
    not_after = datetime.now(UTC) - timedelta(days=1) if expired else None
    directory = server.tmp / "nginx-tls"
    directory.mkdir()
    authority.issue_cert("somebody-else.example").private_key_and_cert_chain_pem.write_to_path(
        directory / "default.pem"
    )
    leaf = authority.issue_cert(name, not_after=not_after)
    leaf.private_key_and_cert_chain_pem.write_to_path(directory / "server.pem")
    ca_file = client.tmp / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    authority.cert_pem.write_to_path(directory / "clients.pem")
    text = _CONFIG.format(
        directory=directory,
        name=NAME,
        address=SERVER,
        protocols=protocols,
        clients="on" if clients else "off",
        options=options,
    )
    (directory / "nginx.conf").write_text(text, encoding="ascii")
    config = server_config(trusted_proxies=["127.0.0.1"])
    del config["listen"]
    with (
        running(server, config),
        server.start(["nginx", "-e", "stderr", "-p", directory, "-c", directory / "nginx.conf"]) as nginx,
    ):
        server.wait_for_listener(443, by=nginx)
        yield World(server, client, ca_file, authority)


def _client(world: World, url: str = URL, **tls: Any) -> dict[str, Any]:
    return client_config(server=url, tls=tls)


@pytest.mark.parametrize("protocols", ["TLSv1.2", "TLSv1.3"])
def test_an_authority_of_ones_own(lab: Lab, protocols: str) -> None:
    with (
        _world(lab, protocols=protocols) as world,
        no_leaks(world.client),
        running(world.client, _client(world, ca_file=str(world.ca_file)), until=UPLOADING),
        Payload(30_000_000) as payload,
    ):
        assert ping(world.client, TUNNEL_SERVER).ok
        shown = world.client.run([*command(), "status"]).stdout
        assert f"over HTTPS ({protocols.replace('TLSv', 'TLS ')})" in shown
        # The client knows the version, and the server only what its proxy says.
        at_server, at_client = peer(world.server), peer(world.client)
        assert (at_server["tls"], at_server["encrypted"]) == (None, True)
        assert (at_client["tls"], at_client["encrypted"]) == (protocols.replace("TLSv", "TLS "), True)
        assert "encrypted up to its proxy" in " ".join(world.server.run([*command(), "status"]).stdout.split())
        for move in (upload, download):
            move(world.client, world.server, TUNNEL_SERVER, payload)
        assert ping(world.client, TUNNEL_SERVER).ok


@pytest.mark.parametrize("plane", ["plane", "pure"])
@pytest.mark.parametrize("suite", ["TLS_AES_128_GCM_SHA256", "TLS_AES_256_GCM_SHA384", "TLS_CHACHA20_POLY1305_SHA256"])
def test_every_cipher_of_tls_1_3(lab: Lab, suite: str, plane: str) -> None:
    """The payload is checked at its end. The plane opens and seals the records of both streams, if it runs."""
    native = plane == "plane" and can_open_records()
    with (
        _world(lab, protocols="TLSv1.3", options=f"ssl_conf_command Ciphersuites {suite};") as world,
        running(
            world.client,
            _client(world, ca_file=str(world.ca_file)),
            until=UPLOADING,
            env={"TAPOTUN_PLANE": "auto" if native else "off"},
        ),
        Payload(30_000_000) as payload,
    ):
        for move in (upload, download):
            move(world.client, world.server, TUNNEL_SERVER, payload)
        found = peer(world.client)
        by_plane, packets = found["plane_packets"], found["rx_packets"] + found["tx_packets"]
        assert by_plane > packets // 2 if native else by_plane == 0, f"{by_plane} of {packets}"
        assert ping(world.client, TUNNEL_SERVER).ok


def test_the_systems_trust(lab: Lab) -> None:
    """No `tls` at all. (SSL_CERT_FILE is OpenSSL's way to say what the system trusts.)"""
    with _world(lab) as world:
        config = world.client.tmp / "client.json"
        config.write_text(f'[{{"name": "tun0", "server": "{URL}", "token": "raw-token-of-laptop"}}]', encoding="ascii")
        environment = {"SSL_CERT_FILE": str(world.ca_file)}
        with world.client.start([*command(), config], name="tapotun", env=environment) as daemon:
            daemon.wait_for_log(UPLOADING)
            assert ping(world.client, TUNNEL_SERVER).ok


# How the world differs, which URL the client has, whether it knows the authority; what it says.
UNTRUSTED: dict[str, tuple[dict[str, Any], str, bool, str]] = {
    "unknown authority": ({}, URL, False, "(?i)unable to get local issuer|self-signed|authority"),
    "issued for another name": (
        {"name": "www.example.com"},
        URL,
        True,
        f"not .*{re.escape(NAME)}",
    ),
    "expired": ({"expired": True}, URL, True, "(?i)expired"),
    "an address instead of the name": ({}, f"https://{SERVER}/ip", True, re.escape(SERVER)),
}


@pytest.mark.parametrize("case", UNTRUSTED)
def test_who_is_not_trusted_gets_nothing(lab: Lab, case: str) -> None:
    """One line for a person, and no token for whoever it is; `insecure` takes all of them."""
    differences, url, knows_authority, words = UNTRUSTED[case]
    with _world(lab, **differences) as world:
        tls = {"ca_file": str(world.ca_file)} if knows_authority else {}
        with running(world.client, _client(world, url, **tls), until=" WARNING .*download") as daemon:
            (line,) = (line for line in daemon.log.splitlines() if " WARNING " in line)
            assert re.search(words, line), line
        if url == URL:
            with running(world.client, _client(world, url, insecure=True), until=UPLOADING):
                assert ping(world.client, TUNNEL_SERVER).ok


@pytest.mark.parametrize("protocols", ["TLSv1.2", "TLSv1.3"])
def test_a_certificate_of_the_client_s_own(lab: Lab, protocols: str) -> None:
    with _world(lab, protocols=protocols, clients=True) as world:
        tls = {"ca_file": str(world.ca_file)}
        with running(world.client, _client(world, **tls), until=" WARNING .*download") as daemon:
            (line,) = (line for line in daemon.log.splitlines() if " WARNING " in line)
            assert "wants a certificate of the client: set tls.cert_file and tls.key_file" in line
        for name, authority in (("laptop", world.authority), ("mallory", trustme.CA())):
            file = world.client.tmp / f"{name}.pem"
            authority.issue_cert(name).private_key_and_cert_chain_pem.write_to_path(file)
            file.chmod(0o600)
            ours = name == "laptop"
            until = UPLOADING if ours else " WARNING .*does not accept the certificate of tls.cert_file"
            with running(world.client, _client(world, **tls, cert_file=str(file)), until=until):
                assert not ours or ping(world.client, TUNNEL_SERVER).ok


def test_the_name_to_check_beside_an_address_and_plain_http_to_the_tls_port(lab: Lab) -> None:
    with _world(lab) as world:
        tls = {"ca_file": str(world.ca_file), "server_name": NAME, "min_version": "1.3"}
        with running(world.client, _client(world, f"https://{SERVER}/ip", **tls), until=UPLOADING):
            assert ping(world.client, TUNNEL_SERVER).ok
        config = client_config(server=f"http://{SERVER}:443/ip")
        with running(world.client, config, until=" WARNING .*this port speaks TLS; write https://"):
            pass


def test_a_plain_server_where_tls_is_expected(lab: Lab) -> None:
    server, client = cable(lab)
    with (
        running(server, server_config()),
        running(client, client_config(server=f"https://{SERVER}:8080/ip"), until=r" WARNING .*TLS") as daemon,
    ):
        assert sum(" WARNING " in line for line in daemon.log.splitlines()) == 1


def test_a_ca_file_that_is_of_no_use(lab: Lab) -> None:
    _, client = cable(lab)
    for content in (None, "no certificate"):
        file = client.tmp / "ca.pem"
        if content is not None:
            file.write_text(content, encoding="ascii")
        with no_leaks(client), running(client, client_config(server=URL, tls={"ca_file": str(file)}), until=None) as it:
            assert it.wait(10) == 1
        (line,) = it.log.splitlines()
        assert str(file) in line
