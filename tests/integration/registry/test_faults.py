"""Registrations, rollbacks and promotions whose writes S3 carries out without an answer, or refuses for a conflict."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache, cached_property
from itertools import count
from pathlib import Path
from typing import Any, get_args

import boto3
import pytest
from obstore.exceptions import GenericError

from hardcase.cli.champion import move_champion
from hardcase.config import RegisterConfig
from hardcase.errors import HardcaseError
from hardcase.provenance.code import keep_code
from hardcase.registry import account
from hardcase.registry.champion import Outcome, promote, roll_back
from hardcase.registry.ledger import entry_name
from hardcase.registry.mirror import Mirror
from hardcase.runners.home import Home
from hardcase.steps.register import run
from hardcase.store.store import Store, open_store
from tests.integration.registry import conftest
from tests.integration.registry.conftest import House
from tests.support.evaluations import evaluated
from tests.support.faults import Fault, Faults, faulty_endpoint
from tests.support.s3 import moto_bucket

NAME = RegisterConfig().name
RETAINED = RegisterConfig(resamples=400, retention_days=30)


@dataclass
class HouseOnS3(House):
    """A house whose store is a bucket with Object Lock."""

    prefix: str = "store"

    @cached_property
    def store(self) -> Store:  # type: ignore[override]
        return open_store(f"s3://ledger/{self.prefix}", cached=False)

    def promote(self, fingerprint: str, config: RegisterConfig = conftest.CONFIG) -> int:
        """Register a model that is as good as the champion, and return its number."""
        registered = self.launch(fingerprint, evaluated(0.7), config=config)
        assert registered["verdict"] == "promoted"
        return int(registered["version"])

    def forget_entry(self, number: int) -> None:
        """Remove an entry of the ledger, as if it had never been written."""
        client, key = boto3.client("s3"), f"{self.prefix}/{entry_name(NAME, number)}"
        for version in client.list_object_versions(Bucket="ledger", Prefix=key)["Versions"]:
            options = {"VersionId": version["VersionId"], "BypassGovernanceRetention": True}
            client.delete_object(Bucket="ledger", Key=key, **options)

    def move(self, spec: str = NAME, move: Callable[..., Outcome] = roll_back) -> tuple[int, bool]:
        """Run the work of `hardcase rollback` or `promote`."""
        outcome = move_champion(spec, Home(self.root, self.store.uri), "tested", move)
        return outcome.champion.number, outcome.moved


@pytest.fixture
def faults() -> Iterator[Faults]:
    with moto_bucket("ledger", object_lock=True), faulty_endpoint() as faults:
        yield faults


@pytest.fixture
def house(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HouseOnS3:
    monkeypatch.setenv("HARDCASE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(Mirror, "show", lambda *_: None)  # it writes nothing to S3
    return HouseOnS3(tmp_path)


def champions(house: House) -> list[int]:
    return [version.number for version in house.ledger.champions]


@pytest.mark.parametrize("fault", get_args(Fault))
def test_registration_is_one_version_whichever_write_loses_its_answer(
    house: HouseOnS3, faults: Faults, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each write of the step, one at a time, until a registration has fewer writes."""

    def run_armed(*arguments: Any) -> bool:
        faults.arm(fault, number)
        return run(*arguments)

    monkeypatch.setattr(conftest, "run", run_armed)
    monkeypatch.setattr(account, "keep_code", cache(keep_code))  # two hundred files, each time the same
    for number in count(1):
        assert house.promote(f"f{number}") == number
        if not faults.struck:
            break
    assert number == 20
    assert champions(house) == list(range(1, number + 1))
    assert house.audited() == []


@pytest.mark.parametrize("fault", get_args(Fault))
def test_rollback_and_promotion_are_one_step_whichever_write_loses_its_answer(
    house: HouseOnS3, faults: Faults, fault: Fault
) -> None:
    for fingerprint in "abc":
        house.promote(fingerprint)
    moves = ((roll_back, NAME, 4, [1, 2]), (promote, f"{NAME}:3", 5, [1, 2, 3]))
    for move, spec, entry, expected in moves:
        faults.arm(fault, 0)
        assert house.move(spec, move) == (expected[-1], True)
        assert len(faults.writes) == 2  # the public key and the entry
        for at in (1, 2):
            house.forget_entry(entry)
            faults.arm(fault, at)
            assert house.move(spec, move) == (expected[-1], True)
            assert faults.struck
            assert house.move(spec, move) == (expected[-1], False)
            assert champions(house) == expected


def test_rollback_that_never_hears_an_answer_is_recognised_when_it_is_done_again(
    house: HouseOnS3, faults: Faults, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line breaks after the write, and the endpoint cannot be reached again."""
    for fingerprint in "abc":
        house.promote(fingerprint)

    read = Store._read

    def break_line(self: Store, name: str) -> bytes | None:
        if "000004" in name:
            raise GenericError("no route to host")
        return read(self, name)

    faults.arm("cut", 1, within="000004")
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_read", break_line)
        with pytest.raises(HardcaseError, match="000004"):
            roll_back(house.store, house.keys, NAME, "tester", "", lambda version: None)
    faults.arm("cut", 0)
    assert house.move() == (2, False)
    assert len(house.ledger.moves) == 4


def test_rollback_is_put_under_the_retention_of_registrations(house: HouseOnS3, faults: Faults) -> None:
    house.promote("a", RETAINED)
    house.promote("b")
    house.move()
    key = f"store/{entry_name(NAME, 3)}"
    until = boto3.client("s3").head_object(Bucket="ledger", Key=key)["ObjectLockRetainUntilDate"]
    assert until > datetime.now(UTC) + timedelta(days=29)
