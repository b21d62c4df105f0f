"""The Containerfile. No container engine runs here, so its steps are run as they stand in Debians of our own, and what
it says of the container (user, capability, entry point, health check, stop signal) is done with setpriv and chroot."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.harness import ROOT, Host, Lab, wait_for_ping
from tests.netns.topologies import RETRY_S, TUNNEL_SERVER, UPLOADING, cable, client_config, server_config

from .containerfile import Image, Unknown, build, instructions
from .pythons import EXERCISE, EXERCISED, NATIVE

pytestmark = pytest.mark.netns

FILE: Final = ROOT / "packaging" / "Containerfile"
# What Docker leaves a container by default; --cap-add NET_ADMIN adds the last one.
DEFAULT: Final = (
    *("chown", "dac_override", "fowner", "fsetid", "kill", "setgid", "setuid", "setpcap", "net_bind_service"),
    *("net_raw", "sys_chroot", "mknod", "audit_write", "setfcap"),
)
NET_ADMIN: Final = 1 << 12


@pytest.fixture(scope="module")
def image(bookworm: Path) -> Iterator[Image]:
    """Built from the file as it stands."""
    with tempfile.TemporaryDirectory(prefix="image-") as directory:
        built, base = build(FILE, ROOT, bookworm, Path(directory))
        # Pinned: a name that moves would be another image tomorrow.
        assert re.fullmatch(r"docker\.io/library/debian:bookworm-\d{8}-slim", base)
        yield built


def contained(
    image: Image, command: Sequence[str], *options: str, net_admin: bool = True, user_and_group: str = ""
) -> list[str]:
    """The command as an engine starts it: the image's user, or another, and no capability but those that files may
    give. `options` are setpriv's."""
    user, group = (user_and_group or image.user).split(":")
    allowed = ",".join(f"+{it}" for it in [*DEFAULT, *(["net_admin"] if net_admin else [])])
    drop = ["setpriv", *options, f"--reuid={user}", f"--regid={group}", "--clear-groups"]
    drop += ["--inh-caps=-all", "--ambient-caps=-all", f"--bounding-set=-all,{allowed}"]
    # env, since setpriv itself still has root's powers when it starts something.
    return image.files.argv([*drop, "--", "env", *command])


def capabilities(pid: int) -> int:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(re.findall(r"(?m)^CapEff:\s+([0-9a-f]+)$", text)[0], 16)


def config(image: Image, host: Host, content: dict[str, object]) -> Path:
    """A config for one container, which its user may read; as -v would bring it in."""
    return image.files.write(
        f"/etc/tapotun/{host.name}.json", json.dumps([content]), owner=int(image.user.split(":")[0])
    )


def test_it_runs_as_its_user_with_just_one_capability(image: Image, lab: Lab) -> None:
    server, client = cable(lab)
    for host, content in ((server, server_config()), (client, client_config())):
        config(image, host, content)

    assert image.command == ["run", "--name", "tapotun", "/etc/tapotun/tapotun.json"]

    def argv(host: Host) -> list[str]:
        """The image's own command, but for the name: both containers here share one image's files."""
        return [*image.entrypoint, "run", "--name", host.name, f"/etc/tapotun/{host.name}.json"]

    with (
        server.start(contained(image, argv(server)), name="tapotun") as hub,
        client.start(contained(image, argv(client)), name="tapotun") as laptop,
    ):
        hub.wait_for_log("started: ")
        laptop.wait_for_log(UPLOADING, timeout=RETRY_S)
        wait_for_ping(client, TUNNEL_SERVER)
        status = Path(f"/proc/{hub.pid}/status").read_text(encoding="ascii")
        assert re.search(r"(?m)^Uid:\t810\t810\t810\t810$", status)
        assert capabilities(hub.pid) == NET_ADMIN
        # Healthy, as the engine asks.
        for host in (server, client):
            health = host.run(contained(image, [*image.healthcheck, "--name", host.name]), timeout=60)
            assert health.stderr == ""
        assert "laptop" in server.run(contained(image, ["tapotun", "status"]), timeout=60).stdout
        # Stopped as the engine stops it.
        for it in (laptop, hub):
            assert it.stop(5, with_signal=signal.Signals[image.stop_signal]) == 0
    done = server.run(contained(image, [*image.healthcheck[:3], "0.1"]), check=False, timeout=60)
    assert done.returncode == 3, "with nothing running it is not healthy"
    assert image.healthcheck[:3] == ["tapotun", "wait", "--timeout"]
    limits = [float(image.healthcheck_options["timeout"].removesuffix("s")), float(image.healthcheck[3])]
    assert limits[0] > limits[1], "the engine would kill the check before it can say anything"


def test_without_the_capability_it_says_so_and_other_verbs_work(image: Image, lab: Lab) -> None:
    host = lab.host("machine")
    config(image, host, server_config())
    start = [*image.entrypoint, "run", "/etc/tapotun/machine.json"]
    done = host.run(contained(image, start, net_admin=False), check=False, timeout=60)
    assert done.returncode == 1
    assert "(uid 810) lacks CAP_NET_ADMIN" in done.stderr
    assert "--cap-add=NET_ADMIN" in done.stderr
    done = host.run(contained(image, [*image.entrypoint, "token"], net_admin=False), timeout=60)
    assert done.stdout.startswith('client:  "token": ')
    done = host.run(contained(image, [*image.entrypoint, "--version"], net_admin=False), timeout=60)
    assert done.stdout == NATIVE


def test_where_no_file_may_give_a_capability_root_can_run_it(image: Image, lab: Lab) -> None:
    """--security-opt no-new-privileges."""
    host = lab.host("machine")
    config(image, host, server_config(listen="127.0.0.1"))
    start = [*image.entrypoint, "run", "/etc/tapotun/machine.json"]
    done = host.run(contained(image, start, "--no-new-privs"), check=False, timeout=60)
    assert done.returncode == 1
    assert "(uid 810) lacks CAP_NET_ADMIN" in done.stderr
    as_root = contained(image, start, "--no-new-privs", user_and_group="0:0")
    with host.start(as_root, name="tapotun") as daemon:
        daemon.wait_for_log("started: ")
        assert capabilities(daemon.pid) & NET_ADMIN
        assert daemon.stop(5) == 0


def test_nobody_else_gets_the_capability(image: Image, lab: Lab) -> None:
    host = lab.host("machine")
    python = "/opt/tapotun/bin/python-net-admin"
    other = contained(image, [python, "-c", ""], user_and_group="65534:65534")
    done = host.run(other, check=False, timeout=60)
    assert "Permission denied" in done.stderr
    found = image.files.run(["getcap", "-r", "/"])
    assert found == f"{python} cap_net_admin=ep\n"


def test_it_is_small_and_has_nothing_of_its_making(image: Image, bookworm: Path) -> None:
    def size(root: Path) -> int:
        done = subprocess.run(["du", "-sxk", root], check=True, capture_output=True, text=True)
        return int(done.stdout.split()[0])

    added_mb = (size(image.files.root) - size(bookworm)) / 1024
    assert added_mb < 90, f"{added_mb:.0f} MB on top of the base image"
    for path in ("src", "opt/tapotun/bin/pip", "usr/bin/gcc", "usr/bin/pip3"):
        assert not (image.files.root / path).exists(), path
    assert not list((image.files.root / "var/lib/apt/lists").iterdir())
    assert not list((image.files.root / "opt/tapotun").rglob("pip"))
    assert image.labels["org.opencontainers.image.title"] == "tapotun"


def test_it_has_the_c_module(image: Image, lab: Lab) -> None:
    done = lab.host("machine").run(contained(image, ["/opt/tapotun/bin/python3", "-I", "-c", EXERCISE]), timeout=60)
    assert re.fullmatch(EXERCISED.format(r"/opt/tapotun/lib/python3\.11/site-packages/.*/_pump\.abi3\.so"), done.stdout)


def test_what_the_reader_does_not_know_is_an_error(tmp_path: Path, bookworm: Path) -> None:
    """Or a step that nobody ran would pass."""
    file = tmp_path / "Containerfile"
    for text in ("ARG BASE=x\nFROM elsewhere\n", "RUN true\n", "ARG BASE=x\n"):
        file.write_text(text, encoding="utf-8")
        with pytest.raises(Unknown):
            build(file, ROOT, bookworm, tmp_path / "stages")
    assert list(instructions("RUN a \\\n # no\n  b\n\n# c\nUSER 1")) == [("RUN", "a b"), ("USER", "1")]
