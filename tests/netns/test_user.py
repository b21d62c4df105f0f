"""`user`: root starts the program, and it becomes an ordinary user who keeps what a tunnel needs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness import ROOT, Host, Lab, Process, ping, wait_for_ping

from .dual import HUB, dual_cable, dual_config, rules_6
from .ordinary import PLAIN, add_user, open_to_everybody
from .topologies import UPLOADING, allowed, client_config, server_config

pytestmark = pytest.mark.netns

UID: Final = 4810
OTHER_UID: Final = 4811
NET_ADMIN: Final = 1 << 12
NET_BIND_SERVICE: Final = 1 << 10
PATIENCE_S: Final = 30.0
ENV: Final = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"}
LISTENING: Final = "tun0: listening on "


def as_user(uid: int = UID) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "--inh-caps=-all", "--ambient-caps=-all"]


def prepared(host: Host) -> Host:
    """With the user, who can run the program."""
    open_to_everybody(host)
    add_user(host, "tapotun", UID)
    add_user(host, "other", OTHER_UID)
    return host


def write(host: Host, name: str, content: object, mode: int = 0o640, group: int = UID) -> Path:
    """A file of root's, by default one that the user's group may read."""
    file = host.tmp / name
    file.touch(mode=0o600)
    file.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    os.chown(file, 0, group)
    file.chmod(mode)
    return file


def start(host: Host, *options: str | Path, before: tuple[str, ...] = ()) -> Process:
    return host.start([*before, *PLAIN, "run", *options], name="tapotun", env=ENV, cwd=ROOT)


def verb(host: Host, *argv: str, before: tuple[str, ...] | list[str] = ()) -> subprocess.CompletedProcess[str]:
    return host.run([*before, *PLAIN, *argv], check=False, env=ENV, timeout=PATIENCE_S)


def refusal(host: Host, *options: str | Path, before: tuple[str, ...] | list[str] = ()) -> str:
    """The one line with which a start is refused."""
    done = host.run([*before, *PLAIN, "run", *options], check=False, env=ENV, timeout=PATIENCE_S)
    assert done.returncode == 1, done.stdout + done.stderr
    [line] = [it for it in done.stderr.splitlines() if " ERROR " in it]
    assert "Traceback" not in done.stderr
    return line


def identity(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return {key: " ".join(value.split()) for key, value in re.findall(r"(?m)^(\w+):\s*(.*)$", text)}


def test_a_whole_life(lab: Lab) -> None:
    server, client = map(prepared, dual_cable(lab))
    # Root's service, as in conf: the port needs a capability, and the rule another.
    hub: dict[str, Any] = {
        "interfaces": [dual_config(port=80, mark={"value": 7, "table": 7})],
        "user": "tapotun",
        "admin": {"listen": 9433},
    }
    file = write(server, "hub.json", hub)
    write(client, "token", "raw-token-of-laptop")
    entry = client_config(server="http://192.0.2.1/ip", token_file="token")
    del entry["token"]
    laptop = write(client, "laptop.json", [entry])
    with start(server, "--name", "hub", file) as daemon, start(client, "--user", "tapotun", laptop) as far:
        daemon.wait_for_log(LISTENING)
        far.wait_for_log(UPLOADING, timeout=PATIENCE_S)
        assert all(ping(client, address).ok for address in HUB)
        for process, kept in ((daemon, NET_ADMIN | NET_BIND_SERVICE), (far, NET_ADMIN)):
            it = identity(process.pid)
            assert it["Uid"] == it["Gid"] == " ".join([str(UID)] * 4)
            assert it["Groups"] == str(UID)
            assert int(it["CapEff"], 16) == int(it["CapPrm"], 16) == kept
            assert int(it["CapInh"], 16) == int(it["CapAmb"], 16) == 0
            assert it["NoNewPrivs"] == "1"
            # Not dumpable: no other process of this user reads its memory, which has the tokens.
            assert Path(f"/proc/{process.pid}/mem").stat().st_uid == 0
            assert int(it["Threads"]) >= 1
            for task in Path(f"/proc/{process.pid}/task").iterdir():
                assert identity(int(task.name))["Uid"] == it["Uid"]

        # Its user and root ask it; others cannot.
        assert "laptop" in verb(server, "status").stdout
        assert "laptop" in verb(server, "status", before=as_user()).stdout
        assert verb(server, "status", before=as_user(OTHER_UID)).stdout == ""
        assert verb(server, "reload", before=as_user()).stdout == "the config has not changed\n"
        assert verb(client, "reload").stdout == "the config has not changed\n"
        seen = server.run(
            ["stat", "-c", "%U %a", "/run/tapotun", "/run/tapotun/tapotun", "/run/tapotun/tapotun/hub.sock"]
        )
        assert seen.stdout.splitlines() == ["root 755", "tapotun 755", "tapotun 600"]

        # Root's own process beside it has its socket one floor up, and finds the name taken.
        third = write(
            server,
            "third.json",
            [server_config(allowed("phone", "10.99.0.2"), name="tun9", port=8089, net="10.99.0.1/24")],
            group=0,
        )
        with start(server, "--name", "third", third) as beside:
            beside.wait_for_log("tun9: listening on ")
            both = verb(server, "status").stdout
            assert "hub, pid" in both
            assert "third, pid" in both
            assert beside.stop(PATIENCE_S) == 0
        assert "tun0: the name is taken: process " in refusal(server, file)

        # A reload applies what it can as this user, and says what it cannot.
        file.write_text(json.dumps({**hub, "interfaces": [dual_config(port=80, mtu=1400)]}), encoding="utf-8")
        said = verb(server, "reload").stdout
        assert "tun0: mtu changed (1500 -> 1400)\n" in said
        assert "tun0: mark changed (7 in table 7 -> none)\n" in said
        assert [it["mtu"] for it in server.ip("link show tun0")] == [1400]
        file.write_text(json.dumps({**hub, "user": "other"}), encoding="utf-8")
        for _ in range(2):  # and says it again while it is so
            assert "user: needs a restart (tapotun -> other)\n" in verb(server, "reload").stdout
        assert identity(daemon.pid)["Uid"].split()[0] == str(UID)
        del hub["user"]
        file.write_text(json.dumps(hub), encoding="utf-8")
        assert "user: needs a restart (tapotun -> none)\n" in verb(server, "reload", "--dry-run").stdout
        file.write_text(json.dumps({**hub, "user": "tapotun"}), encoding="utf-8")
        assert verb(server, "reload").stdout == "the config has not changed\n"

        # Killed, the next one finds its way past what is left, and everything is undone at the end.
        daemon.signal(signal.SIGKILL)
        daemon.wait(PATIENCE_S)
        with start(server, "--name", "hub", file) as again:
            again.wait_for_log(LISTENING)
            for address in HUB:
                wait_for_ping(client, address, PATIENCE_S)
            assert far.stop(PATIENCE_S) == 0
            assert again.stop(PATIENCE_S) == 0
    assert server.run(["find", "/run/tapotun", "-type", "s"]).stdout == ""
    assert "tun0" not in server.run(["ip", "link"]).stdout
    assert "fwmark" not in server.run(["ip", "rule"]).stdout
    assert rules_6(server) == []


def test_what_is_refused_at_the_start(lab: Lab) -> None:
    host = prepared(lab.host("machine"))
    config = server_config(listen="127.0.0.1", port=8080)
    file = write(host, "hub.json", {"interfaces": [config], "user": "tapotun"})
    nobody = write(host, "nobody.json", {"interfaces": [config], "user": "no-such-user"})
    line = refusal(host, nobody)
    assert 'user "no-such-user": this machine has no such user; make one (useradd --system' in line
    assert 'user "admin0": is user 0' in _root_by_another_name(host, config)
    line = refusal(host, file, before=as_user(OTHER_UID))
    assert "cannot be read: Permission denied; run it as root, or let group other read it: chgrp other " in line
    file.chmod(0o644)
    line = refusal(host, file, before=as_user(OTHER_UID))
    assert (
        'cannot become user "tapotun": this process was started as "other", and only root can; start it as root' in line
    )
    line = refusal(host, file, before=("setpriv", "--bounding-set=-setgid"))
    assert (
        'cannot become user "tapotun": setgroups: Operation not permitted; let it have CAP_SETUID and CAP_SETGID'
        in line
    )
    line = refusal(host, file, before=("setpriv", "--bounding-set=-setuid"))
    assert 'cannot become user "tapotun": setresuid: Operation not permitted; let it have CAP_SETUID' in line
    assert "lacks CAP_NET_ADMIN" in refusal(host, file, before=("setpriv", "--bounding-set=-net_admin"))
    (host.tmp / "tun").chmod(0o600)
    assert "/dev/net/tun: Permission denied; make it readable and writable for this user" in refusal(host, file)
    (host.tmp / "tun").chmod(0o666)
    # Its Unix socket in a directory of somebody else's: what root could do is not what this user may do.
    (host.tmp / "proxy").mkdir(mode=0o755)
    sock = f"unix:{host.tmp}/proxy/hub.sock"
    other = write(host, "unix.json", {"interfaces": [server_config(listen=sock, port=8080)], "user": "tapotun"})
    line = refusal(host, other)
    assert (
        f'cannot listen on {sock}: user "tapotun" may not write to {host.tmp}/proxy; give it that directory; ' in line
    )
    assert "unix-socket.conf" in line
    os.chown(host.tmp / "proxy", 0, UID)
    (host.tmp / "proxy").chmod(0o2770)
    with start(host, other) as daemon:
        daemon.wait_for_log(LISTENING)
        assert daemon.stop(PATIENCE_S) == 0
    assert list((host.tmp / "proxy").iterdir()) == []
    # Read-only, as a service manager makes it.
    host.run(["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", host.tmp / "proxy"])
    assert (
        "Read-only file system; for the systemd unit, copy its unix-socket.conf (/usr/share/tapotun/systemd) to "
        in refusal(host, other)
    )
    # The program in a directory that only root may enter.
    host.run(["mount", "-t", "tmpfs", "-o", "mode=700", "tmpfs", "/opt"])
    host.run(["cp", "-a", ROOT / "tapotun_trio", "/opt/tapotun_trio"])
    done = host.run(
        ["sh", "-c", f'cd /opt && exec {" ".join(PLAIN)} run "$1"', "sh", file], check=False, timeout=PATIENCE_S
    )
    assert done.returncode == 1
    assert (
        'user "tapotun" cannot read this program (no access to /opt), which loads parts of itself later' in done.stderr
    )
    assert host.run(["ip", "link", "show", "tun0"], check=False).returncode != 0


def _root_by_another_name(host: Host, config: dict[str, Any]) -> str:
    add_user(host, "admin0", 0)
    return refusal(host, write(host, "admin0.json", {"interfaces": [config], "user": "admin0"}))


def test_files_that_the_user_cannot_read(lab: Lab) -> None:
    """Root reads them at the start; a reload could not. The start says so, and so does the doctor before it."""
    host = prepared(lab.host("machine"))
    private = host.tmp / "private"
    private.mkdir(mode=0o700)
    write(host, "private/token", "raw-token-of-laptop", 0o644)
    entry = client_config(server="http://127.0.0.1:9/", token_file="private/token")
    del entry["token"]
    file = write(host, "laptop.json", {"interfaces": [entry], "user": "tapotun"}, mode=0o600, group=0)
    secret = f'user "tapotun" cannot read {private}/token; keep it elsewhere, such as in /etc/tapotun: '
    secret += f"group tapotun may not enter {private}"
    own = f'user "tapotun" cannot read {file}; let group tapotun read it: chgrp tapotun {file}; chmod g+r {file}'
    doctor = verb(host, "doctor", str(file))
    assert doctor.returncode == 1
    failures = [line.split(maxsplit=2)[2] for line in doctor.stdout.splitlines() if line.startswith("FAILURE user ")]
    assert failures == [own, secret]
    with start(host, "--name", "laptop", file) as daemon:
        daemon.wait_for_log("tun0")
        warned = [line.partition("a reload will fail: ")[2] for line in daemon.log.splitlines() if " a reload " in line]
        assert warned == [own, secret]
        refused = verb(host, "reload")
        assert refused.returncode == 1
        assert f"{file}: cannot be read: Permission denied; " in refused.stderr
        assert f"chgrp tapotun {file}; chmod g+r {file}" in refused.stderr
        # As it says.
        host.run(["chgrp", "tapotun", file])
        host.run(["chmod", "g+r", file])
        refused = verb(host, "reload")
        assert 'token_file: "private/token" cannot be read: Permission denied; ' in refused.stderr
        assert f"group tapotun may not enter {private}" in refused.stderr
        private.chmod(0o755)
        (private / "token").chmod(0o640)  # root:tapotun, which is no file for everybody
        assert verb(host, "reload").stdout == "the config has not changed\n"
        assert "can be read by every user" not in daemon.log.partition("a reload will fail")[2]
        assert daemon.stop(PATIENCE_S) == 0
    assert (
        'ok      user         user "tapotun" may read the files of this config'
        in verb(host, "doctor", str(file)).stdout
    )
    # Who is neither root nor that user cannot find out.
    file.chmod(0o644)
    (private / "token").chmod(0o644)
    found = verb(host, "doctor", str(file), before=as_user(OTHER_UID)).stdout
    assert (
        'note    user         whether user "tapotun" may read the files of this config is not known; run it as root'
        in found
    )


def test_a_directory_of_somebody_else_leads_root_nowhere(lab: Lab) -> None:
    """The owner of /run/tapotun could have made a link to any directory there, for root to give away."""
    host = prepared(lab.host("machine"))
    host.run(["mkdir", "-m", "700", "/run/victim"])
    host.run(["install", "-d", "-o", "other", "-g", "other", "-m", "755", "/run/tapotun"])
    host.run(["ln", "-s", "/run/victim", "/run/tapotun/tapotun"])
    file = write(host, "hub.json", {"interfaces": [server_config(listen="127.0.0.1")], "user": "tapotun"})
    for _ in range(2):
        with start(host, file) as daemon:
            daemon.wait_for_log(LISTENING)
            assert "no control socket, so tapotun status will not see this process: " in daemon.log
            assert daemon.stop(PATIENCE_S) == 0
        assert host.run(["stat", "-c", "%U %a", "/run/victim"]).stdout == "root 700\n"
        host.run(["chown", "root", "/run/tapotun"])  # the link remains, in a directory of root's own
