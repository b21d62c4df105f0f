"""Makes dist/tapotun.pyz: the program and all that it needs in one file. See pyz/_tapotun_pyz.py for how it runs.

The same sources and wheels make the same bytes.
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import BinaryIO, Final

import cross
import native
import sbom
from vendor import BUILD, ROOT, files, make_tree

_SHEBANG: Final = b"#!/usr/bin/env python3\n"
_FIRST_DATE: Final = (1980, 1, 1, 0, 0, 0)


def main() -> None:
    """Build it."""
    tree = BUILD / "pyz"
    make_tree(tree)
    # One for each kind of machine, whatever the version of Python: named as CompiledModules looks for it.
    for platform in cross.PLATFORMS:
        suffix = f".abi3-{platform.machine}-linux-{platform.libc}.so"
        shutil.copyfile(cross.module(platform), tree / native.MODULE.replace(".abi3.so", suffix))
    compiled = [str(file) for file in files(tree) if file.suffix == ".so"]
    (tree / "compiled.txt").write_text("\n".join([*compiled, ""]), encoding="utf-8")
    (tree / sbom.NAME).write_text(sbom.document(tree), encoding="utf-8")
    # For those who have nothing but this file: docs/update.md takes them out.
    shutil.copytree(ROOT / "conf" / "systemd", tree / "conf" / "systemd")
    for source in sorted((ROOT / "packaging" / "pyz").glob("*.py")):
        (tree / source.name).write_bytes(source.read_bytes())
    made = ROOT / "dist" / "tapotun.pyz"
    made.parent.mkdir(exist_ok=True)
    part = made.with_suffix(".part")
    with open(part, "wb") as out:
        out.write(_SHEBANG)
        _zip(tree, out)
    part.chmod(0o755)
    part.replace(made)
    print(f"{made.relative_to(ROOT)}: {made.stat().st_size / 1e6:.1f} MB")


def _zip(tree: Path, out: BinaryIO) -> None:
    with zipfile.ZipFile(out, "w", compresslevel=9) as archive:
        # zipimport finds a package without __init__.py by its directory: securesystemslib has one.
        for directory in sorted({str(parent) for file in files(tree) for parent in file.parents} - {"."}):
            entry = zipfile.ZipInfo(f"{directory}/", _FIRST_DATE)
            entry.external_attr = 0o40755 << 16
            archive.writestr(entry, b"")
        for file in files(tree):
            info = zipfile.ZipInfo(str(file), _FIRST_DATE)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            archive.writestr(info, (tree / file).read_bytes())


if __name__ == "__main__":
    main()
