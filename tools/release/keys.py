"""Ed25519 keys in files: NAME.pem is the private key, mode 0600 and perhaps encrypted, NAME.pub the public one.

A directory may have public keys alone: those of private keys that are kept elsewhere.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, SSlibKey

PRIVATE: Final = ".pem"
PUBLIC: Final = ".pub"


class ReleaseError(Exception):
    """Nothing was published. The text is one line for people: the value, the place, the remedy."""


def make_key(file: Path, passphrase: str | None) -> SSlibKey:
    """Write a new pair, NAME.pem (this file) and NAME.pub. An existing file is never replaced.

    Args:
        file: ends with .pem.
        passphrase: encrypts the private key. None: it is not encrypted.

    Raises:
        ReleaseError: a file of that name exists, or cannot be written.
    """
    if file.suffix != PRIVATE:
        raise ReleaseError(f"{file}: the name of a private key must end with {PRIVATE}")
    encryption: KeySerializationEncryption = NoEncryption()
    if passphrase is not None:
        encryption = BestAvailableEncryption(passphrase.encode())
    private = Ed25519PrivateKey.generate()
    public = private.public_key()
    _write(file, 0o600, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption))
    _write(file.with_suffix(PUBLIC), 0o644, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return SSlibKey.from_crypto(public)


def _write(file: Path, mode: int, data: bytes) -> None:
    try:
        fd = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        with open(fd, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(fd)
    except OSError as exc:
        raise ReleaseError(f"{file}: {exc.strerror}; no key was written there") from exc


def read_public(file: Path) -> SSlibKey:
    """The public key in NAME.pub. Raises ReleaseError."""
    try:
        key = load_pem_public_key(file.read_bytes())
    except OSError as exc:
        raise ReleaseError(f"{file}: {exc.strerror}") from exc
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise ReleaseError(f"{file}: not a public key in PEM") from exc
    if not isinstance(key, Ed25519PublicKey):  # clients verify others only with a native module, which the pyz lacks
        raise ReleaseError(f"{file}: not an Ed25519 key; make-key makes one")
    return SSlibKey.from_crypto(key)


class Keys:
    """The keys of a directory. A private key is read, and its passphrase asked for, when it first signs."""

    def __init__(self, directory: Path, ask: Callable[[str], str]) -> None:
        """``ask``: is given the name of a file, returns the passphrase of the private key in it.

        Raises ReleaseError if there is no such directory, or if a public key in it cannot be read.
        """
        if not directory.is_dir():
            raise ReleaseError(f"{directory}: no such directory; --keys names the one with the keys")
        self._directory: Final = directory
        self._ask: Final = ask
        self._files: Final = {read_public(file).keyid: file for file in sorted(directory.glob(f"*{PUBLIC}"))}
        self._signers: Final[dict[str, CryptoSigner]] = {}

    def name(self, keyid: str) -> str:
        """For people: the file's name without its suffix, or the beginning of the ID of a key that is not here."""
        return self._files[keyid].stem if keyid in self._files else f"{keyid[:12]}..."

    def can_sign(self, keyid: str) -> bool:
        """Whether the private key is here."""
        return keyid in self._files and self._files[keyid].with_suffix(PRIVATE).exists()

    def signer(self, keyid: str) -> CryptoSigner:
        """For a key of which `can_sign` is true. Raises ReleaseError."""
        if keyid not in self._signers:
            self._signers[keyid] = self._read(keyid)
        return self._signers[keyid]

    def private_bytes(self, keyid: str) -> bytes:
        """The private key as its file has it, encrypted or not, if `can_sign` is true. Raises ReleaseError."""
        file = self._files[keyid].with_suffix(PRIVATE)
        try:
            if file.stat().st_mode & 0o077:
                raise ReleaseError(f"{file}: others may read this private key: chmod 600 {file}")
            return file.read_bytes()
        except OSError as exc:
            raise ReleaseError(f"{file}: {exc.strerror}") from exc

    def _read(self, keyid: str) -> CryptoSigner:
        file, data = self._files[keyid].with_suffix(PRIVATE), self.private_bytes(keyid)
        try:
            try:
                key = load_pem_private_key(data, None)
            except TypeError:  # it is encrypted
                key = load_pem_private_key(data, self._ask(str(file)).encode())
        except (ValueError, TypeError, UnsupportedAlgorithm) as exc:  # TypeError: an empty passphrase
            raise ReleaseError(f"{file}: not a private key in PEM, or another passphrase") from exc
        if not isinstance(key, Ed25519PrivateKey):
            raise ReleaseError(f"{file}: not an Ed25519 key; make-key makes one")
        signer = CryptoSigner(key)
        if signer.public_key.keyid != keyid:
            raise ReleaseError(f"{file}: not the private key of {self._files[keyid]}")
        return signer
