"""Makes the sdist and the wheels in dist/.

There is one wheel for each platform that the optional C module is compiled for, and one without it for all others. pip
takes the best that fits. All are built from the sdist, which shows that the sdist is complete. The same sources make
the same bytes.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import cross
from build import ProjectBuilder
from vendor import ROOT, build_environment, build_wheel


def main() -> None:
    """Build them."""
    dist = ROOT / "dist"
    with build_environment() as backend, tempfile.TemporaryDirectory() as place:
        sdist = Path(ProjectBuilder.from_isolated_env(backend, ROOT).build("sdist", dist))
        print(sdist.relative_to(ROOT))
        shutil.unpack_archive(sdist, place)
        source = Path(place, sdist.name.removesuffix(".tar.gz"))
        for platform in (None, *cross.PLATFORMS):
            made = build_wheel(source, dist, backend, cross.environment(platform))
            print(f"{made.relative_to(ROOT)}: {made.stat().st_size / 1e6:.1f} MB", flush=True)


if __name__ == "__main__":
    main()
