"""``python -m fuzz``: every target for FUZZ_SECONDS (30) each, then a table. Exit code 1 if one has a finding.

``python -m fuzz TARGET [libFuzzer options, or a file]``: that target alone, here.
"""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Final, NoReturn

TARGETS: Final = (
    "chunks",
    "frames",
    "ethernet",
    "request_head",
    "response_head",
    "tun_conf",
    "params",
    "config",
    "jsonc",
    "websocket",
    "handshake",
    "control",
    "forwarded",
    "proxy_header",
    "connect",
    "proxy_url",
    "admin",
    "tls_records",
    "update_answer",
    "update_metadata",
    "update_notes",
)
NATIVE: Final = "pump"  # a program of its own
WORK: Final = Path(__file__).resolve().parent.parent / "build" / "fuzz"
# Seconds that one input may take, and MiB that a target may: an input that costs more is a finding too.
SLOW_INPUT_S: Final = 5
MEMORY_MIB: Final = 1024
MAX_INPUT_BYTES: Final = 8192


def run_all(seconds: int) -> int:
    rows, failed = [], False
    for name in (*TARGETS, NATIVE):
        print(f"fuzzing {name} for {seconds} s", flush=True)
        done = _run(name, seconds)
        output = done.stdout.decode(errors="replace")
        runs = re.search(r"Done (\d+) runs in (\d+) second", output)
        covered = re.findall(r" cov: (\d+) ft: (\d+) ", output)
        ok = done.returncode == 0 and runs is not None
        failed |= not ok
        if not ok:
            print(*output.splitlines()[-30:], sep="\n")
        count, took_s = (int(runs[1]), int(runs[2])) if runs else (0, 0)
        edges = covered[-1][0] if covered else "-"
        rows.append(
            f"{name:<14} {count:>9} {count // max(1, took_s):>8} {edges:>6}  {'nothing' if ok else 'A FINDING'}"
        )
    print(f"{'target':<14} {'inputs':>9} {'per s':>8} {'edges':>6}  found", *rows, sep="\n")
    return int(failed)


def _run(name: str, seconds: int) -> subprocess.CompletedProcess[bytes]:
    findings, corpus = WORK / "findings", WORK / "corpus" / name
    for folder in (findings, corpus):
        folder.mkdir(parents=True, exist_ok=True)
    options = [
        f"-max_total_time={seconds}",
        f"-timeout={SLOW_INPUT_S}",
        f"-rss_limit_mb={MEMORY_MIB}",
        f"-artifact_prefix={findings}/{name}-",
        str(corpus),
    ]
    return subprocess.run(
        [sys.executable, "-m", "fuzz", name, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )


def run_one(name: str, arguments: list[str]) -> None:
    """Does not return: libFuzzer ends the process."""
    if name == NATIVE:
        run_native(arguments)
    import atheris  # type: ignore[import-not-found, import-untyped, unused-ignore]

    with atheris.instrument_imports(include=["tapotun_trio", "fuzz", "h11", "wsproto", "tuf", "securesystemslib"]):
        target = importlib.import_module(f"fuzz.{name}")
    folders = _seed(name, target.SEEDS, arguments)
    atheris.Setup([f"fuzz-{name}", f"-max_len={MAX_INPUT_BYTES}", *arguments, *folders], target.check)
    atheris.Fuzz()


def run_native(arguments: list[str]) -> NoReturn:
    from . import pump

    program = WORK / "native" / NATIVE
    pump.build(program)
    folders = _seed(NATIVE, pump.SEEDS, arguments)
    largest = f"-max_len={max(map(len, pump.SEEDS))}"
    os.execve(program, [str(program), largest, *arguments, *folders], pump.environment(dict(os.environ)))


def _seed(name: str, seeds: list[bytes], arguments: list[str]) -> list[str]:
    """Write the seeds to a folder. Returns it, if the arguments have the folder where libFuzzer puts what it learns,
    which is the first; a file alone is run and nothing else."""
    folder = WORK / "seeds" / name
    folder.mkdir(parents=True, exist_ok=True)
    for n, seed in enumerate(seeds):
        (folder / str(n)).write_bytes(seed)
    return [str(folder)] if any(Path(argument).is_dir() for argument in arguments) else []


if __name__ == "__main__":
    if len(sys.argv) > 1:
        run_one(sys.argv[1], sys.argv[2:])
    else:
        sys.exit(run_all(int(os.environ.get("FUZZ_SECONDS", "30"))))
