"""Signed statements: in-toto statements in DSSE envelopes, by ed25519 key file or a key of AWS KMS (securesystemslib).

A keyring has one key to sign with and the public keys whose signatures count. Public keys are also kept in the store,
under their id, so that an auditor who has nothing but the store can check signatures, and is told whose they are.
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
    """What a process signs with, and whom it trusts.

    Attributes:
        trusted: public keys by id.
        signer: None for one who only verifies.
    """

    trusted: Mapping[str, Key]
    signer: Signer | None = None

    def sign(self, statement: Mapping[str, Any]) -> bytes:
        """The statement in a signed envelope, as canonical JSON.

        Raises:
            HardcaseError: the key cannot be used.
        """
        assert self.signer is not None, "a keyring that only verifies was asked to sign"
        envelope = Envelope(canonical_json(statement), PAYLOAD, {})
        try:
            envelope.sign(self.signer)
        except Exception as error:  # of KMS: anything that botocore raises
            raise HardcaseError(f"signing key: cannot sign: {str(error)[:200]}; mend its rights") from error
        return canonical_json(envelope.to_dict())

    def opened(self, envelope: bytes, what: str) -> dict[str, Any]:
        """The statement in an envelope, its signature found good.

        Args:
            envelope: JSON.
            what: to call it in errors.

        Raises:
            DistrustError: it is no envelope, or nobody trusted signed it.
        """
        try:
            found = Envelope.from_dict(json.loads(envelope))
            assert found.payload_type == PAYLOAD
        except (ValueError, KeyError, TypeError, AttributeError, AssertionError) as error:
            raise DistrustError(f"{what}: not a signed statement; bring back the original") from error
        try:
            found.verify(list(self.trusted.values()), threshold=1)
        except (SecureSystemsError, ValueError) as error:
            signers = ", ".join(keyid[:12] for keyid in found.signatures) or "nobody"
            known = ", ".join(sorted(keyid[:12] for keyid in self.trusted)) or "none"
            raise DistrustError(
                f"{what}: no good signature: signed by {signers}, trusted are {known}; bring back the original, or, "
                "if you know the signer, put its public key into $HARDCASE_HOME/keys"
            ) from error
        statement: dict[str, Any] = json.loads(found.payload)
        if statement.get("_type") != STATEMENT:
            raise DistrustError(f"{what}: signed, but not an in-toto statement; bring back the original")
        return statement

    def publish(self, store: Store) -> None:
        """Keep the signer's public key in the store."""
        assert self.signer is not None
        key = self.signer.public_key
        store.put_named(f"{KEYS}/{key.keyid}.pub", _pem(key))


def make_key(folder: Path) -> None:
    """Make an ed25519 key in `folder` unless there is one: `signing.pem`, for its owner's eyes, and its `.pub`."""
    path = folder / SIGNING_FILE
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not path.exists():
        _write_first(path, CryptoSigner.generate_ed25519().private_bytes)
    if not (public := path.with_suffix(".pub")).exists():
        _write_first(public, _pem(_file_signer(path).public_key))
        public.chmod(0o644)


def _write_first(path: Path, data: bytes) -> None:
    """Write a file for its owner's eyes; of several processes that do so at once the first wins."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
        with suppress(FileExistsError):
            os.link(file.name, path)


def open_keyring(signing: str, trusted: Iterable[Path]) -> Keyring:
    """A keyring that signs.

    Args:
        signing: path of a private key (PEM, PKCS8), or `awskms:<id, ARN or alias>`.
        trusted: folders of public keys (`*.pub`, PEM) and such files; the signing key's own always counts.

    Raises:
        InputError: a key cannot be read.
    """
    signer = _kms_signer(signing) if signing.startswith("awskms:") else _file_signer(Path(signing))
    return Keyring({**public_keys(trusted), signer.public_key.keyid: signer.public_key}, signer)


def public_keys(places: Iterable[Path]) -> dict[str, Key]:
    """The public keys in those files, and in the `*.pub` of those folders, by id.

    Raises:
        InputError: one of them is none.
    """
    files = [file for place in places for file in (sorted(place.glob("*.pub")) if place.is_dir() else [place])]
    keys: dict[str, Key] = {}
    for file in files:
        try:
            key = public_key(file.read_bytes())
        except OSError as error:
            raise InputError(f"key {file}: {error.strerror}; name a public key in PEM") from error
        except ValueError as error:
            raise InputError(f"key {file}: not a public key in PEM; replace or remove it") from error
        keys[key.keyid] = key
    return keys


def stored_keys(store: Store) -> dict[str, Key]:
    """The public keys in the store, by id.

    Raises:
        DistrustError: one of them is none, or is not the one of its name.
    """
    keys: dict[str, Key] = {}
    for name in store.list_names(KEYS):
        try:
            key = public_key(store.get_named(name) or b"")
        except ValueError as error:
            raise DistrustError(f"{name}: not a public key; bring back the original") from error
        if name != f"{KEYS}/{key.keyid}.pub":
            raise DistrustError(f"{name}: holds the key {key.keyid[:12]}, another one; bring back the original")
        keys[key.keyid] = key
    return keys


def public_key(pem: bytes) -> Key:
    """A public key of PEM bytes.

    Raises:
        ValueError: it is none.
    """
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
        private = load_pem_private_key(path.read_bytes(), password=None)
        key = SSlibKey.from_crypto(private.public_key())
        return CryptoSigner.from_priv_key_uri(f"file2:{path}", key)
    except OSError as error:
        raise InputError(f"signing key {path}: {error.strerror}; name a private key in PEM, or awskms:ID") from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(f"signing key {path}: not an unencrypted private key in PEM (PKCS8); replace it") from error


def _kms_signer(uri: str) -> Signer:
    try:
        where, key = AWSSigner.import_(uri.removeprefix("awskms:"))
        return Signer.from_priv_key_uri(where, key)
    except Exception as error:  # anything that botocore raises
        raise InputError(
            f"signing key {uri}: {str(error)[:200]}; name a KMS key for signing that this role may use"
        ) from error
