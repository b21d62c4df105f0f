"""Makes the sdist and the wheels in dist/.

There is one wheel for each platform that the optional C module is compiled for, and one without it for all others. pip
takes the best that fits. All are built from the sdist, which shows that the sdist is complete. The same sources make
the same bytes.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from build.env import DefaultIsolatedEnv

import cross
from build import ProjectBuilder
from vendor import ROOT


def main() -> None:
    """Build them."""
    dist = ROOT / "dist"
    with DefaultIsolatedEnv() as backend, tempfile.TemporaryDirectory() as place:
        builder = ProjectBuilder.from_isolated_env(backend, ROOT)
        backend.install(builder.build_system_requires)
        backend.install(builder.get_requires_for_build("sdist"))
        sdist = Path(builder.build("sdist", dist))
        print(sdist.relative_to(ROOT))
        shutil.unpack_archive(sdist, place)
        source = Path(place, sdist.name.removesuffix(".tar.gz"))
        for platform in (None, *cross.PLATFORMS):
            made = _wheel(source, dist, backend, cross.environment(platform))
            print(f"{made.relative_to(ROOT)}: {made.stat().st_size / 1e6:.1f} MB", flush=True)


def _wheel(source: Path, dist: Path, backend: DefaultIsolatedEnv, environment: Mapping[str, str]) -> Path:
    def run(cmd: Sequence[str], cwd: str | None = None, extra_environ: Mapping[str, str] | None = None) -> None:
        """As pyproject_hooks has its runners, in this environment and not in ours."""
        done = subprocess.run(
            cmd, check=False, cwd=cwd, env={**environment, **(extra_environ or {})}, capture_output=True, text=True
        )
        if done.returncode:
            raise SystemExit(f"{done.stdout}{done.stderr}no wheel, see above")

    return Path(ProjectBuilder.from_isolated_env(backend, source, run).build("wheel", dist))


if __name__ == "__main__":
    main()
