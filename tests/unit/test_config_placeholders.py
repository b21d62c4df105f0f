"""What a template was to fill in, and what only looks a little like it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tapotun_trio.config.load import check, check_content

from .test_config_load import Json, allowed, client, server

PLACEHOLDERS = [
    "${TOKEN}",
    "$TOKEN",
    "${TOKEN:-none}",
    "a-${ENV}-b",
    "{{ token }}",
    "{{token}}",
    "{{ .Values.token }}",
    "<raw token>",
    "<%= token %>",
    "%TOKEN%",
    "@TOKEN@",
    "__TOKEN__",
    "$(cat /run/secret)",
    "env:TOKEN",
    "file:/run/secret",
    "vault:secret/data/tun#token",
    "CHANGE_ME",
    "changeme",
    "replace-me",
    "your-token-here",
    "YOUR_TOKEN",
    "TODO",
    "xxxx",
]
TOKENS = [
    "test",
    "raw-token",
    "s3cret",
    "a$b",
    "100%",
    "<3",
    "{}",
    "$1$salt$hash",
    "a@b.c",
    "__init",
    "you-are-it",
    "x",
]


def warnings(entry: Json) -> list[tuple[str, str, str]]:
    data = json.dumps([entry]).encode()
    config, findings = check_content(data, "F")
    assert config is not None, findings
    return [(finding.path, finding.value, finding.problem) for finding in findings]


@pytest.mark.parametrize("token", PLACEHOLDERS)
def test_a_token(token: str) -> None:
    assert warnings(client(token=token)) == [
        ("[0].token", "***", "looks like a placeholder, and nothing here fills it in")
    ]


@pytest.mark.parametrize("token", TOKENS)
def test_a_token_that_may_be_one(token: str) -> None:
    assert warnings(client(token=token)) == []


@pytest.mark.parametrize("token", ["${TOKEN}", "<hash of the raw token>"])
def test_a_hash(token: str) -> None:
    """Not "it looks like the raw token"."""
    _, findings = check_content(json.dumps([server(clients=[allowed(token=token)])]).encode(), "F")
    [finding] = [finding for finding in findings if finding.path == "[0].clients[0].token"]
    assert (finding.severity, finding.value) == ("error", "***")
    assert finding.problem == "looks like a placeholder, and nothing here fills it in"


@pytest.mark.parametrize("token", PLACEHOLDERS)
def test_a_token_file(token: str, tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{token}\n")
    (tmp_path / "token").chmod(0o600)
    file = tmp_path / "t.json"
    file.write_text(json.dumps([client(token=..., token_file="token")]))
    [finding] = check(file)[1]
    assert (finding.severity, finding.path, finding.value) == ("warning", "[0].token_file", '"token"')
    assert "looks like a placeholder" in finding.problem


def test_other_fields() -> None:
    """Everywhere, once for each value; a value that is an error anyway is not named twice."""
    root = {
        "interfaces": [
            client(name="${NAME}", proxy="http://u:${PASSWORD}@p:1"),
            client(name="b", server="https://${HOST}/ip"),
            client(name="c", token="c", device="tap", bridge="${BRIDGE}", mac="${MAC}"),
            client(name="d", token="d", device="tap", bridge={"name": "<bridge>"}),
        ],
        "admin": {"listen": "127.0.0.1:9433", "token": "{{ admin }}"},
    }
    _, findings = check_content(json.dumps(root).encode(), "F")
    assert "PASSWORD" not in str(findings)
    for path in ("interfaces[0].name", "interfaces[0].proxy", "interfaces[1].server", "admin.token"):
        assert [finding.path for finding in findings].count(path) == 1
    for path in ("interfaces[2].bridge", "interfaces[2].mac", "interfaces[3].bridge.name"):
        assert [finding.path for finding in findings].count(path) == 1


def test_with_a_comment_about_one() -> None:
    data = b'[{"name": "a", "server": "http://h/ip", "token": "raw" /* not "${TOKEN}" */}]'
    assert check_content(data, "F")[1] == []
