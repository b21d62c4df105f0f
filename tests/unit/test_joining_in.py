"""CONTRIBUTING.md, SECURITY.md and the forms for issues: what they name is there, and the example is a real test."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from tapotun_trio import cli
from tapotun_trio.shell.usage import verbs

from ..makes import environment, run_make

ROOT: Final = Path(__file__).parents[2]
CONTRIBUTING: Final = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECURITY: Final = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
FORMS: Final = sorted(path for path in (ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml") if path.name != "config.yml")
VERBS: Final = {
    verb.name: {flag for option in verb.options for flag in option.flags} for verb in verbs(cli.build_parser())
}
# GitHub's form schema; Forgejo and Gitea read the same.
KINDS: Final = {"markdown", "textarea", "input", "dropdown", "checkboxes"}


def test_the_example_is_a_test_that_runs() -> None:
    (block,) = re.findall(r"(?ms)^```python\n(.*?)^```$", CONTRIBUTING)
    assert f"\n\n{block}\n" in (ROOT / "tests" / "netns" / "test_lifecycle.py").read_text(encoding="utf-8")


def test_every_target_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"(?m)(?:^|`)make ([a-z-]+)", CONTRIBUTING))
    assert len(named) > 5
    assert {target for target in named if not re.search(rf"(?m)^{target}:", makefile)} == set()


# Steps of others, not to be typed.
STEPS: Final = {"help", "venv-run", "zig", "apt-variables"}


def test_the_help_has_every_target_and_no_other() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = {name for line in re.findall(r"(?m)^\.PHONY: (.+)$", makefile) for name in line.split()}
    groups = re.findall(r"make ([a-z-]+(?:, [a-z-]+)*)", run_make("help").stdout)
    told = {name for names in groups for name in names.split(", ")}
    assert told == targets - STEPS


@pytest.mark.parametrize("given", [[], ["APT_KEY=0123"]])
def test_what_a_signed_repository_lacks_is_told_before_anything_is_built(given: list[str]) -> None:
    for target in ("apt", "release"):
        done = run_make("APT_KEY=", "APT_URL=", *given, target)
        assert done.returncode == 2
        assert done.stdout == ""
        assert ("APT_URL=https" if given else "APT_KEY=FINGERPRINT") in done.stderr.splitlines()[0]


def test_make_below_another_make(tmp_path: Path) -> None:
    """As in CI: the outer one's options and variables are not those of a make that a test runs."""
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.makes import environment, run_make\n"
        "done = run_make('apt')\n"
        "sys.stdout.write(done.stdout)\n"
        "sys.stderr.write(done.stderr)\n",
        encoding="utf-8",
    )
    makefile = tmp_path / "Makefile"
    makefile.write_text(f"outer:\n\t@{shlex.join([sys.executable, str(script)])}\n", encoding="utf-8")
    outer = ["make", "--file", str(makefile), "APT_KEY=a name with APT_URL=x in it"]
    done = subprocess.run(outer, check=True, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert done.stdout == ""
    assert "APT_KEY=FINGERPRINT" in done.stderr.splitlines()[0]


def test_every_file_is_there() -> None:
    named = set(re.findall(r"tests/[\w/]+(?:\.py)?", CONTRIBUTING + SECURITY))
    assert len(named) > 5
    assert {name for name in named if not (ROOT / name).exists()} == set()


def test_where_to_report_is_said_wherever_it_is_set() -> None:
    """If the package's metadata gets an address for that, SECURITY.md has to have it, too."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    addresses = [url for label, url in project.get("urls", {}).items() if "secur" in label.lower()]
    assert [url for url in addresses if url not in SECURITY] == []


def form(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_is_one(path: Path) -> None:
    found = form(path)
    assert found.keys() <= {"name", "description", "title", "labels", "body"}
    assert found["name"]
    assert found["description"]
    ids = []
    for element in found["body"]:
        assert element.keys() <= {"type", "id", "attributes", "validations"}
        assert element["type"] in KINDS
        attributes = element["attributes"]
        if element["type"] == "markdown":
            assert attributes["value"]
            continue
        assert attributes["label"]
        ids.append(element["id"])
        if element["type"] == "dropdown":
            assert all(isinstance(option, str) for option in attributes["options"])
    assert len(set(ids)) == len(ids) > 0


@pytest.mark.parametrize("path", FORMS, ids=lambda path: path.stem)
def test_a_form_asks_for_verbs_and_options_that_are_there(path: Path) -> None:
    for verb, options in re.findall(r"`tapotun ([a-z-]+)((?: [^`\s]+)*)`", path.read_text(encoding="utf-8")):
        if not verb.startswith("-"):
            assert set(re.findall(r"--[a-z-]+", options)) <= VERBS[verb]


def test_the_forms_are_found() -> None:
    """The tests above look at something."""
    assert [path.stem for path in FORMS] == ["bug", "idea", "proxy"]
    assert "`tapotun probe --json FILE`" in (ROOT / ".github/ISSUE_TEMPLATE/proxy.yml").read_text(encoding="utf-8")
