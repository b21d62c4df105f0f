"""Debian's Prometheus and its promtool with what we tell them: pages, rules, configs, and a real scrape."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

from tests.harness import Host, Lab, ping, wait_until

from .topologies import (
    CLIENT,
    SERVER,
    TUNNEL_SERVER,
    UPLOADING,
    Config,
    allowed,
    cable,
    client_config,
    running,
    server_config,
)

pytestmark = pytest.mark.netns

ROOT: Final = Path(__file__).parents[2]
CONF: Final = ROOT / "conf" / "prometheus"
DASHBOARD: Final[dict[str, Any]] = json.loads((ROOT / "conf" / "grafana" / "tapotun.json").read_text(encoding="utf-8"))
PATIENCE_S: Final = 30.0
ADMIN_TOKEN: Final = "raw-token-of-the-operator"
PORT: Final = 9433  # as in scrape.yml

# What Grafana puts in for its variables when everything is chosen.
CHOSEN: Final = {"$instance": ".*", "$interface": ".*", "$client": ".*", "$__rate_interval": "10s"}
EXPRESSIONS: Final = [target["expr"] for panel in DASHBOARD["panels"] for target in panel.get("targets", [])]


def chosen(expression: str) -> str:
    for variable, value in CHOSEN.items():
        expression = expression.replace(variable, value)
    return expression


def with_admin(host: Host, address: str, *interfaces: Config) -> Path:
    """A config of these interfaces, with an admin listener."""
    file = host.tmp / "with-admin.json"
    config = {"interfaces": interfaces, "admin": {"listen": f"{address}:{PORT}", "token": ADMIN_TOKEN}}
    file.write_text(json.dumps(config), encoding="utf-8")
    file.chmod(0o600)
    return file


def configured(host: Host, *targets: str, interval: str = "15s") -> Path:
    """conf/prometheus as scrape.yml says where its files are; returns that one."""
    text = (CONF / "scrape.yml").read_text(encoding="utf-8")
    target = f"- 127.0.0.1:{PORT}\n"
    assert target in text
    indent = re.search(rf"( +){target}", text)
    assert indent is not None
    text = text.replace(target, f"\n{indent[1]}".join(f"- {it}" for it in targets or (f"127.0.0.1:{PORT}",)) + "\n")
    text = text.replace("15s", interval)
    config = host.tmp / "prometheus.yml"
    config.write_text(text, encoding="utf-8")
    (host.tmp / "tapotun.token").write_text(f"{ADMIN_TOKEN}\n", encoding="utf-8")
    (host.tmp / "alerts.yml").write_bytes((CONF / "alerts.yml").read_bytes())
    return config


def test_promtool_takes_the_configuration_and_the_rules(lab: Lab) -> None:
    host = lab.host("monitor")
    checked = host.run(["promtool", "check", "config", configured(host)], timeout=PATIENCE_S)
    assert "rules found" in checked.stdout


def test_the_alerts_fire_when_they_shall(lab: Lab) -> None:
    host = lab.host("monitor")
    host.run(["promtool", "test", "rules", ROOT / "tests" / "netns" / "alerts.test.yml"], timeout=PATIENCE_S)


def test_promtool_understands_every_expression_of_the_dashboard(lab: Lab) -> None:
    host = lab.host("monitor")
    rules = [{"record": f"panel:{number}", "expr": chosen(it)} for number, it in enumerate(EXPRESSIONS)]
    assert "$" not in json.dumps(rules)
    file = host.tmp / "dashboard.json"  # JSON is YAML
    file.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}), encoding="utf-8")
    checked = host.run(["promtool", "check", "rules", file], timeout=PATIENCE_S)
    assert f"{len(EXPRESSIONS)} rules found" in checked.stdout


class Prometheus:
    """One that runs on a host."""

    def __init__(self, host: Host) -> None:
        self._host = host

    def get(self, path: str, **arguments: str) -> Any:
        encoded = [word for name, value in arguments.items() for word in ("--data-urlencode", f"{name}={value}")]
        url = f"http://127.0.0.1:9090/api/v1/{path}"
        answer = json.loads(self._host.run(["curl", "-sS", "-G", *encoded, url]).stdout)
        assert answer["status"] == "success", answer
        return answer["data"]

    def is_ready(self) -> bool:
        """Whether it answers queries: it listens before it has opened its storage."""
        url = "http://127.0.0.1:9090/-/ready"
        return self._host.run(["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", url]).stdout == "200"

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        found = self.get("query", query=expression)["result"]
        return [(it["metric"], float(it["value"][1])) for it in found]

    def until(self, expression: str, holds: Callable[[list[tuple[dict[str, str], float]]], bool]) -> None:
        def look() -> bool:
            return holds(self.query(expression))

        wait_until(look, PATIENCE_S, f"that of {expression}", lambda: str(self.query(expression)))


def test_prometheus_reads_two_ends_of_a_tunnel(lab: Lab) -> None:
    server, client = cable(lab)
    config = configured(server, f"127.0.0.1:{PORT}", f"{CLIENT}:{PORT}", interval="1s")
    tunnel = server_config(allowed("laptop"), allowed('a "b"\\n', "10.10.0.9"), keepalive=1)
    # Nobody is in that segment, but the switch has metrics.
    segment = server_config(
        allowed("camera", "10.30.0.2"), name="seg0", device="tap", net="10.30.0.1/24", path="/segment"
    )
    hub = with_admin(server, "127.0.0.1", tunnel, segment)
    with (
        running(server, hub, "--name", "hub"),
        running(client, with_admin(client, CLIENT, client_config()), until=UPLOADING) as laptop,
        server.start(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={server.tmp}/tsdb",
                "--web.listen-address=127.0.0.1:9090",
                "--log.level=warn",
            ],
        ) as process,
    ):
        server.wait_for_listener(9090, PATIENCE_S, by=process)
        prometheus = Prometheus(server)
        wait_until(prometheus.is_ready, PATIENCE_S, "Prometheus", process.tail)
        prometheus.until("sum(up)", lambda it: it == [({}, 2.0)])

        assert ping(client, TUNNEL_SERVER, count=20, interval=0.05).received == 20
        # What one end has sent the other has received, to the byte.
        for one, other in (("receive", "transmit"), ("transmit", "receive")):
            here = f'tapotun_client_{one}_bytes_total{{client="laptop"}}'
            there = f'tapotun_client_{other}_bytes_total{{server="{SERVER}:8080"}}'
            prometheus.until(f"{here} == on () {there}", lambda it: it != [] and it[0][1] >= 20 * 84)
        prometheus.until(
            f'rate(tapotun_client_receive_packets_total{{client="laptop"}}[{PATIENCE_S:.0f}s]) > 0',
            lambda it: len(it) == 1,
        )
        assert prometheus.query('tapotun_client_connected{client="a \\"b\\"\\\\n"}')[0][1] == 0.0
        assert prometheus.query("tapotun_interface_up == 1 and tapotun_interface_mtu_bytes > 1000") != []
        prometheus.until(
            'tapotun_client_rtt_last_seconds{client="laptop"}', lambda it: 0 < it[0][1] < 5 if it else False
        )
        ages = prometheus.query("time() - tapotun_client_last_frame_timestamp_seconds")
        assert len(ages) == 2
        assert all(-2 < age < PATIENCE_S for _, age in ages)

        # It took OpenMetrics: only there a counter's family has no _total, and bytes are a unit.
        [described] = prometheus.get("metadata", metric="tapotun_client_receive_bytes")["tapotun_client_receive_bytes"]
        assert (described["type"], described["unit"]) == ("counter", "bytes")
        # Every panel shows something, but for streams that broke and strangers at the door.
        empty = [it for it in EXPRESSIONS if not prometheus.query(chosen(it))]
        assert len(EXPRESSIONS) > 20
        assert all("tapotun_client_stream_ends" in it or "tapotun_listener_refused" in it for it in empty), empty
        targets = prometheus.get("targets")["activeTargets"]
        assert [(it["health"], it["lastError"]) for it in targets] == [("up", "")] * 2
        alerts = prometheus.get("rules")["groups"][0]["rules"]
        assert {it["health"] for it in alerts} == {"ok"}

        # A page for who asks for the older format, judged by promtool as well; nothing for who shows no token.
        page = f"curl -sSf -H 'Accept: text/plain' -H 'x-api-key: {ADMIN_TOKEN}' http://127.0.0.1:{PORT}/metrics"
        linted = server.run(["sh", "-c", f"{page} | promtool check metrics"], timeout=PATIENCE_S)
        assert linted.stdout + linted.stderr == ""
        refused = server.run(
            ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"http://127.0.0.1:{PORT}/metrics"]
        )
        assert refused.stdout == "401"

        # The client goes, and the server's clients and the alerts know.
        assert laptop.stop() == 0
        prometheus.until('tapotun_client_connected{client="laptop"}', lambda it: [value for _, value in it] == [0.0])
        pending = 'ALERTS{alertstate="pending", alertname="%s"}'
        prometheus.until(
            pending % "TapotunNotScraped", lambda it: [a["instance"] for a, _ in it] == [f"{CLIENT}:{PORT}"]
        )
        prometheus.until(pending % "TapotunClientAbsent", lambda it: {a["client"] for a, _ in it} > {"laptop"})
