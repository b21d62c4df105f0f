"""The Containerfile: built and run by Podman with runc, on a Debian that debootstrap made."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.harness import ROOT, Host, Lab, wait_for_ping, wait_until
from tests.netns.howtos import read_page
from tests.netns.topologies import (
    TUNNEL_SERVER,
    UPLOADING,
    cable,
    client_config,
    server_config,
)

from .engine import PATIENCE_S, USER, Engine, build, engines
from .pythons import EXERCISE, EXERCISED, NATIVE

pytestmark = pytest.mark.netns

FILE: Final = ROOT / "packaging" / "Containerfile"
TOOLS: Final = Path(sys.executable).parent  # with podman-compose
HOST: Final = ("--network", "host")
TUN: Final = ("--cap-add", "NET_ADMIN", "--device", "/dev/net/tun")
# Podman gives the image's user the capabilities that were asked for. Docker gives none to a user who is not root, so
# that only a file that is executed can.
AS_DOCKER: Final = ["setpriv", "--inh-caps=-all", "--ambient-caps=-all", "tapotun"]


@pytest.fixture(scope="module")
def both_engines() -> Iterator[tuple[Engine, Engine]]:
    """Root's, and another user's."""
    with engines() as both:
        yield both


@pytest.fixture(scope="module")
def engine(both_engines: tuple[Engine, Engine]) -> Engine:
    """Root's."""
    return both_engines[0]


@pytest.fixture(scope="module")
def image(engine: Engine, trixie: Path) -> str:
    """Built from the file as it stands."""
    return build(engine, FILE, ROOT, trixie)


def config(host: Host, content: dict[str, object]) -> tuple[str, ...]:
    """The option that brings a config into a container, where its user may read it."""
    file = host.tmp / "tapotun.json"
    file.write_text(json.dumps([content]), encoding="utf-8")
    file.chmod(0o400)
    os.chown(file, USER, USER)
    host.tmp.chmod(0o755)
    return ("-v", f"{file}:/etc/tapotun/tapotun.json:ro")


def test_the_base_image_is_pinned() -> None:
    """By its digest, with its date for people."""
    base = r"(?m)^ARG BASE=docker\.io/library/debian:trixie-\d{8}-slim@sha256:[0-9a-f]{64}$"
    assert len(re.findall(base, FILE.read_text(encoding="utf-8"))) == 1


def test_hub_and_client(engine: Engine, image: str, lab: Lab) -> None:
    """As docs/packages.md starts them; the client with a file system that it cannot write to."""
    server, client = cable(lab)
    with (
        engine.container(server, "hub", *HOST, *TUN, *config(server, server_config()), image) as hub,
        engine.container(
            client, "laptop", *HOST, *TUN, "--read-only", "--cap-drop", "ALL", *config(client, client_config()), image
        ) as laptop,
    ):
        laptop.wait_for_log(UPLOADING)
        wait_for_ping(client, TUNNEL_SERVER)
        for container in (hub, laptop):
            wait_until(container.is_healthy, PATIENCE_S, f"{container.name} to be healthy", container.log)
            assert container.top("user", "capeff", "seccomp") == ["tapotun", "NET_ADMIN", "filter"]
        assert "laptop" in hub.execute("tapotun", "status")
        # Healthy means that every interface is up.
        assert hub.stop() == 0
        wait_until(lambda: not laptop.is_healthy(), PATIENCE_S, "the client to be unhealthy", laptop.log)
        assert laptop.stop() == 0
        for container in (hub, laptop):
            assert container.log().splitlines()[-1].endswith("stopped")
        for host in (server, client):
            assert "tun0" not in host.run(["ip", "link"]).stdout


def test_what_it_says_and_does_without_the_capability(engine: Engine, image: str, lab: Lab) -> None:
    host = lab.host("machine")
    given = config(host, server_config(listen="127.0.0.1"))
    with engine.container(host, "refused", *HOST, "--device", "/dev/net/tun", *given, image) as container:
        assert container.wait() == 1
        assert "(uid 810) lacks CAP_NET_ADMIN" in container.log()
        assert "--cap-add=NET_ADMIN" in container.log()
    for verb, expected in (("token", 'client:  "token": '), ("--version", NATIVE)):
        assert engine.run("podman", "run", "--rm", *HOST, image, verb, host=host).stdout.startswith(expected)


def test_as_docker_starts_it(engine: Engine, image: str, lab: Lab) -> None:
    """The interpreter's file gives the capability, unless no file may; then root can run it."""
    host = lab.host("machine")
    options = [*HOST, *TUN, *config(host, server_config(listen="127.0.0.1"))]
    as_docker = ["--entrypoint", json.dumps(AS_DOCKER)]
    command = engine.inspect("image", image)["Config"]["Cmd"]  # which --entrypoint drops
    no_new_privileges = ["--security-opt", "no-new-privileges"]
    with engine.container(host, "docker", *options, *as_docker, image, *command) as container:
        wait_until(container.is_healthy, PATIENCE_S, "the container", container.log)
        assert container.top("user", "capeff") == ["tapotun", "NET_ADMIN"]
    with engine.container(host, "refused", *options, *as_docker, *no_new_privileges, image, *command) as container:
        assert container.wait() == 1
        assert "(uid 810) lacks CAP_NET_ADMIN" in container.log()
    with engine.container(host, "root", *options, *no_new_privileges, "--user", "0", image) as container:
        wait_until(container.is_healthy, PATIENCE_S, "the container", container.log)
        assert container.top("user", "capeff") == ["root", "NET_ADMIN"]
        assert container.stop() == 0


def test_what_is_in_it(engine: Engine, image: str, lab: Lab) -> None:
    host = lab.host("machine")
    size = {name: engine.inspect("image", name)["Size"] for name in (image, "localhost/base")}
    added_mb = (size[image] - size["localhost/base"]) / 1e6
    assert added_mb < 90, f"{added_mb:.0f} MB on top of the base image"
    settings = engine.inspect("image", image)
    assert settings["Config"]["Labels"]["org.opencontainers.image.title"] == "tapotun"
    check = settings["Healthcheck"]
    assert check["Test"][:4] == ["CMD", "tapotun", "wait", "--timeout"]
    assert check["Timeout"] / 1e9 > float(check["Test"][4]), "the engine would kill the check before it says anything"

    def shell(script: str, *options: str) -> str:
        argv = [*HOST, *options, "--entrypoint", "sh", image, "-c", script]
        return engine.run("podman", "run", "--rm", *argv, host=host).stdout

    # Nothing of its making.
    paths = "/src /opt/tapotun/bin/pip /usr/bin/gcc /usr/bin/pip3 /var/lib/apt/lists/*"
    assert shell(f"ls -d {paths} 2>/dev/null; find /opt/tapotun -name pip") == ""
    # One file gives a capability, and nobody but the program's user may execute it.
    python = "/opt/tapotun/bin/python-net-admin"
    assert shell("getcap -r / 2>/dev/null", "--user", "0") == f"{python} cap_net_admin=ep\n"
    argv = [*HOST, "--user", "65534:65534", "--entrypoint", python, image, "-c", ""]
    refused = engine.run("podman", "run", "--rm", *argv, host=host, check=False)
    assert "ermission denied" in refused.stderr
    # Each of these users has a state directory for the update check: what is not usable is this file.
    for user in (f"{USER}:{USER}", "0", "2345:0"):
        source = ("update", "--url", "http://127.0.0.1:9/", "--root-file", "/etc/os-release")
        done = engine.run("podman", "run", "--rm", *HOST, "--user", user, image, *source, host=host, check=False)
        assert "the trusted root is not usable metadata" in done.stderr, (user, done.stderr)
    # The native module.
    argv = [*HOST, "--entrypoint", "/opt/tapotun/bin/python3", image, "-I", "-c", EXERCISE]
    ran = engine.run("podman", "run", "--rm", *argv, host=host)
    place = r"/opt/tapotun/lib/python3\.13/site-packages/.*/_pump\.abi3\.so"
    assert re.fullmatch(EXERCISED.format(place), ran.stdout)


def test_the_howto(engine: Engine, image: str, lab: Lab) -> None:
    """docs/howto/containers.md as it is written, with the compose file, but for the image, which is there."""
    host = lab.host("machine")
    place = host.tmp / "srv"
    place.mkdir()
    engine.run("mount", "--bind", place, "/srv")
    steps = read_page("containers")
    try:
        for step in steps[1:]:
            assert step.machines == ["machine"]
            if step.language != "sh":
                file = place / Path(step.path).relative_to("/srv")
                file.parent.mkdir(exist_ok=True)
                file.write_text(step.text, encoding="utf-8")
                continue
            script = f"PATH={TOOLS}:$PATH\n{step.text}"
            print(engine.run("sh", "-ec", script, host=host).stdout)
        assert engine.run("podman", "healthcheck", "run", "tapotun", check=False).returncode == 0
        assert "tun0" in host.run(["ip", "link"]).stdout
        assert engine.inspect("container", "tapotun")["HostConfig"]["RestartPolicy"]["Name"] == "unless-stopped"
    finally:
        engine.run(TOOLS / "podman-compose", "-f", "/srv/tapotun/compose.yaml", "down", host=host)
        engine.run("umount", "/srv")
    assert "tun0" not in host.run(["ip", "link"]).stdout
    assert engine.run("podman", "ps", "-aq").stdout == ""


def test_an_engine_without_root(both_engines: tuple[Engine, Engine], image: str, lab: Lab) -> None:
    """The hub has a network of its own, and a published port; its client is root's."""
    engine, rootless = both_engines
    server, client = cable(lab)
    given = config(server, server_config(listen="0.0.0.0"))
    (server.tmp / "tapotun.json").chmod(0o444)  # user 810 in there is another one here
    archive = server.tmp / "image.tar"
    engine.run("podman", "save", "-q", "-o", archive, image)
    archive.chmod(0o444)
    rootless.run("podman", "load", "-q", "-i", archive)
    with (
        rootless.container(server, "hub", "--network", "slirp4netns", "-p", "8080:8080", *TUN, *given, image) as hub,
        engine.container(client, "laptop", *HOST, *TUN, *config(client, client_config()), image) as laptop,
    ):
        laptop.wait_for_log(UPLOADING)
        wait_for_ping(client, TUNNEL_SERVER)
        assert hub.is_healthy()
        assert hub.top("user", "capeff") == ["tapotun", "NET_ADMIN"]
        assert "tun0" not in server.run(["ip", "link"]).stdout
        assert hub.stop() == 0
