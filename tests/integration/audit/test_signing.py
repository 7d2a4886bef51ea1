"""Keys and envelopes: what is signed opens, what was touched or is signed by a stranger does not."""

import json
import stat
from base64 import b64decode, b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from moto.kms.utils import ECDSAPrivateKey

from hardcase.errors import InputError
from hardcase.provenance.signing import (
    STATEMENT,
    DistrustError,
    Keyring,
    make_key,
    open_keyring,
    read_public_keys,
    read_stored_keys,
)
from hardcase.store.store import open_store
from tests.support.s3 import moto_bucket

SAID = {"_type": STATEMENT, "subject": [], "predicateType": "urn:x", "predicate": {"n": 1}}


def keyring(folder: Path, trusted: list[Path] | None = None) -> Keyring:
    make_key(folder)
    return open_keyring(str(folder / "signing.pem"), trusted or [])


def test_key_is_made_once_for_its_owners_eyes_also_by_many_at_once(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: make_key(tmp_path / "keys"), range(8)))
    path = tmp_path / "keys" / "signing.pem"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(file.name for file in path.parent.iterdir()) == ["signing.pem", "signing.pub"]
    first = path.read_bytes()
    make_key(tmp_path / "keys")
    assert path.read_bytes() == first
    assert set(read_public_keys([tmp_path / "keys"])) == set(keyring(tmp_path / "keys").trusted)


def test_envelope_opens_for_whoever_trusts_the_signer(tmp_path: Path) -> None:
    ours, theirs = keyring(tmp_path / "a"), keyring(tmp_path / "b")
    envelope = ours.sign(SAID)
    assert ours.open_envelope(envelope, "it") == SAID
    assert Keyring(read_public_keys([tmp_path / "a" / "signing.pub"])).open_envelope(envelope, "it") == SAID
    assert keyring(tmp_path / "b", [tmp_path / "a"]).open_envelope(envelope, "it") == SAID
    with pytest.raises(DistrustError, match=r"it: no good signature: signed by .*, trusted are"):
        theirs.open_envelope(envelope, "it")


@pytest.mark.parametrize("what", ["payload", "signature", "payload type", "unsigned", "other key id", "text", "list"])
def test_touched_envelope_does_not_open(tmp_path: Path, what: str) -> None:
    keys = keyring(tmp_path)
    envelope = json.loads(keys.sign(SAID))
    if what == "payload":
        envelope["payload"] = b64encode(b64decode(envelope["payload"]).replace(b'"n":1', b'"n":2')).decode()
    elif what == "signature":
        envelope["signatures"][0]["sig"] = b64encode(bytes(64)).decode()
    elif what == "payload type":
        envelope["payloadType"] = "text/plain"
    elif what == "unsigned":
        envelope["signatures"] = []
    elif what == "other key id":
        envelope["signatures"][0]["keyid"] = "0" * 64
    data = {"text": b"hello", "list": b"[]"}.get(what, json.dumps(envelope).encode())
    with pytest.raises(DistrustError, match=r"^it: "):
        keys.open_envelope(data, "it")


@pytest.mark.parametrize("content", [b"", b"hello", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_file_that_is_no_key_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    for name in ("x.pem", "x.pub"):
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=r"signing key .*x\.pem: not an unencrypted private key"):
        open_keyring(str(tmp_path / "x.pem"), [])
    with pytest.raises(InputError, match=r"key .*x\.pub: not a public key"):
        read_public_keys([tmp_path])
    with pytest.raises(InputError, match=r"signing key .*none\.pem: No such file"):
        open_keyring(str(tmp_path / "none.pem"), [])


def test_key_of_another_kind_works_from_a_file(tmp_path: Path) -> None:
    private = generate_private_key(SECP256R1())
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "ec.pem").write_bytes(pem)
    keys = open_keyring(str(tmp_path / "ec.pem"), [])
    store = open_store(str(tmp_path / "store"))
    keys.publish(store)
    assert Keyring(read_stored_keys(store)).open_envelope(keys.sign(SAID), "it") == SAID


def test_published_key_is_found_and_one_in_anothers_place_is_not_taken(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    ours, theirs = keyring(tmp_path / "a"), keyring(tmp_path / "b")
    for keys in (ours, theirs):
        keys.publish(store)
    assert Keyring(read_stored_keys(store)).open_envelope(ours.sign(SAID), "it") == SAID
    first, second = sorted((tmp_path / "store" / "keys").iterdir())
    first.write_bytes(second.read_bytes())
    with pytest.raises(DistrustError, match=f"keys/{first.name}: holds the key"):
        read_stored_keys(store)


def test_key_of_kms_signs_and_whoever_has_its_public_key_can_check(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As AWS does where it is handed a digest; moto would hash that once more.
    monkeypatch.setattr(
        ECDSAPrivateKey, "sign", lambda key, digest, _: key.private_key.sign(digest, ECDSA(Prehashed(SHA256())))
    )
    with moto_bucket("artifacts"):
        key = boto3.client("kms").create_key(KeyUsage="SIGN_VERIFY", KeySpec="ECC_NIST_P256")["KeyMetadata"]["KeyId"]
        boto3.client("kms").create_alias(AliasName="alias/hardcase", TargetKeyId=key)
        keys = open_keyring("awskms:alias/hardcase", [])
        envelope = keys.sign(SAID)
        store = open_store(str(tmp_path / "store"))
        keys.publish(store)
        with pytest.raises(InputError, match=r"signing key awskms:alias/other: .*NotFound"):
            open_keyring("awskms:alias/other", [])
    assert Keyring(read_stored_keys(store)).open_envelope(envelope, "it") == SAID
    assert keys.open_envelope(envelope, "it") == SAID
