"""The chain of steps: closed, or it says where it is not."""

from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.link.v0 import link_pb2
from in_toto_attestation.v1.statement import Statement

from hardcase.errors import HardcaseError
from hardcase.formats import NewerFormatError
from hardcase.provenance.attestations import Attestation, find_gaps, follow, open_attestation
from hardcase.provenance.signing import STATEMENT, DistrustError, Keyring, make_key, open_keyring
from hardcase.provenance.statement import FILE, FOLDER
from hardcase.store.store import object_name, open_store

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
FIRST = Attestation("ingest", {}, {"snapshot": A}, {"code": "1", "config": {}}, {"run": "r1"})
SECOND = Attestation("sft", {"snapshot": A}, {"trained": B}, {"code": "1", "seed": 0}, {"run": "r2", "clean": "yes"})
THIRD = replace(SECOND, media_types={"trained": FOLDER}, attested_by={"snapshot": C})


@pytest.fixture
def keys(tmp_path: Path) -> Keyring:
    make_key(tmp_path)
    return open_keyring(str(tmp_path / "signing.pem"), [])


def test_link_comes_back_as_it_was_signed(keys: Keyring) -> None:
    for link in (FIRST, SECOND, THIRD):
        assert open_attestation(link.sign(keys), keys, "it") == link


def test_link_is_one_that_in_toto_reads(keys: Keyring) -> None:
    statement = keys.open_envelope(THIRD.sign(keys), "it")
    predicate = ParseDict(statement["predicate"], link_pb2.Link())
    assert predicate.name == "sft"
    assert predicate.materials[0].digest["sha256"] == A
    assert predicate.materials[0].annotations["attestation"] == C
    Statement.copy_from_pb(ParseDict(statement, Statement([], "", {}).pb)).validate()


def test_other_statements_are_no_links(keys: Keyring) -> None:
    for said in ({"predicateType": "urn:x"}, {"predicateType": "https://in-toto.io/attestation/link/v0.3"}):
        envelope = keys.sign({"_type": STATEMENT, "subject": [], "predicate": {}, **said})
        with pytest.raises(DistrustError, match="not a step's attestation"):
            open_attestation(envelope, keys, "it")


def test_closed_chain_has_no_gaps_and_an_open_one_names_them() -> None:
    assert find_gaps([FIRST, SECOND]) == []
    astray = replace(SECOND, materials={"snapshot": A, "base_model": C})
    assert find_gaps([FIRST, astray]) == ["sft read base_model cccccccccccc, which no step of the chain wrote"]
    assert find_gaps([FIRST, astray], [C]) == []
    assert find_gaps([FIRST, replace(SECOND, parameters={"code": "2"})]) == ["its steps do not share one code: 1, 2"]


def test_following_attestations_finds_all_that_a_step_rests_on(keys: Keyring, tmp_path: Path) -> None:
    store = open_store((tmp_path / "store").as_uri())

    def attest(step: str, product: str, **attested_by: str) -> str:
        link = Attestation(step, dict.fromkeys(attested_by, A), {product: B}, {}, {}, {product: FOLDER}, attested_by)
        return store.put_object(link.sign(keys))

    ingest = attest("ingest", "snapshot")
    sft = attest("sft", "sft_model", snapshot=ingest)
    mine = attest("mine", "mined", snapshot=ingest, sft_model=sft)
    grpo = attest("grpo", "model", sft_model=sft, mined=mine)
    drift = attest("drift", "drift", snapshot=ingest)
    found = follow(store, keys, [drift, grpo])
    assert set(found) == {ingest, sft, mine, grpo, drift}
    assert [link.step for link in found.values() if link.step != "drift"] == ["ingest", "sft", "mine", "grpo"]
    assert found[grpo].attested_by == {"sft_model": sft, "mined": mine}
    assert found[grpo].media_type("model") == FOLDER
    path = tmp_path / "store" / object_name(sft)
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(HardcaseError, match="was altered"):
        follow(store, keys, [grpo])


def test_attestations_of_before_are_read_as_they_were(keys: Keyring) -> None:
    """A link of version 0.1 names neither media types nor attestations."""
    statement = keys.open_envelope(SECOND.sign(keys), "it")
    assert all(set(each) == {"name", "digest"} for each in statement["predicate"]["materials"])
    link = open_attestation(SECOND.sign(keys), keys, "it")
    assert (link.attested_by, link.media_type("trained")) == ({}, FILE)


def test_attestation_of_a_newer_hardcase_asks_for_an_upgrade_and_more_keys_of_this_format_are_kept(
    keys: Keyring,
) -> None:
    statement = keys.open_envelope(FIRST.sign(keys), "it")
    statement["predicate"]["environment"] |= {"region": "north"}
    assert open_attestation(keys.sign(statement), keys, "it").circumstances == {"run": "r1", "region": "north"}
    statement["predicate"]["environment"]["format"] = 2
    with pytest.raises(NewerFormatError, match=r"it: written by a newer hardcase \(format 2, .* up to 1\)"):
        open_attestation(keys.sign(statement), keys, "it")
