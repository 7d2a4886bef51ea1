"""The chain of steps: closed, or it says where it is not."""

from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.link.v0 import link_pb2
from in_toto_attestation.v1.statement import Statement

from hardcase.audit.links import Link, gaps, open_link
from hardcase.audit.signing import STATEMENT, DistrustError, Keyring, make_key, open_keyring

A, B, C = ("a" * 64, "b" * 64, "c" * 64)
FIRST = Link("ingest", {}, {"snapshot": A}, {"code": "1", "config": {}}, {"run": "r1"})
SECOND = Link("sft", {"snapshot": A}, {"trained": B}, {"code": "1", "seed": 0}, {"run": "r2", "clean": "yes"})


@pytest.fixture
def keys(tmp_path: Path) -> Keyring:
    make_key(tmp_path)
    return open_keyring(str(tmp_path / "signing.pem"), [])


def test_link_comes_back_as_it_was_signed(keys: Keyring) -> None:
    for link in (FIRST, SECOND):
        assert open_link(link.signed(keys), keys, "it") == link


def test_link_is_one_that_in_toto_reads(keys: Keyring) -> None:
    statement = keys.opened(SECOND.signed(keys), "it")
    predicate = ParseDict(statement["predicate"], link_pb2.Link())
    assert predicate.name == "sft"
    assert predicate.materials[0].digest["sha256"] == A
    Statement.copy_from_pb(ParseDict(statement, Statement([], "", {}).pb)).validate()


def test_other_statements_are_no_links(keys: Keyring) -> None:
    for said in ({"predicateType": "urn:x"}, {"predicateType": "https://in-toto.io/attestation/link/v0.3"}):
        envelope = keys.sign({"_type": STATEMENT, "subject": [], "predicate": {}, **said})
        with pytest.raises(DistrustError, match="not a step's record"):
            open_link(envelope, keys, "it")


def test_closed_chain_has_no_gaps_and_an_open_one_names_them() -> None:
    assert gaps([FIRST, SECOND]) == []
    astray = replace(SECOND, materials={"snapshot": A, "base_model": C})
    assert gaps([FIRST, astray]) == ["sft read base_model cccccccccccc, which no step of the chain wrote"]
    assert gaps([FIRST, astray], [C]) == []
    assert gaps([FIRST, replace(SECOND, parameters={"code": "2"})]) == ["its steps do not share one code: 1, 2"]
