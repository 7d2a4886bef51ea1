"""Answers that a real Kubeflow Pipelines 2.17.0 gave (tests/recordings/kubeflow), and details in their form."""

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import kfp_server_api

RECORDINGS = Path(__file__).parents[1] / "recordings" / "kubeflow"
NEVER = "1970-01-01T00:00:00Z"
UNENDED = "0001-01-01T00:00:00Z"  # Argo's node has no time
NOW = "2026-01-01T00:00:00Z"
AT_WORK = ("PENDING", "RUNNING")


@cache
def _text(name: str) -> str:
    return (RECORDINGS / f"{name}.json").read_text(encoding="utf-8")


def recorded(name: str) -> dict[str, Any]:
    """Return a recorded answer: `status`, `headers`, `body`."""
    answer: dict[str, Any] = json.loads(_text(name))["response"]
    return answer


def refusal(recording: str, /, **said: str) -> tuple[int, Any]:
    """Return status and body of a recorded refusal, with other words in the place of those that were recorded.

    Args:
        recording: its name.
        said: what to put for a recorded word, which is named in `WORDS`.
    """
    answer = recorded(recording)
    body = json.dumps(answer["body"])
    for key, value in said.items():
        assert WORDS[key, recording] in body
        body = body.replace(WORDS[key, recording], json.dumps(value)[1:-1])
    return answer["status"], json.loads(body)


MISSING = "00000000-0000-0000-0000-000000000000"
WORDS = {
    ("id", "run-missing"): MISSING,
    ("id", "pipeline-missing"): MISSING,
    ("id", "run-create-version-missing"): MISSING,
    ("id", "recurring-missing"): "9fece8af-6326-46bf-a627-3f87281c3caf",
    ("id", "run-terminate-ended"): "04752029-28f1-469f-bbb5-0396675f528e",
    ("name", "experiment-create-again"): "rec exp",
    ("name", "pipeline-create-again"): "empty",
    ("name", "run-create-parameter-unknown"): "nosuch",
}


def task_details(states: Mapping[str, str | None], workflow: str = "hardcase-x7k2p") -> list[dict[str, Any]]:
    """Return the details of a run whose steps are so, with all the nodes that a real run has around its steps.

    The names are those of run-failed-refused-input.json: the workflow itself, groups, drivers, attempts, and of each
    step that ran an entry of ML Metadata without a name.

    Args:
        states: of the steps, in order; `CACHED` for one from the cache, None for one that was never reached.
        workflow: its name.
    """
    ends = set(states.values())
    whole = "RUNNING" if ends & set(AT_WORK) else "FAILED" if "FAILED" in ends else "SUCCEEDED"
    return list(_nodes(states, workflow, whole))


def _nodes(states: Mapping[str, str | None], workflow: str, whole: str) -> Iterator[dict[str, Any]]:
    for group in (workflow, "root", "exit-handler-1"):
        yield from (_node(name, whole) for name in (group, f"{group}(0)"))
    for name in ("root-driver", "exit-handler-1-driver"):
        yield from (_node(each, "SUCCEEDED") for each in (name, f"{name}(0)"))
    for step, state in states.items():
        if state in (None, "SKIPPED"):
            yield from (_node(name, state) for name in (step, f"{step}-driver"))
            continue
        yield from (_node(name, "SUCCEEDED") for name in (f"{step}-driver", f"{step}-driver(0)"))
        if state == "CACHED":  # run-succeeded-cached.json
            yield from (_node(name, "SUCCEEDED") for name in (step, f"{step}(0)"))
            yield _node("executor", "SKIPPED")
            continue
        # Only the pod itself is pending: run-fail-state-01-running.json.
        shown = "RUNNING" if state == "PENDING" else state
        yield from (_node(name, shown) for name in (step, f"{step}(0)", "executor"))
        yield _node("executor(0)", state)
        if state == "SUCCEEDED":
            yield {"run_id": "", "execution_id": "7", "create_time": NOW, "start_time": NOW, "end_time": NOW}


def _node(name: str, state: str | None) -> dict[str, Any]:
    known = {"state": state} if state else {}
    end = UNENDED if state in AT_WORK else NOW
    history = [{"update_time": NOW, **known}]
    moments = {"create_time": NOW, "start_time": NOW, "end_time": end}
    return {"task_id": name, "display_name": name, **moments, **known, "state_history": history}


def fields(content: Any) -> Any:
    """The names in it, without the values."""
    if isinstance(content, dict):
        return {name: fields(each) for name, each in content.items() if each is not None}
    return [fields(each) for each in content] if isinstance(content, list) else None


def unlike(content: Any, model: str) -> str:
    """How it differs from the model of upstream's client; empty if it does not."""
    client = kfp_server_api.ApiClient(kfp_server_api.Configuration())
    try:
        read = client.deserialize(SimpleNamespace(data=json.dumps(content)), model)
    except (TypeError, ValueError, kfp_server_api.ApiException) as error:
        return f"{model}: {error}"
    again = client.sanitize_for_serialization(read)
    return "" if fields(again) == fields(content) else f"{model} knows only {fields(again)}, not {fields(content)}"
