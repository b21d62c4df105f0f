"""The packages' content: the same sources make the same bytes anywhere, out of locked parts, which an SBOM names."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from tapotun_trio import __version__
from tests.harness import ROOT

from .conftest import make

pytestmark = pytest.mark.netns

ELSEWHERE = {
    "HOME": "/nonexistent",
    "LC_ALL": "C",
    "PATH": os.environ["PATH"],
    "PYTHONDONTWRITEBYTECODE": "1",
    "PYTHONHASHSEED": "4711",
    "TZ": "Pacific/Kiritimati",
}


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def copy_of_the_sources(place: Path) -> None:
    """What git has or would add, and what was downloaded; of what was compiled, only the C libraries."""
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listed, check=True, cwd=ROOT, capture_output=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (ROOT / name).exists():  # one that is removed, and not yet in git
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_bytes((ROOT / name).read_bytes())
            if os.access(ROOT / name, os.X_OK):
                (place / name).chmod(0o700)
            os.utime(place / name, (1_000_000_000, 1_000_000_000))
    for name in ("wheels", "wheels-build", "zig"):
        shutil.copytree(ROOT / "build" / name, place / "build" / name)


def test_another_directory_user_and_day_make_the_same_bytes(dist: Path, pyz: Path, deb: Path, tmp_path: Path) -> None:
    """Also without a network: everything was fetched before the build begins."""
    make("sbom")
    place = tmp_path / "another place"
    with umask(0o077):
        copy_of_the_sources(place)
        date = subprocess.run(
            ["git", "log", "-1", "--format=%ct"], check=True, cwd=ROOT, capture_output=True, text=True
        )
        environment = {**ELSEWHERE, "PYTHONPATH": str(place), "SOURCE_DATE_EPOCH": date.stdout.strip()}
        for script in ("build_dist.py", "build_pyz.py", "build_deb.py", "sbom.py"):
            built = subprocess.run(
                ["unshare", "--net", "faketime", "+400 days", sys.executable, place / "packaging" / script],
                check=False,
                cwd=tmp_path,
                env=environment,
                capture_output=True,
                text=True,
            )
            assert built.returncode == 0, built.stdout + built.stderr
    second = {file.name: file.read_bytes() for file in (place / "dist").iterdir()}
    assert {pyz.name, deb.name, f"tapotun-{__version__}.cdx.json", f"tapotun_trio-{__version__}.tar.gz"} < second.keys()
    assert len([name for name in second if name.endswith(".whl")]) == 5
    assert len(second) == 9
    assert [name for name, data in second.items() if data != (dist / name).read_bytes()] == []


# ------------------------------------------------------------------ SBOM


def sbom_of_the_pyz(pyz: Path) -> str:
    with zipfile.ZipFile(pyz) as archive:
        return archive.read("sbom.cdx.json").decode()


def sbom_of_the_deb(deb: Path) -> str:
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", deb], stdout=subprocess.PIPE) as tar:
        assert tar.stdout is not None
        with tarfile.open(fileobj=tar.stdout, mode="r|") as archive:
            for member in archive:
                if member.name == "./usr/share/doc/tapotun/sbom.cdx.json":
                    found = archive.extractfile(member)
                    assert found is not None
                    text = found.read().decode()
    return text


def test_the_sbom_is_valid_and_names_every_part(pyz: Path, deb: Path) -> None:
    for package, text in {"pyz": sbom_of_the_pyz(pyz), "deb": sbom_of_the_deb(deb)}.items():
        assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None, package
        document: dict[str, Any] = json.loads(text)
        components = {it["name"].lower().replace("_", "-"): it for it in document["components"]}
        # Every package that the pyz has, and no other.
        with zipfile.ZipFile(pyz) as archive:
            there = {
                name.partition("-")[0].replace("_", "-") for name in archive.namelist() if ".dist-info/METADATA" in name
            }
        assert components.keys() | {"tapotun-trio"} == there
        assert all(it["licenses"] for it in components.values())
        # The digests are those of files that were taken apart, one for each machine where something is compiled.
        for name, component in components.items():
            files = component["externalReferences"]
            for file in files:
                wheel = ROOT / "build" / "wheels" / file["url"]
                assert file["hashes"][0]["content"] == hashlib.sha256(wheel.read_bytes()).hexdigest()
            assert len(files) == ({"pyz": 16, "deb": 4}[package] if name == "msgspec" else 1)
        graph = {it["ref"]: it["dependsOn"] for it in document["dependencies"]}
        refs = {it["bom-ref"] for it in components.values()}
        assert graph.keys() == refs | {document["metadata"]["component"]["bom-ref"]}
        assert components["outcome"]["bom-ref"] in graph[components["trio"]["bom-ref"]]
        # What the wheels contain of others, of which the most important verifies the signatures of updates.
        copied = {name: it["components"] for name, it in components.items() if "components" in it}
        assert {name: [(its["name"], its.get("version")) for its in each] for name, each in copied.items()} == {
            "msgspec": [("ryu", None), ("wuffs", None)],
            "prometheus-client": [("decorator", "4.0.10")],
            "securesystemslib": [("ed25519", "1.0.dev0")],
        }
        # What nothing needs would not be here.
        assert {needed for its in graph.values() for needed in its} == refs


def test_code_of_others_that_nobody_has_listed(pyz: Path, tmp_path: Path) -> None:
    """A new version of a dependency may bring some."""
    with zipfile.ZipFile(pyz) as archive:
        archive.extractall(tmp_path)
    text = f"import sbom; sbom.document(sbom.Path({str(tmp_path)!r}))"

    def made() -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", text]
        return subprocess.run(argv, check=False, cwd=ROOT / "packaging", capture_output=True, text=True)

    done = made()
    assert (done.returncode, done.stderr) == (0, "")
    (tmp_path / "trio" / "_vendor").mkdir()
    assert made().stderr == "trio/_vendor has code of another project, and sbom.COPIED does not say of which\n"
    (tmp_path / "trio" / "_vendor").rmdir()
    (tmp_path / "securesystemslib" / "_vendor" / "more.py").touch()
    assert made().stderr.startswith("securesystemslib/_vendor/more.py has code of another project")
    (tmp_path / "securesystemslib" / "_vendor" / "more.py").unlink()
    core = next(tmp_path.glob("msgspec/_core.*.so"))
    compiled = core.read_bytes()
    core.write_bytes(b"rewritten")
    assert "msgspec/_core.*.so is not there, or not with ryu as it was: mend sbom.COPIED" in made().stderr
    core.write_bytes(compiled)
    (tmp_path / "prometheus_client" / "decorator.py").write_text("# rewritten\n")
    assert "prometheus_client/decorator.py is not there, or has no __version__ any more" in made().stderr


# ------------------------------------------------------------------ locks


@pytest.fixture
def packaging(pyz: Path, tmp_path: Path) -> Path:
    """A checkout that has downloaded everything."""
    assert pyz.exists()
    copy_of_the_sources(tmp_path / "copy")
    return tmp_path / "copy"


def fetch(checkout: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["unshare", "--net", sys.executable, "-c", "import vendor; vendor.fetch()"],
        check=False,
        cwd=checkout / "packaging",
        capture_output=True,
        text=True,
    )


def test_what_was_fetched_is_not_fetched_again(packaging: Path) -> None:
    done = fetch(packaging)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_wheel_that_is_not_the_locked_one_is_refused(packaging: Path) -> None:
    wheel = next((packaging / "build" / "wheels").glob("h11-*.whl"))
    wheel.write_bytes(wheel.read_bytes() + b"\0")
    done = fetch(packaging)
    assert done.returncode == 1
    assert f"build/wheels/{wheel.name} is not the file of packaging/requirements.txt: remove " in done.stderr


def test_a_lock_for_other_requirements_is_refused(packaging: Path) -> None:
    pyproject = packaging / "pyproject.toml"
    pyproject.write_text(pyproject.read_text(encoding="utf-8").replace('"h11>=0.16"', '"h11>=0.15"'), encoding="utf-8")
    done = fetch(packaging)
    assert done.returncode == 1
    assert done.stderr == (
        "packaging/requirements.txt was made for other requirements than pyproject.toml has: make lock\n"
    )


@pytest.mark.parametrize("line", ["h11==0.16.0", "h11>=0.16 --hash=sha256:" + "0" * 64, "h11==0.16.0 --hash=md5:00"])
def test_a_line_without_a_digest_is_refused(packaging: Path, line: str) -> None:
    lock = packaging / "packaging" / "requirements.txt"
    lock.write_text(f"{lock.read_text(encoding='utf-8')}\n{line}\n", encoding="utf-8")
    done = fetch(packaging)
    assert done.returncode == 1
    assert (
        done.stderr == f"packaging/requirements.txt: {line}: not a package with its sha256; make lock renews the file\n"
    )


def test_pip_refuses_a_file_with_another_digest(packaging: Path) -> None:
    """As an index would serve it to somebody who has downloaded nothing yet."""
    served = packaging / "served"
    shutil.move(packaging / "build" / "wheels", served)
    wheel = next(served.glob("h11-*.whl"))
    with zipfile.ZipFile(wheel, "a") as archive:
        archive.writestr("h11/evil.py", "")
    done = subprocess.run(
        ["unshare", "--net", sys.executable, "-c", "import vendor; vendor.fetch()"],
        check=False,
        cwd=packaging / "packaging",
        env={**os.environ, "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(served)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "DO NOT MATCH THE HASHES" in done.stderr
    assert not (packaging / "build" / "wheels" / "fetched").exists()


def test_the_locks_are_those_of_pyproject() -> None:
    """Read without a network, so a forgotten `make lock` is noticed here and not by who builds."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    wanted = [*project["project"]["dependencies"], *project["project"]["optional-dependencies"].get("update", [])]
    for name, requirements in {"": wanted, "-build": project["build-system"]["requires"]}.items():
        lines = (ROOT / "packaging" / f"requirements{name}.txt").read_text(encoding="utf-8").splitlines()
        assert [line.removeprefix("# wanted: ") for line in lines if line.startswith("# wanted: ")] == requirements
