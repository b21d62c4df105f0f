"""The JSON Schema of the config: up to date, accepts every example, and is as strict as the program about shapes."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from tapotun_trio.cli import main
from tapotun_trio.config.diagnostics import Findings
from tapotun_trio.config.jsontext import parse
from tapotun_trio.config.load import check_content
from tapotun_trio.config.schema import schema
from tapotun_trio.config.structs import NAMES, RawClient, RawRoot, RawServer
from tapotun_trio.config.typecheck import check_object, field_specs

from .test_config_load import Json
from .test_config_properties import JSON, valid, valid_root

ROOT: Final = Path(__file__).parents[2]
EXAMPLES: Final = sorted([*(ROOT / "conf" / "examples").glob("*.json"), *(ROOT / "conf" / "demo").glob("*.json")])
VALIDATOR: Final = Draft202012Validator(schema())


def misfits(content: object) -> list[str]:
    return [error.message for error in VALIDATOR.iter_errors(content)]


def shape_errors(content: object) -> list[str]:
    """The errors of `typecheck`: names, types, ranges and choices.

    The syntax of texts (an address, a token) and conflicts between values are checked later; no schema can do that.
    """
    findings = Findings()
    root = parse(json.dumps(content))
    entries: object = root
    if isinstance(root, dict):
        check_object(root, RawRoot, "", findings)
        entries = root.get("interfaces")
    if not isinstance(entries, list) or not entries:
        return ["not a list of something"]
    for entry in entries:
        given = entry if isinstance(entry, dict) else {}
        is_server = not given.keys().isdisjoint({"port", "net"}) or ("listen" in given and "server" not in given)
        check_object(entry, RawServer if is_server else RawClient, "", findings)
    return [finding.text("F") for finding in findings.found if finding.severity == "error"]


def errors(content: object) -> list[str]:
    """All errors that the program reports."""
    _, findings = check_content(json.dumps(content).encode(), "F")
    return [finding.text("F") for finding in findings if finding.severity == "error"]


def test_the_schema_is_valid() -> None:
    Draft202012Validator.check_schema(schema())


def test_the_file_in_conf_is_up_to_date(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    assert (ROOT / "conf" / "tapotun.schema.json").read_text(encoding="utf-8") == capsys.readouterr().out, (
        "the config's structs have changed: make schema"
    )


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.name)
def test_every_example_fits(file: Path) -> None:
    assert misfits(json.loads(file.read_text(encoding="utf-8"))) == []


def test_a_file_with_every_field_fits() -> None:
    assert misfits(valid()) == []
    assert misfits(valid_root()) == []


def test_a_schema_may_be_named_in_the_file() -> None:
    content = {"$schema": "./tapotun.schema.json", **valid_root()}
    assert misfits(content) == []
    assert errors(content) == []


def test_every_field_is_described() -> None:
    """Editors show the descriptions, and the man page has them."""
    described = schema()["$defs"]
    for struct in NAMES:
        properties = described[struct.__name__.removeprefix("Raw")]["properties"]
        assert set(properties) == set(field_specs(struct))
        for name, value in properties.items():
            inner = [value, value.get("items", {}), *value.get("anyOf", [])]
            assert any("description" in part or "$ref" in part for part in inner if isinstance(part, dict)), name


# ------------------------------------------------------------------ as strict as the program

WRONG: Final[list[Any]] = [None, True, -1, 0, 2**40, 1.5, "", "text", [], [0], {}, {"x": 1}]


def places(content: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """The path of every value inside."""
    inner: list[tuple[str | int, Any]] = []
    if isinstance(content, dict):
        inner = list(content.items())
    elif isinstance(content, list):
        inner = list(enumerate(content))
    for key, value in inner:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(content: Any, path: tuple[str | int, ...], value: object) -> Any:
    """A copy with another value at the path."""
    made = copy.deepcopy(content)
    at = made
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return made


def assert_agree(content: object) -> None:
    """The schema accepts what the program accepts, and refuses what the program refuses for its shape."""
    found = misfits(content)
    if not errors(content):
        assert found == [], content
    if shaped := shape_errors(content):
        assert found, (content, shaped)


def plain(value: Any) -> Any:
    """A copy without values on which JSON Schema and the program differ.

    These are NaN, which is not JSON; 1.0, which is a whole number to a schema only; and halves of surrogate pairs.
    """
    if isinstance(value, dict):
        return {plain(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [plain(inner) for inner in value]
    if isinstance(value, float):
        return 0.5 if not math.isfinite(value) or value.is_integer() else value
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


# A file for each entry: the time is that of the number of places, multiplied by the size of the file.
ROOTS: Final[list[Any]] = [*([entry] for entry in valid()), {**valid_root(), "interfaces": valid()[1:2]}]
PLACES: Final = [(root, path) for root in ROOTS for path in places(root)]


def test_every_value_replaced_by_every_wrong_value() -> None:
    assert len(PLACES) > 100
    for root, path in PLACES:
        for value in WRONG:
            assert_agree(changed(root, path, value))


def test_every_field_left_out_and_an_unknown_one_added() -> None:
    for root, path in PLACES:
        *parents, name = path
        if isinstance(name, str):
            made = copy.deepcopy(root)
            at = made
            for key in parents:
                at = at[key]
            del at[name]
            assert_agree(made)
            assert_agree(changed(root, (*parents, "unknown"), 1))


@given(JSON)
def test_any_content(content: object) -> None:
    assert_agree(plain(content))


@given(st.sampled_from(PLACES), JSON)
def test_any_value_in_any_place(place: tuple[Json, tuple[str | int, ...]], value: object) -> None:
    assert_agree(changed(*place, plain(value)))
