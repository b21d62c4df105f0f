"""Boots a kernel of Debian's that has kTLS in qemu, by software, and runs `check.py` in it.

For a machine whose own kernel has none. Nothing of the tunnel uses kTLS; docs/performance-notes.md says what this
showed. Not part of the test suite. Needs qemu-system-x86, busybox, openssl and Debian's own python3; not root::

    apt-get download linux-image-6.1.0-57-cloud-amd64
    python -m tools.ktls linux-image-*.deb
"""
