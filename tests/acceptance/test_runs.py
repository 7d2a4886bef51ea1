"""Runs on the installation: to the end, refused, cancelled, with a lost pod, scheduled, from the cache, in shards."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from hardcase.cli.watching import Account
from hardcase.compiled import list_steps
from hardcase.kubeflow.runs import ENDED
from hardcase.provenance.attestations import Attestation, follow
from hardcase.provenance.signing import Keyring, read_public_keys, read_stored_keys
from hardcase.registry.runs import read_records
from tests.acceptance.installation import FEW, Installation, Launched

Seen = Callable[[str, object], None]
STEPS = list_steps("retraining")
ALL = (*STEPS, "conclude")
NEVER_CACHED = {"configure", "register", "conclude"}
ATTESTED = set(STEPS) - {"configure", "register"}  # of them a version is made


def test_launch_starts_a_run_that_succeeds(installation: Installation, smoke: Launched, record_property: Seen) -> None:
    assert smoke.exit_code == 0, f"exit code {smoke.exit_code}: {smoke.message or smoke.stderr.strip()[-600:]}"
    assert smoke.facts["started"], "an earlier run has this key"
    record_property("seen", f"{smoke.facts['link']}, {installation.seconds(smoke.run_id):.0f} s")


def test_each_step_ran(succeeded: Launched, record_property: Seen) -> None:
    states = succeeded.facts["steps"]
    record_property("seen", ", ".join(f"{step} {state}" for step, state in states.items()))
    assert states == dict.fromkeys(ALL, "succeeded")


def links_of(installation: Installation, run_id: str) -> dict[str, Attestation]:
    """Return the attestations that a run rests on, by step, each verified."""
    store = installation.opened
    keys = Keyring(read_public_keys([Path(installation.key)]) if installation.key else read_stored_keys(store))
    found = follow(store, keys, sorted({record.attestation for record in read_records(store, run_id).values()} - {""}))
    return {link.step: link for link in found.values()}


def test_each_step_left_one_signed_artifact(
    installation: Installation, succeeded: Launched, record_property: Seen
) -> None:
    links = links_of(installation, succeeded.run_id)
    record_property("seen", f"{len(links)} attestations, {sum(len(link.products) for link in links.values())} products")
    assert set(links) >= set(ATTESTED)
    assert {links[step].circumstances["run"] for step in ATTESTED} == {succeeded.run_id}, "it is of another run"


def test_report_can_be_read_from_here(installation: Installation, succeeded: Launched, record_property: Seen) -> None:
    store = installation.needs("STORE", installation.store)
    done = installation.command("report", succeeded.run_id, "--store", store, "--json")
    assert done.returncode == 0, done.stderr.strip()
    page = (installation.folder / json.loads(done.stdout)["report"]).read_text(encoding="utf-8")
    assert "<html" in page and succeeded.run_id in page
    record_property("seen", f"{len(page) // 1000} kB")


def record_of(installation: Installation, run_id: str) -> dict[str, Any]:
    """Return the record of a run in the store, as `hardcase runs` shows it."""
    done = installation.command("runs", "--store", installation.needs("STORE", installation.store), "--json")
    assert done.returncode == 0, done.stderr.strip()
    found: dict[str, dict[str, Any]] = {run["run_id"]: run for run in json.loads(done.stdout)}
    assert run_id in found, f"run {run_id} is not recorded in {installation.store}: did conclude run?"
    return found[run_id]


def test_run_is_recorded(installation: Installation, succeeded: Launched, record_property: Seen) -> None:
    record = record_of(installation, succeeded.run_id)
    record_property("seen", f"{record['status']}, {record['model']['name']}:{record['model']['version']}")
    assert (record["status"], record["error"]) == ("succeeded", None)
    assert record["model"]["name"] == installation.prefix
    assert {step: each["status"] for step, each in record["steps"].items()} == dict.fromkeys(ALL[:-1], "succeeded")


def test_audit_finds_the_chain_closed(installation: Installation, succeeded: Launched, record_property: Seen) -> None:
    words = ["audit", installation.prefix, "--store", installation.needs("STORE", installation.store)]
    done = installation.command(*words, *(["--key", installation.key] if installation.key else []))
    last = (done.stdout.strip().splitlines() or [""])[-1]
    assert done.returncode == 0, done.stderr.strip()
    record_property("seen", last)


def count_records(installation: Installation, run_id: str, step: str, state: str) -> int:
    """Return how many records of a step are in that state: `running` when an attempt begins, another when it ends."""
    names = installation.opened.list_names(f"notes/{run_id}")
    held = [json.loads(installation.opened.get_named(name) or b"{}") for name in names if f"/{step}." in name]
    return sum(record["state"] == state for record in held)


def test_refused_input_names_step_and_reason_and_is_not_tried_again(
    installation: Installation, succeeded: Launched, record_property: Seen
) -> None:
    refused = installation.launch("refused", parameters=installation.settings(**FEW))
    record_property("seen", refused.message)
    assert refused.exit_code == (2 if installation.store else 1)
    assert "at validate" in refused.message
    if installation.store or installation.mlflow:
        assert "min_train_rows" in refused.message, "the step's own words are missing"
    if installation.store:
        assert count_records(installation, refused.run_id, "validate", "refused") == 1, "it was tried again"
        record = record_of(installation, refused.run_id)
        assert record["error"]["step"] == "validate"
        statuses = {step: each["status"] for step, each in record["steps"].items()}
        assert statuses["validate"] == "failed" and statuses["sft"] == "not reached"


def state_of(installation: Installation, run_id: str, step: str) -> str:
    """Return the state of a step, as `hardcase launch` shows it, while its run goes on."""
    run = installation.run(run_id)
    steps = Account(installation.client, installation.opened if installation.store else None).look(run)
    if run["state"] in ENDED:
        pytest.fail(f"run {run_id} ended {run['state']}: {', '.join(f'{each.name} {each.state}' for each in steps)}")
    return next((each.state for each in steps if each.name == step), "")


def start_until_sft(installation: Installation, name: str, seed: int) -> str:
    """Launch a run that nothing of the cache can answer from SFT on; return its id when SFT is at work."""
    longer = installation.settings(sft__steps=60)
    run_id = installation.launch(name, "--no-follow", parameters={**longer, "seed": seed}).run_id
    installation.wait("sft at work", lambda: state_of(installation, run_id, "sft") == "running" or None)
    return run_id


def test_terminated_run_is_called_cancelled(
    installation: Installation, succeeded: Launched, record_property: Seen
) -> None:
    run_id = start_until_sft(installation, "cancelled", 1)
    installation.terminate(run_id)
    ended = installation.launch("cancelled", "--attach", run_id)
    record_property("seen", ended.message)
    assert ended.exit_code == 1 and "cancelled" in ended.message
    if installation.store:
        record = record_of(installation, run_id)
        assert record["status"] == "cancelled", "conclude did not see that the run was terminated"
        assert record["steps"]["rollout"]["status"] == "not reached"


def pod_of(installation: Installation, run_id: str, step: str) -> str | None:
    """Return the name of the pod in which a step works."""
    place = f"/api/v1/namespaces/{installation.pods_namespace}/pods"
    listed = installation.kubectl(f"{place}?labelSelector={quote(f'pipeline/runid={run_id}')}")["items"]
    for pod in listed:
        node = pod["metadata"].get("annotations", {}).get("workflows.argoproj.io/node-name", "")
        if f".{step}(" in node and ".executor(" in node and pod["status"]["phase"] == "Running":
            return f"{place}/{pod['metadata']['name']}"
    return None


def test_deleted_pod_is_replaced_and_the_step_succeeds(
    installation: Installation, succeeded: Launched, record_property: Seen
) -> None:
    installation.needs("CONTEXT", installation.context)
    run_id = start_until_sft(installation, "lost-pod", 2)
    pod = installation.wait("the pod of sft", lambda: pod_of(installation, run_id, "sft"))
    installation.kubectl(pod, "delete")

    installation.wait("the end of sft", lambda: state_of(installation, run_id, "sft") == "succeeded" or None)
    installation.terminate(run_id)  # what follows is no other than in the first run
    record_property("seen", f"{pod.rpartition('/')[2]} was deleted; sft succeeded")
    if installation.store:
        assert count_records(installation, run_id, "sft", "running") >= 2, "the pod was deleted too late"


def test_schedule_is_set_once_and_removed(
    installation: Installation, succeeded: Launched, record_property: Seen
) -> None:
    first, second = (installation.launch("schedule", "--schedule", "0 3 1 1 *") for _ in range(2))
    assert (first.exit_code, second.exit_code) == (0, 0), first.stderr + second.stderr
    made = first.facts["recurring_run_id"]
    record_property("seen", f"{made}, {first.facts['schedule']}")
    assert first.facts["changed"] and not second.facts["changed"], "the same schedule was made anew"
    assert second.facts["recurring_run_id"] == made
    installation.client.ask("DELETE", f"recurringruns/{made}")
    assert made not in [each["recurring_run_id"] for each in installation.ours("recurringruns")]


def test_second_launch_comes_from_the_cache(
    installation: Installation, succeeded: Launched, record_property: Seen, request: pytest.FixtureRequest
) -> None:
    again = installation.launch("again")
    assert again.exit_code == 0, again.message or again.stderr.strip()[-600:]
    seconds, states = installation.seconds(again.run_id), again.facts["steps"]
    record_property("seen", f"{seconds:.0f} s")
    if installation.store:  # without the steps' records, Kubeflow calls both succeeded
        executed = {step for step, state in states.items() if state != "cached"}
        assert executed == NEVER_CACHED, f"executed again: {', '.join(sorted(executed - NEVER_CACHED))}"
        assert record_of(installation, again.run_id)["model"] == record_of(installation, succeeded.run_id)["model"]
    if installation.context and request.getfixturevalue("requeue") == "2s":
        assert seconds <= installation.limit_cached, f"{seconds:.0f} s, more than {installation.limit_cached:.0f}"


def test_two_shards_are_processes_of_one_step(
    installation: Installation, succeeded: Launched, record_property: Seen
) -> None:
    halved = installation.settings(cluster__rollout_shards=2, cluster__answer_shards=2)
    done = installation.launch("shards", parameters=halved)
    assert done.exit_code in (0, 3), done.message or done.stderr.strip()[-600:]  # 3: no better than the first
    record_property("seen", ", ".join(f"{step} {state}" for step, state in done.facts["steps"].items()))
    assert done.facts["steps"]["rollout"] == done.facts["steps"]["answer"] == "succeeded"
    if installation.store:
        rollout = links_of(installation, done.run_id)["rollout"]
        assert rollout.circumstances["run"] == done.run_id, "it was executed"
