"""Hatchling's build hook: puts the optional C module into the wheel, if it can be compiled here.

A wheel with the module has the tag of its platform, one without it is for all. An editable installation gets the module
in the source tree, where git ignores it. native.py says what TAPOTUN_NATIVE and other variables do.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging.tags import sys_tags

sys.path.insert(0, str(Path(__file__).parent))
try:
    import native
finally:
    del sys.path[0]


class NativeModule(BuildHookInterface[Any]):
    """The hook of the wheel target."""

    _place: tempfile.TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called before the wheel is put together. `version` is `editable` or `standard`."""
        root = Path(self.root)
        wish = native.wish()
        try:
            if version == "editable":
                native.build_in_place(root)
                return
            if wish == "no":
                return
            self._place = tempfile.TemporaryDirectory(prefix="tapotun-native-")  # to the end of this process at most
            module = Path(self._place.name, "_pump.abi3.so")
            native.compile_module(module, root=root)
        except native.NotBuilt as exc:
            if wish == "require":
                raise SystemExit(f"{exc.output}TAPOTUN_NATIVE=require, but {native.SOURCE}: {exc}") from None
            self.app.display_info(f"Without the optional C module: {exc}")
            return
        build_data["pure_python"] = False
        build_data["tag"] = f"{native.TAG}-{os.environ.get('TAPOTUN_NATIVE_PLATFORM') or _platform()}"
        build_data["force_include"][str(module)] = native.MODULE

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Called when the wheel is there."""
        if self._place is not None:
            self._place.cleanup()


def _platform() -> str:
    """This machine's, as pip accepts it. Not manylinux or musllinux: who knows what this compiler links with."""
    return next(tag.platform for tag in sys_tags() if not tag.platform.startswith(("manylinux", "musllinux")))
