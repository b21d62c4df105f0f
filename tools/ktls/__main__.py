"""`python -m tools.ktls PACKAGE...`: exit code 0 if the check ended well in the booted kernel."""

from __future__ import annotations

import argparse
import lzma
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

PYTHON: Final = Path("/usr/bin/python3").resolve()
LIBRARY: Final = Path("/usr/lib") / PYTHON.name
PROGRAMS: Final = (PYTHON, Path("/usr/bin/busybox"), Path("/usr/bin/openssl"))
CONFIG: Final = Path("/usr/lib/ssl/openssl.cnf")
NOT_NEEDED: Final = ("dist-packages", "ensurepip", "idlelib", "lib2to3", "test", "tkinter", "config-*")
MODULES: Final = (
    *("crypto_null", "gf128mul", "ghash-generic", "ctr", "gcm", "tls"),
    *("libchacha", "chacha_generic", "chacha", "libpoly1305", "poly1305_generic", "chacha20poly1305"),
)
GOOD: Final = "the check has ended with 0"
LIMIT_S: Final = 600.0
# Modules need others, so all are offered again while some may still be missing one.
INIT: Final = f"""#!/bin/busybox sh
export PATH=/bin:/usr/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc && mount -t sysfs sysfs /sys && mount -t devtmpfs devtmpfs /dev && ip link set lo up
for again in 1 2 3; do for module in /modules/*; do insmod $module 2>/dev/null; done; done
/usr/bin/{PYTHON.name} -u /check.py 2>&1
echo the check has ended with $?
poweroff -f
"""


def make_root(root: Path, kernel: Path) -> None:
    """What the booted kernel finds, from this machine and from the unpacked packages in ``kernel``."""
    for name in ("bin", "dev", "modules", "proc", "sys", "tmp"):
        (root / name).mkdir(parents=True)
    extensions = [path for name in ("_ssl", "_hashlib") for path in (LIBRARY / "lib-dynload").glob(f"{name}.*.so")]
    # ldd fails if one of them is linked statically; the others are told all the same.
    told = subprocess.run(["ldd", *PROGRAMS, *extensions], stdout=subprocess.PIPE, text=True).stdout
    libraries = {Path(path) for path in re.findall(r"(?m)(/\S+) \(0x[0-9a-f]+\)$", told)}
    for path in {*PROGRAMS, CONFIG, *libraries}:
        target = root / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    (root / "bin" / "busybox").symlink_to("/usr/bin/busybox")
    shutil.copytree(LIBRARY, root / LIBRARY.relative_to("/"), ignore=shutil.ignore_patterns(*NOT_NEEDED))
    for path in kernel.rglob("*.ko*"):
        name = path.name.split(".")[0]
        if name in MODULES:
            data = path.read_bytes()
            (root / "modules" / name).write_bytes(lzma.decompress(data) if path.suffix == ".xz" else data)
    shutil.copy(Path(__file__).with_name("check.py"), root)
    init = root / "init"
    init.write_text(INIT)
    init.chmod(0o755)


def boot(packages: list[Path]) -> bool:
    """Returns whether the check ended well. Prints what the machine's console says."""
    with tempfile.TemporaryDirectory() as name:
        kernel, root, image = Path(name) / "kernel", Path(name) / "root", Path(name) / "initramfs"
        for package in packages:
            subprocess.run(["dpkg-deb", "--extract", package, kernel], check=True)
        make_root(root, kernel)
        files = "".join(f"{path.relative_to(root)}\n" for path in sorted(root.rglob("*")))
        with image.open("wb") as output:
            command = ["busybox", "cpio", "-o", "-H", "newc"]
            subprocess.run(
                command, cwd=root, input=files.encode(), stdout=output, stderr=subprocess.DEVNULL, check=True
            )
        (binary,) = kernel.rglob("vmlinuz*")
        # fmt: off
        command = [
            "timeout", str(LIMIT_S), "qemu-system-x86_64", "-accel", "tcg", "-cpu", "max", "-smp", "1", "-m", "1024",
            "-nographic", "-no-reboot", "-nic", "none", "-kernel", str(binary), "-initrd", str(image),
            "-append", "console=ttyS0 quiet panic=-1",
        ]
        # fmt: on
        good = False
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, errors="replace"
        ) as machine:
            assert machine.stdout is not None
            for line in machine.stdout:
                print(line.rstrip(), flush=True)
                good |= line.rstrip() == GOOD
        return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tools.ktls", description=__doc__)
    parser.add_argument("packages", nargs="+", type=Path, help="the .deb files with a kernel and its modules")
    return 0 if boot(parser.parse_args().packages) else 1


if __name__ == "__main__":
    sys.exit(main())
