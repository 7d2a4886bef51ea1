"""Signed statements: in-toto statements in DSSE envelopes, by ed25519 key file or a key of AWS KMS (securesystemslib).

A keyring has one key to sign with and the public keys whose signatures count. Public keys are also stored under their
id, so an auditor who has only the store can verify signatures and see the ids of their keys.
"""

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import Error as SecureSystemsError
from securesystemslib.signer import AWSSigner, CryptoSigner, Key, Signer, SSlibKey

from hardcase.errors import HardcaseError, InputError
from hardcase.store.digest import canonical_json
from hardcase.store.store import Store

STATEMENT: Final = "https://in-toto.io/Statement/v1"
PAYLOAD: Final = "application/vnd.in-toto+json"  # of DSSE, as the in-toto attestation framework names it
KEYS: Final = "keys"
SIGNING_FILE: Final = "signing.pem"


class DistrustError(HardcaseError):
    """A signature is missing, wrong, or of a key that is not trusted."""


@dataclass(frozen=True)
class Keyring:
    """The key that a process signs with, and the keys that it trusts.

    Attributes:
        trusted: public keys by id.
        signer: None for a process that only verifies.
    """

    trusted: Mapping[str, Key]
    signer: Signer | None = None

    def sign(self, statement: Mapping[str, Any]) -> bytes:
        """Return the statement in a signed envelope, as canonical JSON.

        Raises:
            HardcaseError: there is no signing key, or it cannot be used.
        """
        envelope, signer = Envelope(canonical_json(statement), PAYLOAD, {}), self._signer()
        try:
            envelope.sign(signer)
        except Exception as error:  # of KMS: anything that botocore raises
            raise HardcaseError(f"signing key: cannot sign: {str(error)[:200]}; fix its rights") from error
        return canonical_json(envelope.to_dict())

    def open_envelope(self, envelope: bytes, what: str) -> dict[str, Any]:
        """Return the statement in an envelope after verifying its signature.

        Args:
            envelope: JSON.
            what: name of the envelope in messages.

        Raises:
            DistrustError: it is not an envelope, or no trusted key signed it.
        """
        try:
            opened = Envelope.from_dict(json.loads(envelope))
            if opened.payload_type != PAYLOAD:
                raise ValueError(f"payload type {opened.payload_type!r}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DistrustError(f"{what}: not a signed statement; bring back the original") from error
        try:
            opened.verify(list(self.trusted.values()), threshold=1)
        except (SecureSystemsError, ValueError) as error:
            signers = ", ".join(keyid[:12] for keyid in opened.signatures) or "no key"
            known = ", ".join(sorted(keyid[:12] for keyid in self.trusted)) or "none"
            raise DistrustError(
                f"{what}: no good signature: signed by {signers}, trusted are {known}; bring back the original, or, "
                "if you know the signer, put its public key into $HARDCASE_HOME/keys"
            ) from error
        statement = json.loads(opened.payload)
        if not isinstance(statement, dict) or statement.get("_type") != STATEMENT:
            raise DistrustError(f"{what}: signed, but not an in-toto statement; bring back the original")
        return statement

    def check(self) -> None:
        """Verify that the key signs."""
        self.open_envelope(self.sign({"_type": STATEMENT}), "signing key")

    @property
    def public(self) -> tuple[str, bytes]:
        """Name in a store, and content, of the signing key's public key."""
        key = self._signer().public_key
        return f"{KEYS}/{key.keyid}.pub", _pem(key)

    def publish(self, store: Store) -> None:
        store.put_named(*self.public)

    def _signer(self) -> Signer:
        if self.signer is None:
            raise HardcaseError("signing key: this keyring only verifies; name a private key to sign with")
        return self.signer


def make_key(folder: Path) -> None:
    """Make an ed25519 key in `folder` unless there is one: `signing.pem`, for its owner only, and its `.pub`."""
    path = folder / SIGNING_FILE
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        _write_first(path, CryptoSigner.generate_ed25519().private_bytes)
    if not (public := path.with_suffix(".pub")).exists():
        _write_first(public, _pem(_file_signer(path).public_key))
        public.chmod(0o644)


def _write_first(path: Path, data: bytes) -> None:
    """Write a file that only its owner can read; of several processes that do so at once the first wins."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(file.name, path)


def open_keyring(signing: str, trusted: Iterable[Path]) -> Keyring:
    """Open a keyring that signs.

    Args:
        signing: path of a private key (PEM, PKCS8), or `awskms:<id, ARN or alias>`.
        trusted: files of public keys (PEM), and folders of them (`*.pub`); the signing key's own always counts.

    Raises:
        InputError: a key cannot be read.
    """
    signer = _kms_signer(signing) if signing.startswith("awskms:") else _file_signer(Path(signing))
    return Keyring({**read_public_keys(trusted), signer.public_key.keyid: signer.public_key}, signer)


def list_trusted(home: Path | None) -> list[Path]:
    """Return where trusted public keys are: the paths in `HARDCASE_TRUSTED_KEYS`, and the folder `keys` of a home.

    A home is not named in the variable, because its path may hold the separator.
    """
    named = [Path(path) for path in os.environ.get("HARDCASE_TRUSTED_KEYS", "").split(os.pathsep) if path]
    return [*named, home / KEYS] if home and (home / KEYS).is_dir() else named


def read_public_keys(paths: Iterable[Path]) -> dict[str, Key]:
    """Read public keys, by id.

    Args:
        paths: files in PEM, and folders of `*.pub`.

    Raises:
        InputError: a file is not a public key.
    """
    files = [file for path in paths for file in (sorted(path.glob("*.pub")) if path.is_dir() else [path])]
    keys: dict[str, Key] = {}
    for file in files:
        try:
            key = parse_public_key(file.read_bytes())
        except OSError as error:
            raise InputError(f"key {file}: {error.strerror}; name a public key in PEM") from error
        except ValueError as error:
            raise InputError(f"key {file}: not a public key in PEM; replace or remove it") from error
        keys[key.keyid] = key
    return keys


def read_stored_keys(store: Store) -> dict[str, Key]:
    """Read the public keys in a store, by id; `DistrustError` if one is not the key of its name."""
    keys: dict[str, Key] = {}
    for name in store.list_names(KEYS):
        try:
            key = parse_public_key(store.get_named(name) or b"")
        except ValueError as error:
            raise DistrustError(f"{name}: not a public key; bring back the original") from error
        if name != f"{KEYS}/{key.keyid}.pub":
            raise DistrustError(f"{name}: holds the key {key.keyid[:12]}, another one; bring back the original")
        keys[key.keyid] = key
    return keys


def parse_public_key(pem: bytes) -> Key:
    """Return the public key in PEM bytes; `ValueError` if there is none."""
    try:
        return SSlibKey.from_crypto(load_pem_public_key(pem))
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from error


def _pem(key: Key) -> bytes:
    if key.keytype != "ed25519":
        return str(key.keyval["public"]).encode()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    raw = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.keyval["public"]))
    return raw.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _file_signer(path: Path) -> Signer:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        return CryptoSigner(load_pem_private_key(path.read_bytes(), password=None))
    except OSError as error:
        raise InputError(f"signing key {path}: {error.strerror}; name a private key in PEM, or awskms:ID") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"signing key {path}: not an unencrypted private key in PEM (PKCS8); replace it") from error


def _kms_signer(uri: str) -> Signer:
    try:
        address, key = AWSSigner.import_(uri.removeprefix("awskms:"))
        return Signer.from_priv_key_uri(address, key)
    except Exception as error:  # anything that botocore raises
        raise InputError(
            f"signing key {uri}: {str(error)[:200]}; name a KMS key for signing that this role may use"
        ) from error
