"""What a package consists of, as CycloneDX 1.6 has it (ECMA-424): ours, each package that lies beside it, and what
these contain of others.

The pyz and the Debian packages contain one each. `make sbom` writes that of the pyz, which has everything, to
dist/tapotun-VERSION.cdx.json. The same sources and wheels make the same bytes, so the serial number follows from the
content, and the date is that of the last commit.

Not listed is what belongs to the machine that the package runs on: Python, the C library, OpenSSL.
"""

from __future__ import annotations

import email
import hashlib
import json
import re
import struct
import uuid
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any, Final, NamedTuple

from packaging.requirements import Requirement
from packaging.utils import NormalizedName, canonicalize_name

from vendor import BUILD, ROOT, TARGETS, Target, fetch, make_tree, serves, source_date, version

OURS: Final = canonicalize_name("tapotun-trio")
NAME: Final = "sbom.cdx.json"
"""How the file is called in the packages."""
_SERIALS: Final = uuid.UUID("6a2c3c5e-6f0b-4a7e-9d0a-3f0c9f3a1f55")  # a namespace of our own, by RFC 9562, section 5.5


class Copied(NamedTuple):
    """Code of another project that a package contains.

    Attributes:
        file: in the tree; its ``__version__`` counts. Of compiled code, a pattern for its files.
        licence: an SPDX expression.
        source: the other project's.
        holds: bytes that the compiled code holds while it contains the copy; nothing tells its version.
    """

    file: str
    name: str
    licence: str
    source: str
    holds: bytes = b""


_MSGSPEC: Final = "msgspec/_core.*.so"
COPIED: Final[Mapping[str, tuple[Copied, ...]]] = {
    # As the heads of its files ryu.h and atof.h say. Known by the first powers of five and of ten in their tables.
    "msgspec": (
        Copied(
            _MSGSPEC,
            "ryu",
            "Apache-2.0 OR BSL-1.0",
            "https://github.com/ulfjack/ryu",
            struct.pack("<4Q", 1, 2305843009213693952, 11068046444225730970, 1844674407370955161),
        ),
        Copied(
            _MSGSPEC,
            "wuffs",
            "Apache-2.0",
            "https://github.com/google/wuffs",
            struct.pack("<2Q", 0xA5D3B6D479F8E056, 0x8FD0C16206306BAB),
        ),
    ),
    "securesystemslib": (
        Copied("securesystemslib/_vendor/ed25519/ed25519.py", "ed25519", "CC0-1.0", "https://github.com/pyca/ed25519"),
    ),
    "prometheus-client": (
        Copied("prometheus_client/decorator.py", "decorator", "BSD-2-Clause", "https://github.com/micheles/decorator"),
    ),
}
"""By the package that contains it. No metadata of a wheel tells; `document` refuses a directory for such code, or a
part of one, of which nothing is said here. What a package has copied elsewhere, or compiled, is found by reading it."""
_FOR_COPIES: Final = ("_vendor", "vendor", "_vendored", "vendored", "_vendored_packages", "extern", "third_party")
_NO_COPIES: Final = ("__init__.py", "__pycache__")


def document(tree: Path, targets: Iterable[Target] = TARGETS) -> str:
    """Of a tree that vendor.make_tree has filled for these targets. Raises SystemExit."""
    found = {canonicalize_name(it["Name"]): it for it in map(_metadata, sorted(tree.glob("*.dist-info/METADATA")))}
    wheels = _wheels(targets)
    if missing := found.keys() ^ wheels.keys() ^ {OURS}:
        raise SystemExit(f"{tree} and the wheels differ in {', '.join(sorted(missing))}")
    if unknown := _unknown_copies(tree):
        raise SystemExit(f"{unknown} has code of another project, and sbom.COPIED does not say of which")
    refs = {name: _ref(name, str(metadata["Version"])) for name, metadata in found.items()}
    own, others = found.pop(OURS), found
    content = {
        "metadata": {
            "timestamp": datetime.fromtimestamp(source_date(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "lifecycles": [{"phase": "build"}],
            "component": {"type": "application", **_component(refs[OURS], own)},
        },
        "components": [
            {
                "type": "library",
                **_component(refs[name], metadata),
                "externalReferences": [_file(wheel) for wheel in wheels[name]],
                **({"components": [_copied(tree, name, it) for it in COPIED[name]]} if name in COPIED else {}),
            }
            for name, metadata in sorted(others.items())
        ],
        "dependencies": [
            {"ref": refs[name], "dependsOn": sorted(refs[it] for it in _requires(metadata, refs))}
            for name, metadata in [(OURS, own), *sorted(others.items())]
        ],
    }
    serial = uuid.uuid5(_SERIALS, json.dumps(content, sort_keys=True))
    head = {"bomFormat": "CycloneDX", "specVersion": "1.6", "serialNumber": f"urn:uuid:{serial}", "version": 1}
    return json.dumps({**head, **content}, indent=1) + "\n"


def _metadata(file: Path) -> Message:
    return email.message_from_string(file.read_text(encoding="utf-8"))


def _wheels(targets: Iterable[Target]) -> dict[NormalizedName, list[Path]]:
    """By the name of the package: the files that it was taken from."""
    suffixes = {target.suffix for target in targets}
    found: dict[NormalizedName, list[Path]] = {}
    for wheel in fetch():
        if serves(wheel, suffixes):
            found.setdefault(canonicalize_name(wheel.name.partition("-")[0]), []).append(wheel)
    return found


def _ref(name: str, number: str) -> str:
    # As package-url has it. Ours did not come from an index.
    return f"pkg:{'generic' if name == OURS else 'pypi'}/{name}@{number}"


def _component(ref: str, metadata: Message) -> Mapping[str, Any]:
    return {
        "bom-ref": ref,
        "name": metadata["Name"],
        "version": metadata["Version"],
        "description": metadata["Summary"],
        "licenses": _licences(metadata),
        "purl": ref,
    }


def _copied(tree: Path, package: str, copied: Copied) -> Mapping[str, Any]:
    number = None if copied.holds else _version(tree / copied.file)
    files = list(tree.glob(copied.file))
    if not files or (number is None and not all(copied.holds in it.read_bytes() for it in files)):
        raise SystemExit(f"{copied.file} is not there, or not with {copied.name} as it was: mend sbom.COPIED")
    return {
        "type": "library",
        "bom-ref": f"{package}:{copied.name}" + ("" if number is None else f"@{number}"),
        "name": copied.name,
        **({} if number is None else {"version": number}),
        "licenses": [{"expression": copied.licence}],
        "externalReferences": [{"type": "vcs", "url": copied.source}],
    }


def _version(file: Path) -> str:
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    found = re.search(r"""(?m)^__version__ = ["'](.+)["']$""", text)
    if found is None:
        raise SystemExit(
            f"{file.parent.name}/{file.name} is not there, or has no __version__ any more: mend sbom.COPIED"
        )
    return found[1]


def _unknown_copies(tree: Path) -> str | None:
    """A directory in the tree that is named as those for code of others, or a module or package in one, that COPIED has
    no file of."""
    files = [tree / it.file for each in COPIED.values() for it in each]
    known = {*files, *(parent for file in files for parent in file.parents)}
    places = [it for it in sorted(tree.rglob("*")) if it.is_dir() and it.name in _FOR_COPIES]
    parts = [
        part
        for place in places
        for part in sorted(place.iterdir())
        if part.name not in _NO_COPIES and (part.is_dir() or part.suffix in (".py", ".so"))
    ]
    return next((str(it.relative_to(tree)) for it in (*places, *parts) if it not in known), None)


def _licences(metadata: Message) -> list[Mapping[str, Any]]:
    """An SPDX expression where the package has one (PEP 639), else what it calls its licence. Raises SystemExit."""
    if expression := metadata["License-Expression"]:
        return [{"expression": expression}]
    classifiers = [it for it in metadata.get_all("Classifier", []) if it.startswith("License :: ")]
    names = [it.rpartition(" :: ")[2] for it in classifiers] or [metadata["License"] or ""]
    if not all(names):
        raise SystemExit(f"{metadata['Name']} says nowhere what its licence is")
    return [{"license": {"name": name}} for name in names]


def _requires(metadata: Message, known: Iterable[NormalizedName]) -> set[NormalizedName]:
    """Which of those here it needs on any target; an extra's count, since what only an extra brings is here for it."""
    required = {canonicalize_name(Requirement(it).name) for it in metadata.get_all("Requires-Dist", [])}
    return required & set(known)


def _file(wheel: Path) -> Mapping[str, Any]:
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return {"type": "distribution", "url": wheel.name, "hashes": [{"alg": "SHA-256", "content": digest}]}


def main() -> None:
    """Write it to dist/."""
    tree = BUILD / "sbom"
    make_tree(tree)
    made = ROOT / "dist" / f"tapotun-{version()}.cdx.json"
    made.parent.mkdir(exist_ok=True)
    made.write_text(document(tree), encoding="utf-8")
    print(made.relative_to(ROOT))


if __name__ == "__main__":
    main()
