"""MLflow as a server: several writers at once, writers that are killed, a server that goes away."""

import json
import logging
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from hardcase.config import RegisterConfig
from hardcase.registry.champion import roll_back
from hardcase.registry.mirror import Mirror, UnshownError
from tests.integration.registry.conftest import House, Server
from tests.integration.registry.test_register import FORK
from tests.support.evaluations import evaluated

NAME = RegisterConfig().name
AT_ONCE, KILLS = 8, 8


@pytest.fixture(name="house")
def _house(house: House, server: Server) -> House:
    house.server = server.uri
    return house


def elsewhere(house: House, name: str) -> House:
    """The same store, keys and server for a process of its own."""
    _ = house.keys, house.store
    place = house.root / name
    place.mkdir()
    for each in ("store", "keys"):
        (place / each).symlink_to(house.root / each)
    return House(place, house.server)


def register(place: House, fingerprint: str, exact: float) -> None:
    place.launch(fingerprint, evaluated(exact, rows=120))


def shows_all(house: House) -> None:
    """Every version in its place, and none beside them but empty ones, kept for the next."""
    aliases, versions = house.state()
    assert aliases == house.ledger.aliases
    assert {number for number, tags in versions.items() if tags} == set(house.ledger.versions)
    assert house.mirror._look(NAME).names == {NAME}
    assert house.audited() == []


def test_eight_registrations_at_once_show_as_in_the_ledger(house: House) -> None:
    places = [elsewhere(house, f"at-once-{number}") for number in range(AT_ONCE)]
    processes = [
        FORK.Process(target=register, args=(place, f"n{number}", 0.5 + number / 20))
        for number, place in enumerate(places)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * AT_ONCE
    found = [json.loads((place.root / "run1" / "register.json").read_text())["version"] for place in places]
    assert sorted(found) == list(house.ledger.versions) == list(range(1, AT_ONCE + 1))
    shows_all(house)


def test_writers_that_mirror_at_once_agree(house: House) -> None:
    for number in range(3):
        house.launch(f"n{number}", evaluated(0.6 + number / 10, rows=120))
    house.mirror._client.delete_registered_model(NAME)
    with ThreadPoolExecutor(3) as pool:
        for each in [pool.submit(Mirror(house.server).show, lambda: house.ledger, "s") for _ in range(6)]:
            each.result()
    shows_all(house)
    for number in range(3, 6):
        house.launch(f"n{number}", evaluated(0.5, rows=120))
    shows_all(house)


def test_version_made_twice_is_kept_for_the_next(house: House) -> None:
    """One of two writers at once leaves it, or one whose request was sent again."""
    house.launch("a", evaluated(0.6, rows=120))
    source, _ = house.mirror._look(NAME).versions[1]
    house.mirror._client.create_model_version(NAME, source=source)
    assert house.audited() == []
    house.launch("b", evaluated(0.9, rows=120))
    shows_all(house)
    assert set(house.state()[1]) == {1, 2}


def test_killed_writers_are_finished_by_the_next(house: House) -> None:
    house.launch("first", evaluated(0.5, rows=120))
    took, draw = 0.0, random.Random(0)
    for number in range(KILLS):
        process = FORK.Process(target=register, args=(elsewhere(house, f"killed{number}"), f"k{number}", 0.6))
        began = time.monotonic()
        process.start()
        if number == 0:  # how long it takes when nobody kills it
            process.join()
            took = time.monotonic() - began
        else:
            time.sleep((0.5 + draw.random() / 2) * took)
            process.kill()
            process.join()
    house.launch("last", evaluated(0.7, rows=120))
    shows_all(house)


def test_registration_succeeds_while_the_server_is_down_and_the_next_one_shows_it(
    house: House, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    house.launch("a", evaluated(0.6, rows=120))
    server.stop()
    found = house.launch("b", evaluated(0.9, rows=120))
    assert (found["version"], found["verdict"]) == (2, "promoted")
    assert f"{NAME}:2 is registered, but MLflow does not show it: registry {server.uri}" in caplog.text
    assert "hardcase audit" in caplog.text
    with pytest.raises(UnshownError, match="the ledger is complete without it"):
        house.mirror.find_differences(house.ledger)
    server.start()
    caplog.clear()
    assert house.audited() == []
    assert f"shows 1 of 2 entries of {NAME}; `hardcase audit {NAME} --rebuild` shows all" in caplog.text
    house.launch("c", evaluated(0.5, rows=120))
    shows_all(house)


def test_connection_lost_halfway_through_loses_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is lost after more and more of what a registration writes, until none is left to lose."""
    house.launch("a", evaluated(0.6, rows=120))
    house.launch("b", evaluated(0.9, rows=120))
    roll_back(house.store, house.keys, NAME, "tester", "b is odd", lambda version: None)
    client, done, left = house.mirror._client, 0, 0
    while True:
        client.delete_registered_model(NAME)
        broken = Mirror(house.server)
        left = done

        def counted(*arguments: object, call: object, **more: object) -> object:
            nonlocal left
            if left == 0:
                raise ConnectionError("gone")
            left -= 1
            return call(*arguments, **more)  # type: ignore[operator]

        for name in dir(broken._client):
            if name.startswith(("create_", "set_", "update_", "delete_")) and "model" in name:
                call = getattr(broken._client, name)
                setattr(broken._client, name, lambda *a, call=call, **m: counted(*a, call=call, **m))
        try:
            broken.show(lambda: house.ledger, "s")
        except UnshownError:
            done += 9
            assert house.audited() == []
            house.mirror.show(lambda: house.ledger, "s")
            shows_all(house)
        else:
            break
    assert done > 20


def test_server_that_never_answers_holds_nobody_for_long(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        house.server = f"http://127.0.0.1:{silent.getsockname()[1]}"
        began = time.monotonic()
        assert house.launch("a", evaluated(rows=120))["version"] == 1
        assert time.monotonic() - began < 30


def test_token_is_sent_as_mlflow_does(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "t0ken")
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as gate:

        def refuse() -> None:
            connection, _ = gate.accept()
            with connection:
                heard.append(connection.recv(65536))
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}")

        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(UnshownError):
            Mirror(f"http://127.0.0.1:{gate.getsockname()[1]}").show(lambda: house.ledger, "s")
        thread.join()
    assert b"Authorization: Bearer t0ken" in heard[0]


def test_version_deleted_by_hand_is_shown_again(house: House) -> None:
    """MLflow never gives a number twice: all are shown anew, what was there is kept under another name."""
    for number in range(3):
        house.launch(f"n{number}", evaluated(0.6 + number / 10, rows=120))
    for gone in ("2", "3"):
        house.mirror._client.delete_model_version(NAME, gone)
        house.launch("n2", evaluated(0.8, rows=120))
        aliases, versions = house.state()
        assert (aliases, set(versions)) == ({"champion": 3}, {1, 2, 3})
    assert house.mirror._look(NAME).names == {NAME, f"{NAME}.1", f"{NAME}.2"}


def test_version_of_another_hand_at_the_end_is_moved_aside(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.launch("a", evaluated(rows=120))
    house.mirror._client.create_model_version(NAME, source="s3://elsewhere/model")
    assert house.audited() == ["version 2 in MLflow is not the ledger's"]
    with caplog.at_level(logging.WARNING):
        assert house.launch("b", evaluated(0.9, rows=120))["version"] == 2
    assert f"its {NAME} is not the store's; renamed to {NAME}.1" in caplog.text
    assert house.state()[0] == {"champion": 2}


def test_rollback_cut_off_the_ledger_is_told(house: House) -> None:
    house.launch("a", evaluated(0.6, rows=120))
    house.launch("b", evaluated(0.9, rows=120))
    roll_back(house.store, house.keys, NAME, "tester", "b is odd", lambda version: None)
    house.mirror.show(lambda: house.ledger, house.store.uri)
    assert house.audited() == []
    (house.root / "store" / "models" / NAME / "ledger" / "000003.dsse.json").unlink()
    (problem,) = house.audited()
    assert "which the ledger lacks: its end was cut off" in problem
