"""The Debian package: installed, run, upgraded, removed and purged in a Debian of its own."""

from __future__ import annotations

import json
import platform
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tapotun_trio import __version__
from tests.harness import ROOT, Lab, upload, wait_for_ping
from tests.netns.topologies import RETRY_S, TUNNEL_SERVER, UPLOADING, cable, client_config, server_config

from .chroot import Chroot
from .conftest import machine, make
from .foreign import FOREIGN
from .pythons import EXERCISE, EXERCISED, NATIVE

pytestmark = pytest.mark.netns

MODULE = "tapotun_trio/datapath/_pump.abi3.so"


def installed(debian: Chroot, deb: Path) -> None:
    """Bring it in, as `apt-get install ./tapotun.deb` does."""
    shutil.copy(deb, debian.root / "tmp")
    debian.run(["dpkg", "-i", f"/tmp/{deb.name}"])


def newer(deb: Path, place: Path, version: str) -> Path:
    """The same package with a higher version."""
    tree = place / "tree"
    subprocess.run(["dpkg-deb", "-R", deb, tree], check=True)
    control = tree / "DEBIAN" / "control"
    text = control.read_text(encoding="utf-8")
    control.write_text(re.sub(r"(?m)^Version: .*$", f"Version: {version}", text), encoding="utf-8")
    made = place / f"tapotun_{version}.deb"
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, made], check=True, stdout=subprocess.DEVNULL
    )
    return made


def test_lintian_finds_nothing_but_what_is_overridden_with_its_reason(deb: Path) -> None:
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0", deb],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == ""
    overrides = (ROOT / "packaging" / "deb" / "lintian-overrides").read_text(encoding="utf-8").splitlines()
    reasons = 0
    for before, line in zip(["", *overrides], overrides, strict=False):
        reasons += line.startswith("#")
        assert line.startswith(("#", "tapotun: ")), line
        assert line.startswith("#") or before, "an override without a reason above it"
    assert reasons >= 4


def test_its_life_from_install_to_purge(deb: Path, debian: Chroot, lab: Lab, tmp_path: Path) -> None:
    untouched = debian.content()
    installed(debian, deb)
    server, client = cable(lab)

    # What is there.
    assert debian.run(["tapotun", "--version"]) == NATIVE
    assert debian.run(["stat", "-c", "%a %U:%G", "/etc/tapotun"]) == "2750 root:tapotun\n"
    assert re.fullmatch(
        r"tapotun:x:\d+:\d+:.*:/nonexistent:/usr/sbin/nologin\n", debian.run(["getent", "passwd", "tapotun"])
    )
    for name in ("unix-socket.conf", "notify-reload.conf"):
        drop_in = debian.root / "usr/share/tapotun/systemd" / name
        assert drop_in.read_bytes() == (ROOT / "conf" / "systemd" / name).read_bytes()
    unit = (debian.root / "usr/lib/systemd/system/tapotun@.service").read_text(encoding="utf-8")
    assert unit == (ROOT / "conf" / "systemd" / "tapotun@.service").read_text(encoding="utf-8")
    assert "ExecStart=/usr/bin/tapotun run" in unit
    for path in (
        "usr/share/man/man8/tapotun.8.gz",
        "usr/share/man/man5/tapotun.json.5.gz",
        "usr/share/bash-completion/completions/tapotun",
        "usr/share/zsh/vendor-completions/_tapotun",
        "usr/share/fish/vendor_completions.d/tapotun.fish",
        "usr/share/tapotun/tapotun.schema.json",
        "usr/share/doc/tapotun/copyright",
        "usr/share/doc/tapotun/README.md.gz",
        "usr/share/doc/tapotun/SECURITY.md.gz",
        "usr/share/doc/tapotun/howto/site-to-site.md.gz",
        "usr/share/doc/tapotun/examples/configs/server-minimal.json",
        "usr/share/doc/tapotun/examples/proxies/nginx/nginx.conf",
    ):
        assert (debian.root / path).exists(), path
    for path in ("s6/tapotun/run", "s6/tapotun/finish", "runit/tapotun/run", "runit/tapotun/log/run"):
        assert (debian.root / "usr/share/doc/tapotun/examples" / path).stat().st_mode & 0o777 == 0o755
    schema = json.loads((debian.root / "usr/share/tapotun/tapotun.schema.json").read_text(encoding="utf-8"))
    assert schema == json.loads((ROOT / "conf" / "tapotun.schema.json").read_text(encoding="utf-8"))
    # Compiled at installation: nothing is written when it runs.
    assert list((debian.root / "usr/lib/tapotun/tapotun_trio/__pycache__").glob("app.*.pyc"))

    # A tunnel, both ends as the unit starts them.
    debian.write("/etc/tapotun/hub.json", json.dumps([server_config()]))
    debian.write("/etc/tapotun/laptop.json", json.dumps([client_config()]))
    before = debian.content()

    def start(which: str) -> list[str]:
        return ["tapotun", "run", "--name", which, f"/etc/tapotun/{which}.json"]

    with debian.start(server, start("hub")) as hub, debian.start(client, start("laptop")) as laptop:
        hub.wait_for_log("started: ")
        laptop.wait_for_log(UPLOADING, timeout=RETRY_S)
        wait_for_ping(client, TUNNEL_SERVER)
        assert upload(client, server, TUNNEL_SERVER, 20_000_000).size == 20_000_000
        assert debian.on(server, ["tapotun", "wait", "--name", "hub", "--timeout", "5"]).returncode == 0
        assert "laptop" in debian.on(server, ["tapotun", "status"]).stdout
        assert debian.on(server, ["tapotun", "reload", "--name", "hub"]).stdout == "the config has not changed\n"
        assert hub.stop(5) == 0
        assert laptop.stop(5) == 0
    assert debian.content() - before <= {"./run/tapotun"}  # for other processes; /run is gone with the next start

    # An upgrade, and the same once more: the configs and what the operator did to their directory stay.
    debian.run(["chmod", "0700", "/etc/tapotun"])
    upgrade = newer(deb, tmp_path, f"{__version__}-2")
    for _ in range(2):
        installed(debian, upgrade)
        assert f"Version: {__version__}-2" in debian.run(["dpkg", "-s", "tapotun"])
        assert debian.run(["stat", "-c", "%a", "/etc/tapotun", "/etc/tapotun/hub.json"]) == "2700\n600\n"
        assert debian.run(["tapotun", "validate-config", "/etc/tapotun/hub.json"]).endswith(": valid: 1 server\n")

    # Removed, the configs are still there; purged, nothing is.
    debian.write("/etc/systemd/system/multi-user.target.wants/tapotun@hub.service", "as systemctl enable makes it")
    debian.run(["dpkg", "-r", "tapotun"])
    left = debian.content() - untouched - _ACCOUNTS
    assert all(it.startswith(("./etc/tapotun", "./etc/systemd/system", "./run/tapotun")) for it in left), left
    assert "./etc/tapotun/hub.json" in left
    for _ in range(2):
        debian.run(["dpkg", "-P", "tapotun"])
        assert debian.content() - untouched - _ACCOUNTS <= {"./etc/systemd", "./etc/systemd/system", *_WANTS}
        assert untouched <= debian.content()


# What adduser leaves: the files before the user was made, and its lock. The user stays, and so does its number.
_ACCOUNTS = {*(f"./etc/{name}-" for name in ("passwd", "group", "shadow", "gshadow")), "./run/adduser"}
_WANTS = {"./etc/systemd/system/multi-user.target.wants"}  # systemd's


def test_what_root_s_services_read_becomes_readable_for_their_user_once(
    deb: Path, debian: Chroot, tmp_path: Path
) -> None:
    """From the version whose services ran as root, and when files are there before the package."""
    files = {
        "hub.json": ("600 root:root", "640 root:tapotun"),
        "token": ("400 root:root", "440 root:tapotun"),
        "keys/client.key": ("600 root:root", "640 root:tapotun"),
        "public.json": ("644 root:root", "644 root:tapotun"),
        "proxy.json": ("600 www-data:www-data", "600 www-data:www-data"),
    }

    def modes() -> dict[str, str]:
        paths = [f"/etc/tapotun/{name}" for name in files]
        lines = debian.run(["stat", "-c", "%a %U:%G", *paths]).splitlines()
        return dict(zip(files, lines, strict=True))

    for name, (before, _) in files.items():
        owner = 33 if "www-data" in before else 0
        debian.write(f"/etc/tapotun/{name}", "[]", mode=int(before.split()[0], 8), owner=owner)
    debian.write("/root/outside", "x")
    (debian.root / "etc/tapotun/link").symlink_to("/root/outside")
    (debian.root / "etc/tapotun/keys").chmod(0o700)
    (debian.root / "etc/tapotun").chmod(0o750)
    installed(debian, deb)
    assert modes() == {name: after for name, (_, after) in files.items()}
    assert debian.run(["stat", "-c", "%a %U:%G", "/etc/tapotun", "/etc/tapotun/keys"]) == (
        "2750 root:tapotun\n750 root:tapotun\n"
    )
    assert debian.run(["stat", "-c", "%a %U:%G", "/root/outside"]) == "600 root:root\n"
    assert (
        debian.run(["setpriv", "--reuid=tapotun", "--regid=tapotun", "--clear-groups", "cat", "/etc/tapotun/token"])
        == "[]"
    )
    # Made later, as an editor does; and what somebody has changed since is left alone.
    debian.run(["sh", "-c", "umask 022; echo '[]' >/etc/tapotun/new.json"])
    assert debian.run(["stat", "-c", "%U:%G", "/etc/tapotun/new.json"]) == "root:tapotun\n"
    debian.run(["chgrp", "root", "/etc/tapotun/token", "/etc/tapotun"])
    installed(debian, newer(deb, tmp_path, f"{__version__}-2"))
    assert debian.run(["stat", "-c", "%U:%G", "/etc/tapotun/token", "/etc/tapotun"]) == "root:root\nroot:root\n"


def test_installed_again_after_a_removal_it_finds_its_configs(deb: Path, debian: Chroot) -> None:
    installed(debian, deb)
    debian.write("/etc/tapotun/hub.json", json.dumps([server_config()]))
    debian.run(["dpkg", "-r", "tapotun"])
    installed(debian, deb)
    assert debian.run(["tapotun", "validate-config", "/etc/tapotun/hub.json"]).endswith(": valid: 1 server\n")


def test_without_its_python_it_says_what_is_missing_and_apt_brings_it(deb: Path, minimal: Chroot) -> None:
    shutil.copy(deb, minimal.root / "tmp")
    said = minimal.run(["dpkg", "-i", f"/tmp/{deb.name}"], check=False)
    assert "tapotun depends on python3 (>= 3.11)" in said
    minimal.install("--fix-broken")
    assert minimal.run(["tapotun", "--version"]) == NATIVE


def test_the_same_sources_make_the_same_bytes(deb: Path) -> None:
    before = deb.read_bytes()
    deb.unlink()
    make("deb", "DEB_ARCH=amd64")
    assert deb.read_bytes() == before


@pytest.mark.skipif(platform.machine() == "aarch64", reason="what is native here is tested above")
def test_the_one_for_arm64_has_its_modules_and_runs(deb: Path, foreign: object, tmp_path: Path) -> None:
    other = make("deb", "DEB_ARCH=arm64") / deb.name.replace("amd64", "arm64")
    subprocess.run(["dpkg-deb", "-R", other, tmp_path / "tree"], check=True)
    assert "\nArchitecture: arm64\n" in (tmp_path / "tree" / "DEBIAN" / "control").read_text(encoding="utf-8")
    place = tmp_path / "tree" / "usr/lib/tapotun"
    compiled = sorted(place.rglob("*.so"))
    assert len(compiled) >= 5
    for file in compiled:
        assert file.name.endswith("-aarch64-linux-gnu.so") or file == place / MODULE
        assert machine(file.read_bytes()) == "aarch64"
    other.unlink()
    # It runs there, with the interpreter that the package would find.
    (python,) = (it for it in FOREIGN if (it.machine, it.libc) == ("aarch64", "gnu"))
    start = (tmp_path / "tree" / "usr/bin/tapotun").read_text(encoding="utf-8")
    (tmp_path / "tapotun").write_text(start.replace("/usr/lib/tapotun", str(place)), encoding="utf-8")
    assert python.run([tmp_path / "tapotun", "--version"]) == NATIVE
    assert python.run(["-c", EXERCISE, place]) == EXERCISED.format(place / MODULE)


def test_the_c_module_is_loaded_and_run(deb: Path, debian: Chroot) -> None:
    installed(debian, deb)
    said = debian.run(["python3", "-I", "-W", "error", "-c", EXERCISE, "/usr/lib/tapotun"])
    assert said == EXERCISED.format(f"/usr/lib/tapotun/{MODULE}")
