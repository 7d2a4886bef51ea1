"""The statement is SLSA's, and comes back as it was put together."""

from pathlib import Path

import pytest
from google.protobuf.json_format import ParseDict
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1.statement import Statement

from hardcase.errors import HardcaseError
from hardcase.formats import NewerFormatError
from hardcase.provenance.signing import DistrustError
from hardcase.provenance.statement import (
    FOLDER,
    SNAPSHOT,
    Provenance,
    Resource,
    index_resources,
    list_members,
    read_provenance,
)
from hardcase.store.store import open_store

MADE = Provenance(
    subject="a" * 64,
    parameters={"config": {"sft": {"steps": 3}}, "source": "procedural://", "seed": 0},
    internal={"fingerprint": "f", "reference": ""},
    dependencies=index_resources(
        [
            Resource("snapshot", "b" * 64, SNAPSHOT),
            Resource("git commit", "", notes={"commit": "0123", "clean": "yes"}),
            Resource("champion", "c" * 64, FOLDER, {"version": "m:1"}),
        ]
    ),
    byproducts=index_resources([Resource("mined", "d" * 64)]),
    run="r2",
    parents=("r1",),
)


def test_statement_is_one_that_slsa_and_in_toto_read() -> None:
    statement = MADE.statement({"model.safetensors": "e" * 64})
    predicate = ParseDict(statement["predicate"], provenance_pb2.Provenance())
    definition = predicate.build_definition
    assert [each.name for each in definition.resolved_dependencies] == ["snapshot", "git commit", "champion"]
    assert definition.resolved_dependencies[1].digest["gitCommit"] == "0123"
    assert predicate.run_details.metadata.invocation_id == "r2"
    Statement.copy_from_pb(ParseDict(statement, Statement([], "", {}).pb)).validate()
    assert [each["name"] for each in statement["subject"]] == ["model", "model/model.safetensors"]


def test_statement_comes_back_as_it_was() -> None:
    assert read_provenance(MADE.statement({}), "it") == MADE


@pytest.mark.parametrize("change", [{"predicateType": "urn:x"}, {"subject": []}, {"predicate": {}}])
def test_other_statements_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(DistrustError, match="it: signed, but not the provenance of a model"):
        read_provenance({**MADE.statement({}), **change}, "it")


@pytest.mark.parametrize("content", [b"", b"[]", b"\x80\x04K\x01.", b'{"shards": [1]}'])
def test_listing_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(HardcaseError, match=r"objects/\S+: not a listing"):
        list_members(store, store.put_object(content), SNAPSHOT)
    with pytest.raises(HardcaseError, match="no sha256"):
        list_members(store, store.put_object(b'{"model.safetensors": "../../etc/passwd"}'), FOLDER)


def test_statement_of_a_newer_hardcase_asks_for_an_upgrade_and_more_keys_of_this_format_are_kept() -> None:
    statement = MADE.statement({})
    definition = statement["predicate"]["buildDefinition"]
    definition["externalParameters"]["region"] = "north"
    assert read_provenance(statement, "it").parameters["region"] == "north"
    definition["buildType"] = "urn:hardcase:retraining:v2"
    with pytest.raises(NewerFormatError, match=r"it: written by a newer hardcase \(format 2, .* up to 1\)"):
        read_provenance(statement, "it")


def test_manifest_of_a_newer_hardcase_lists_nothing(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "store"))
    with pytest.raises(NewerFormatError, match=r"objects/\S+: written by a newer hardcase"):
        list_members(store, store.put_object(b'{"schema": 3, "shards": []}'), SNAPSHOT)
