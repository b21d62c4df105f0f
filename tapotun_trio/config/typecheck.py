"""Checks plain JSON objects against `structs` and reports every value that does not fit, not only the first.

``msgspec.convert`` stops at its first error, so it is called for each field and for each element of a list. A value
that does not fit is reported and left out. The rest is returned, so that later checks still see it.
"""

from __future__ import annotations

import json
import re
import types
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Annotated, Any, Final, Literal, TypeVar, Union, get_args, get_origin

import msgspec
from msgspec import Struct, UnsetType, inspect

from .diagnostics import MASK, Findings, item, member, quote, show
from .jsontext import JsonObject, NotANumber
from .structs import NAMES, PARTS_OF_PROCESS

T = TypeVar("T")

_MISFIT: Final = object()  # returned for a value that does not fit and was reported
_NUMBER: Final = re.compile(r"[0-9]+(\.[0-9]+)?")
_LONGEST_TYPO: Final = 40  # characters of an unknown field that are compared; difflib takes quadratic time


@dataclass(frozen=True, slots=True)
class FieldSpec:
    """One field of a struct: what its annotation and its metadata say.

    Attributes:
        one: the annotation of a single value, or None if only a list fits.
        many: the annotation of a list's elements, or None if only a single value fits.
        least: the smallest number of elements.
        most: the largest number of elements, or of an object's members, or None.
        example: a value, an element or a whole list that fits.
        secret: whether the value must never be shown. "text": a text must not be shown, other values may.
    """

    name: str
    required: bool
    default: object
    one: Any = None
    many: Any = None
    least: int = 0
    most: int | None = None
    example: object = None
    secret: bool | Literal["text"] = False


@cache
def field_specs(struct: type[Struct]) -> dict[str, FieldSpec]:
    """The fields of a struct, by their names in the file."""
    return {info.encode_name: _spec(info.encode_name, info) for info in msgspec.structs.fields(struct)}


def _spec(name: str, info: msgspec.structs.FieldInfo) -> FieldSpec:
    one = many = most = None
    least = 0
    for alternative in _alternatives(info.type):
        bare = _bare(alternative)
        if get_origin(bare) is list:
            (many,) = get_args(bare)
            if (meta := _meta(alternative)) is not None:
                least, most = meta.min_length or 0, meta.max_length
        elif get_origin(bare) is tuple:
            many, *others = get_args(bare)
            assert all(other is many for other in others), f"{name}: elements of several types"
            least = most = 1 + len(others)
        else:
            one = alternative if one is None else one | alternative
            if get_origin(bare) is dict and (meta := _meta(alternative)) is not None:
                most = meta.max_length
    default = info.default
    if info.default_factory is not msgspec.NODEFAULT:
        default = info.default_factory()
    example, secret = _metadata(info.type)
    if example is None and many is not None:
        example, secret = _metadata(many)
    if example is None and default is not msgspec.NODEFAULT and default is not msgspec.UNSET:
        example = default
    return FieldSpec(name, info.required, default, one, many, least, most, example, secret)


def _bare(annotation: Any) -> Any:
    return get_args(annotation)[0] if get_origin(annotation) is Annotated else annotation


def _union_members(annotation: Any) -> list[Any]:
    """The members of a union, without UnsetType, which only marks a field that may be left out."""
    if get_origin(_bare(annotation)) in (Union, types.UnionType):
        return [a for a in get_args(_bare(annotation)) if a is not UnsetType]
    return [annotation]


def _alternatives(annotation: Any) -> list[Any]:
    """As `_union_members`, with the members of a union that is a member itself."""
    members = _union_members(annotation)
    if members == [annotation]:
        return members
    return [alternative for each in members for alternative in _alternatives(each)]


def _metadata(annotation: Any) -> tuple[object, bool | Literal["text"]]:
    """The first example in the ``Meta`` of `structs`, and whether the value is secret."""
    for alternative in (annotation, *_union_members(annotation), *_alternatives(annotation)):
        meta = _meta(alternative)
        if meta is not None:
            return (meta.examples or [None])[0], (meta.extra or {}).get("secret", False)
    return None, False


def _meta(annotation: Any) -> msgspec.Meta | None:
    if get_origin(annotation) is not Annotated:
        return None
    meta = get_args(annotation)[1]
    assert isinstance(meta, msgspec.Meta)
    return meta


@dataclass(frozen=True, slots=True)
class Members:
    """An object whose member names the user chooses. Has path, name and value of each member that fits."""

    items: list[tuple[str, str, object]] = field(repr=False)  # hidden, because it may contain a secret


@dataclass(frozen=True, slots=True)
class Node:
    """A checked object of the file: its fields that fit their types, and defaults for those left out.

    ``path`` is its place in the file; ``given`` has the names that the file gives, whether they fit or not.
    """

    path: str
    struct: type[Struct]
    given: Collection[str]
    _values: Mapping[str, object] = field(repr=False)  # hidden, because it may hold a raw token

    def at(self, name: str) -> str:
        """The path of a field, whether it is given or not."""
        return member(self.path, name)

    def get(self, name: str, kind: type[T]) -> T | None:
        """The value or its default; None if there is neither, or if the value does not fit or is not a ``kind``."""
        value = self._value(name)
        return value if isinstance(value, kind) else None

    def texts(self, name: str) -> list[tuple[str, str]]:
        """Path and text of each element that fits, or of the single text if the field may be either."""
        value = self._value(name)
        if isinstance(value, str):
            return [(self.at(name), value)]
        return [(path, element) for path, element in self._elements(value) if isinstance(element, str)]

    def numbers(self, name: str) -> list[tuple[str, float]]:
        """Path and value of each element that fits, or of each element of the default."""
        value = self._value(name)
        if isinstance(value, tuple):
            value = [(item(self.at(name), index), element) for index, element in enumerate(value)]
        return [(path, element) for path, element in self._elements(value) if isinstance(element, float)]

    def values(self, name: str) -> list[tuple[str, object]]:
        """Path and value of each element of a list whose elements may be anything."""
        return self._elements(self._value(name))

    def members(self, name: str) -> list[tuple[str, str, str]]:
        """Return path, name and text of each member of an object whose member names the user chooses."""
        value = self._value(name)
        found = value.items if isinstance(value, Members) else []
        return [(path, key, text) for path, key, text in found if isinstance(text, str)]

    def nodes(self, name: str) -> list[Node]:
        """The elements of a list that are objects."""
        return [element for _, element in self._elements(self._value(name)) if isinstance(element, Node)]

    def _value(self, name: str) -> object:
        if name not in field_specs(self.struct):
            raise LookupError(f"{self.struct.__name__} has no field {name}")
        return self._values.get(name)

    @staticmethod
    def _elements(value: object) -> list[tuple[str, object]]:
        return value if isinstance(value, list) else []


def check_object(
    value: object,
    struct: type[Struct],
    path: str,
    findings: Findings,
    *,
    ignored: Collection[str] = (),
) -> Node | None:
    """Check a value against a struct. None if it is not an object, which is reported.

    ``ignored`` names further fields, which are passed over without a finding.
    """
    if not isinstance(value, JsonObject):
        # A bare text may be a token that lacks the object around it.
        shown = MASK if isinstance(value, str) else show(value)
        findings.error(path, shown, _is_not(value, "an object"), f"write {_shape(struct)}")
        return None
    fields = field_specs(struct)
    for key in value.repeated:
        findings.error(member(path, key), quote(key), "is more than once in this object", "keep one")
    for key in value:
        if key not in fields and key not in ignored:
            findings.error(
                member(path, key),
                quote(key),
                f"is an unknown field in {NAMES.get(struct, 'an interface definition')}",
                _suggestion(key, struct, ignored),
            )
    values: dict[str, object] = {}
    for name, spec in fields.items():
        if name in value:
            checked = _check_field(value[name], spec, member(path, name), findings)
            if checked is not _MISFIT:
                values[name] = checked
        elif spec.required:
            findings.error(member(path, name), "", "is missing", f"add {_pair(spec)}")
        else:
            values[name] = spec.default
    return Node(path, struct, frozenset(value), values)


def _check_field(value: object, spec: FieldSpec, path: str, findings: Findings) -> object:
    if isinstance(value, list) and spec.many is not None:
        return _check_elements(value, spec, path, findings)
    if spec.one is not None:
        return _check_one(value, spec.one, spec, path, findings)
    findings.error(path, _shown(value, spec), _is_not(value, "a list"), f"write {_sample(spec)}")
    return _MISFIT


def _check_elements(values: list[object], spec: FieldSpec, path: str, findings: Findings) -> object:
    """A list with path and value of each element that fits.

    Returns _MISFIT if no element of a non-empty list fits, and for a list that must have a number of elements also if
    it has another number or if an element does not fit. A list that is only too long keeps its fitting elements.
    """
    too_long = spec.most is not None and len(values) > spec.most
    miscounted = too_long or len(values) < spec.least
    if miscounted:
        count = "1 element" if len(values) == 1 else f"{len(values)} elements"
        if spec.least == spec.most:
            remedy = f"write {spec.least}, such as {_sample(spec)}"
        elif too_long:
            remedy = f"write at most {spec.most}"
        else:
            remedy = f"write {_sample(spec)}"
        findings.error(path, _shown(values, spec), f"has {count}", remedy)
    good: list[tuple[str, object]] = []
    for index, value in enumerate(values):
        element_path = item(path, index)
        checked = _check_one(value, spec.many, spec, element_path, findings)
        if checked is not _MISFIT:
            good.append((element_path, checked))
    if (spec.least and (miscounted or len(good) < len(values))) or (values and not good):
        return _MISFIT
    return good


def _check_one(value: object, annotation: Any, spec: FieldSpec, path: str, findings: Findings) -> object:
    structs = [a for a in _alternatives(annotation) if isinstance(a, type) and issubclass(a, Struct)]
    if structs and (annotation is structs[0] or isinstance(value, JsonObject)):
        node = check_object(value, structs[0], path, findings)
        return _MISFIT if node is None else node
    if annotation is Any:
        return value
    if get_origin(_bare(annotation)) is dict:
        if not isinstance(value, JsonObject):
            remedy = f"write {json.dumps(spec.example)}" if spec.example else "write {...}"
            findings.error(path, _shown(value, spec), _is_not(value, "an object"), remedy)
            return _MISFIT
        return _check_members(value, get_args(_bare(annotation))[1], spec, path, findings)
    try:
        got: object = msgspec.convert(value, annotation, strict=True)
    except (msgspec.ValidationError, UnicodeEncodeError):  # the latter: half a surrogate pair where a number belongs
        problem, remedy = _misfit(value, annotation, spec)
        findings.error(path, _shown(value, spec), problem, remedy)
        return _MISFIT
    if isinstance(got, str) and not _is_unicode(got):
        findings.error(
            path,
            _shown(value, spec),
            "holds half of a surrogate pair",
            "write the character itself instead of its \\u escape",
        )
        return _MISFIT
    return got


def _check_members(value: JsonObject, annotation: Any, spec: FieldSpec, path: str, findings: Findings) -> object:
    """Check an object whose member names the user chooses. Returns path, name and value of each member that fits."""
    for key in value.repeated:
        findings.error(member(path, key), quote(key), "is more than once in this object", "keep one")
    if spec.most is not None and len(value) > spec.most:
        findings.error(path, _shown(value, spec), f"has {len(value)} members", f"write at most {spec.most}")
    good: list[tuple[str, str, object]] = []
    for key, inner in value.items():
        if annotation is str and not isinstance(inner, str):
            findings.error(member(path, key), _shown(inner, spec), _is_not(inner, "text"), "write it in double quotes")
            continue
        checked = _check_one(inner, annotation, spec, member(path, key), findings)
        if checked is not _MISFIT:
            good.append((member(path, key), key, checked))
    return Members(good)


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# ------------------------------------------------------------------ texts of the findings


def _misfit(value: object, annotation: Any, spec: FieldSpec) -> tuple[str, str]:
    """Problem and remedy for a value that ``msgspec.convert`` refused. Each kind of type has its own texts."""
    wanted = inspect.type_info(annotation)
    if isinstance(wanted, inspect.Metadata):
        wanted = wanted.type
    if isinstance(wanted, inspect.IntType):
        choice = f"a whole number from {wanted.ge} to {wanted.le}"
        if type(value) is int or (isinstance(value, NotANumber) and value.is_finite):
            return "is out of range", f"write {choice}"
        if isinstance(value, float | NotANumber):
            return "is not a whole number", f"write {choice}"
        return _is_not_number(value, choice)
    if isinstance(wanted, inspect.FloatType):
        choice = f"a number from {wanted.ge} to {wanted.le}"
        if type(value) in (int, float) or (isinstance(value, NotANumber) and value.is_finite):
            return "is out of range", f"write {choice}"
        if isinstance(value, NotANumber):
            return "is not a finite number", f"write {choice}"
        return _is_not_number(value, choice)
    if isinstance(wanted, inspect.BoolType):
        return _is_not(value, "true or false"), "write true or false, without quotes"
    if isinstance(wanted, inspect.LiteralType):
        *most, last = (show(v) for v in wanted.values)
        choice = f"{', '.join(most)} or {last}"
        if isinstance(value, str) and value in map(str, wanted.values):
            return _is_not_number(value, choice)
        return "is not one of the choices", f"write {choice}"
    if any(isinstance(a, type) and issubclass(a, Struct) for a in _alternatives(annotation)):  # the example is a text
        return _is_not(value, "text or an object"), f"write {show(spec.example)}"
    if isinstance(wanted, inspect.UnionType):  # a text or a whole number; the example is a text
        if isinstance(value, int | float | NotANumber) and not isinstance(value, bool):
            return _misfit(value, next(a for a in get_args(annotation) if _bare(a) is int), spec)
        return _is_not(value, "text or a number"), f"write {show(spec.example)}"
    return _is_not(value, "text"), f"write {show(spec.example)}"


def _is_not_number(value: object, choice: str) -> tuple[str, str]:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        return "is text, not a number", f"write {choice}, without quotes"
    return _is_not(value, "a number"), f"write {choice}"


def _is_not(value: object, wanted: str) -> str:
    if isinstance(value, str):
        return f"is text, not {wanted}"
    if isinstance(value, list):
        return f"is a list, not {wanted}"
    if isinstance(value, dict):
        return f"is an object, not {wanted}"
    if isinstance(value, int | float | NotANumber) and not isinstance(value, bool):
        return f"is a number, not {wanted}"
    return f"is not {wanted}"  # the value that is shown explains itself


def _shown(value: object, spec: FieldSpec) -> str:
    return MASK if spec.secret is True or (spec.secret and isinstance(value, str)) else show(value)


def _pair(spec: FieldSpec) -> str:
    return f'"{spec.name}": {_sample(spec)}'


def _sample(spec: FieldSpec) -> str:
    """A value that would fit, as JSON; a single value if the field may also be a list."""
    if isinstance(spec.many, type) and issubclass(spec.many, Struct):
        return f"[{_shape(spec.many)}]"
    if spec.one is not None:
        return show(spec.example)
    if spec.many is Any:
        return "[{...}]"
    examples = spec.example if isinstance(spec.example, list) else [spec.example]
    return f"[{', '.join(map(show, examples))}]"


def _shape(struct: type[Struct]) -> str:
    """An object that would fit, as JSON; dots replace the fields that may be left out."""
    fields = field_specs(struct).values()
    parts = [_pair(spec) for spec in fields if spec.required] or [_pair(spec) for spec in fields]
    if len(parts) < len(fields):
        parts.append("...")
    return "{" + ", ".join(parts) + "}"


def _suggestion(key: str, struct: type[Struct], ignored: Collection[str]) -> str:
    """The remedy for an unknown field: where it belongs, a similar name, or the names that exist."""
    from difflib import get_close_matches  # imported here: it takes 0.5 MB, and most configs have no unknown field

    fields = [*field_specs(struct), *ignored]
    close = get_close_matches(key.casefold()[:_LONGEST_TYPO], fields, n=1)
    owners = [
        name
        for other, name in NAMES.items()
        if key in field_specs(other) and (other in PARTS_OF_PROCESS) == (struct in PARTS_OF_PROCESS)
    ]
    if owners:
        also = f', or did you mean "{close[0]}"?' if close else ""
        return f"it belongs in {' or '.join(owners)}{also}"
    if close:
        return f'did you mean "{close[0]}"?'
    return f"remove it; the fields are {', '.join(fields)}"
