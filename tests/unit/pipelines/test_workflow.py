"""Our compiled pipelines by the rules of Kubeflow Pipelines 2.17.0 and Argo Workflows v4.0.5.

The first half holds the model of those rules (`tests/support/`) to what a real installation did, the second half holds
the committed YAML to the model.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from tests.support.argo import read_pipeline
from tests.support.argo_expression import evaluate
from tests.support.argo_run import POD_DELETED, Result, Run, container_failed, merge_defaults
from tests.support.argo_templates import Json, go_json
from tests.support.kfp_driver import Driver, container_resources
from tests.support.samples import BEFORE, PIPELINES, RECORDINGS, values_before, values_now
from tests.support.workflow import LIMIT, Graph, describe, run_pipeline, seal_digests, seal_links, workflow_size
from tests.support.workflow_rules import (
    ARGUMENT,
    find_long_arguments,
    find_short_windows,
    find_unknown_settings,
    find_wrong_types,
)

RETRAINING, EVALUATION = PIPELINES / "retraining.yaml", PIPELINES / "evaluation.yaml"
KUBEFLOW = PIPELINES.parents[1] / "infra" / "kubernetes" / "components" / "kubeflow"
PROBE = RECORDINGS / "kubeflow" / "probe.yaml"
COMPARED = ("id", "displayName", "type", "phase", "templateName", "boundaryID", "message", "children")
REFUSED = "hardcase: refused: samples.jsonl, row 3: no image"
Fails = Callable[[str, int], Result | None]


def never(_node: str, _attempt: int) -> Result | None:
    return None


def failing(end: str, result: Result, attempts: int = 99) -> Fails:
    """The first attempts of the nodes whose names end so fail."""
    return lambda node, attempt: result if node.endswith(end) and attempt < attempts else None


def recorded(name: str) -> Json:
    recording: Json = json.loads((RECORDINGS / "kubeflow" / f"argo-nodes-{name}.json").read_text(encoding="utf-8"))
    return recording


def shape(node: Json) -> Json:
    values = {key: node.get(key) or None for key in COMPARED}
    return {**values, "children": sorted(values["children"] or [])}


def shipped_defaults() -> Json:
    """`templateDefaults` of the workflow controller's ConfigMap that docs have people apply."""
    settings = yaml.safe_load((KUBEFLOW / "workflow-controller-configmap.yaml").read_text(encoding="utf-8"))
    defaults: Json = yaml.safe_load(settings["data"]["workflowDefaults"])["spec"]["templateDefaults"]
    return defaults


def attempts(run: Run) -> dict[str, int]:
    """How many pods each step and each driver had, by name, where it was more than one."""
    names = [re.sub(r"\(\d+\)", "", pod["name"]).removesuffix(".executor") for pod in run.pods()]
    return {name.rpartition(".")[2]: count for name, count in Counter(names).items() if count > 1}


# The model against what was recorded.


@pytest.mark.parametrize(
    ("name", "path", "cached", "fails"),
    [
        ("smoke-succeeded", BEFORE, False, never),
        ("smoke-cached", BEFORE, True, never),
        ("smoke-pod-deleted", BEFORE, False, failing(".sft(0).executor", POD_DELETED, 1)),
        ("smoke-refused-input", BEFORE, False, failing(".validate(0).executor", container_failed())),
        ("probe-succeeded", PROBE, False, never),
        # Retried once more by the API: what had ended well stays, what failed is done anew, under stock settings once.
        ("probe-failed-retried", PROBE, False, failing(".work(0).executor", container_failed())),
    ],
)
def test_a_run_has_the_nodes_that_a_real_one_had(name: str, path: Path, cached: bool, fails: Fails) -> None:
    real = recorded(name)
    values = values_before() if path == BEFORE else {"Output": "done"}
    form = {"mode": "ok"} if path == PROBE else {}
    workflow = real["workflow"]
    _, _, run = run_pipeline(path, values, seal_digests, cached=cached, name=workflow, form=form, fails=fails)
    assert {node["name"]: shape(node) for node in real["nodes"]} == {n: shape(node) for n, node in run.nodes.items()}
    assert real["phase"] == run.phase
    assert len([pod for pod in run.pods() if pod.get("message") != "pod deleted"]) == len(real["pods"])


def test_without_an_expression_attempts_multiply_with_every_layer_as_was_seen() -> None:
    real = recorded("retrypolicy-always")
    defaults = {"retryStrategy": {"limit": "3", "retryPolicy": "Always"}}
    broken = failing(").executor", container_failed())
    run = run_probe(
        real["workflow"], defaults, lambda node, attempt: None if "onExit" in node else broken(node, attempt)
    )
    ended = [node for node in real["nodes"] if node["phase"] in ("Succeeded", "Failed")]
    assert len(ended) == 15
    assert [shape(node) for node in ended] == [shape(run.nodes[node["name"]]) for node in ended]
    # The recording ends in the second round; four attempts on each of five levels are what was to come.
    assert sum(".executor(" in node["name"] and "onExit" not in node["name"] for node in run.pods()) == 4**5


def run_probe(name: str, defaults: Json, fails: Fails) -> Run:
    options: Json = {"name": name, "form": {"mode": "fail"}, "defaults": defaults, "fails": fails}
    return run_pipeline(PROBE, {"Output": "done"}, seal_digests, **options)[2]


def test_an_expression_that_asks_for_a_message_keeps_layers_from_being_retried() -> None:
    strategy = {"limit": "3", "retryPolicy": "Always", "expression": 'lastRetry.message != ""'}
    run = run_probe("probe", {"retryStrategy": strategy}, failing(".work(0).executor", container_failed()))
    assert attempts(run) == {"work": 4}


def test_the_graph_of_before_is_the_one_in_the_picture() -> None:
    graph = Graph(layers=2, steps=11, artifacts=27, edges=44, nodes=122, pods=35, cached_pods=23, cached_seconds=220)
    assert describe(BEFORE, values_before()) == graph  # 222 seconds were recorded


@pytest.mark.parametrize(("name", "cached"), [("smoke-succeeded", False), ("smoke-cached", True)])
def test_a_workflow_is_as_large_as_the_recorded_one(name: str, cached: bool) -> None:
    real, size = recorded(name), workflow_size(BEFORE, values_before(), seal_links, cached=cached)
    assert size.nodes == pytest.approx(real["nodes_bytes"], rel=0.05)
    assert size.stored == pytest.approx(real["object_bytes"], rel=0.05)
    assert (size.plain > LIMIT) == real["compressed"]
    assert size.spec == pytest.approx(188_000, rel=0.05)


@pytest.mark.parametrize(("shards", "kibibytes"), [(1, 333), (8, 558), (16, 818)])
def test_more_shards_make_it_grow_as_the_recorded_nodes_do(
    shards: int, kibibytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    collect = Driver._collect
    with monkeypatch.context() as patched:
        # The recorded figures repeat the nodes of one shard, so the lists that collect shards stay short.
        patched.setattr(Driver, "_collect", lambda self, *key: collect(self, *key)[:1])
        alike = workflow_size(BEFORE, values_before(shards), seal_links).compressed
    assert alike == pytest.approx(kibibytes * 1000, rel=0.05)
    assert workflow_size(BEFORE, values_before(shards), seal_links).compressed >= alike


def test_what_fills_the_nodes_is_what_filled_the_recorded_ones() -> None:
    _, driver, run = run_pipeline(BEFORE, values_before(), seal_links)
    parameters = [
        p for n in run.nodes.values() for side in ("inputs", "outputs") for p in n.get(side, {}).get("parameters", [])
    ]
    patches = [parameter for parameter in parameters if parameter["name"] == "pod-spec-patch"]
    assert sum(len(go_json(patch)) for patch in patches) == pytest.approx(1_550_000, rel=0.05)
    assert len([patch for patch in patches if patch["value"] == patches[0]["value"]]) == 6, "six copies a step"
    links = [
        artifact["artifacts"][0]["metadata"]["link"]
        for artifact in json.loads(driver.inputs["register"])["inputs"]["artifacts"].values()
    ]
    assert sum(map(len, links)) == pytest.approx(25_800, rel=0.1)


def test_a_number_gives_no_gpu_and_text_does_as_was_seen() -> None:
    spec, _ = read_pipeline(RECORDINGS / "kubeflow" / "gpus.yaml")
    executors = spec["deploymentSpec"]["executors"]
    parameters = {"pipelinechannel--how-number": 2, "pipelinechannel--how-text": "2"}
    assert container_resources(executors["exec-gpu"]["container"], parameters) == {}
    assert container_resources(executors["exec-gpu-2"]["container"], parameters) == {"limits": {"nvidia.com/gpu": "2"}}
    (finding,) = find_wrong_types(RECORDINGS / "kubeflow" / "gpus.yaml")
    assert finding == "gpu: resourceCount is read as text, pipelinechannel--how-number is NUMBER_INTEGER"


def test_the_rules_find_what_was_wrong_before() -> None:
    assert {sentence.partition(":")[0] for sentence in find_wrong_types(BEFORE)} == {
        *("sft", "rollout", "grpo", "answer", "answer-2")
    }
    assert "sft: a window of 900 s, 4 attempts of 86400 s take 346020 s" in find_short_windows(BEFORE)
    _, driver, _ = run_pipeline(BEFORE, values_before(32), seal_links)
    assert [sentence.partition(":")[0] for sentence in find_long_arguments(driver.inputs)] == ["register"]
    assert workflow_size(BEFORE, values_before(32), seal_links).stored > LIMIT


@pytest.mark.parametrize(
    ("expression", "message", "holds"),
    [
        ('lastRetry.message != ""', "", False),
        ('lastRetry.message != ""', "pod deleted", True),
        ("lastRetry.message contains 'refused'", "main: Error (exit code 1): refused", True),
        ('!(lastRetry.message contains "refused")', "main: Error (exit code 1): refused", False),
        ('lastRetry.message == "a" || lastRetry.message == "b" && lastRetry.status == "Error"', "a", True),
        ('(lastRetry.message == "a" || lastRetry.message == "b") && lastRetry.status == "Error"', "a", False),
        ("!(lastRetry.status == 'Error') && !(lastRetry.message == 'a')", "b", True),
    ],
)
def test_expressions_mean_what_expr_lang_says(expression: str, message: str, holds: bool) -> None:
    assert evaluate(expression, {"lastRetry": {"message": message, "status": "Failed"}}) is holds


@pytest.mark.parametrize(
    "expression", ["lastRetry.mesage != ''", "lastRetry.message", "(lastRetry.message == ''", "1 < 2"]
)
def test_an_expression_that_argo_would_refuse_is_refused(expression: str) -> None:
    with pytest.raises(ValueError, match=r"\S"):
        evaluate(expression, {"lastRetry": {"message": "", "status": "Failed"}})


def test_a_template_s_own_values_win_over_the_defaults_each_for_itself() -> None:
    own = {"name": "impl", "retryStrategy": {"limit": "5", "backoff": {"duration": "60"}}}
    merged = merge_defaults(own, {"retryStrategy": {"limit": "3", "retryPolicy": "Always"}})
    strategy = {"limit": "5", "retryPolicy": "Always", "backoff": {"duration": "60"}}
    assert merged == {"name": "impl", "retryStrategy": strategy}


# The committed pipelines by the model.


def test_the_graph_is_one_that_can_be_read() -> None:
    graph = describe(RETRAINING, values_now())
    assert graph.layers <= 1
    assert graph.artifacts <= 14
    assert graph.edges <= 20
    assert graph.pods <= 27
    assert graph.cached_pods <= 17
    before = describe(BEFORE, values_before())
    assert graph.nodes < before.nodes and graph.cached_seconds < before.cached_seconds


def test_a_run_from_the_cache_takes_two_minutes_at_most_with_the_settings_that_we_ship() -> None:
    real = [node for node in recorded("smoke-cached")["nodes"] if node["type"] == "Pod"]
    spans = [datetime.fromisoformat(n["finishedAt"]) - datetime.fromisoformat(n["startedAt"]) for n in real]
    seconds = sum(span.total_seconds() for span in spans) / len(spans)
    controller = yaml.safe_load((KUBEFLOW / "workflow-controller.yaml").read_text(encoding="utf-8"))
    (container,) = controller["spec"]["template"]["spec"]["containers"]
    (requeue,) = [v["value"] for v in container["env"] if v["name"] == "DEFAULT_REQUEUE_TIME"]
    in_a_row = describe(RETRAINING, values_now()).cached_seconds / Result().seconds
    assert in_a_row * (seconds + int(requeue.removesuffix("s"))) <= 120


@pytest.mark.parametrize("path", [RETRAINING, EVALUATION], ids=["retraining", "evaluation"])
def test_what_reaches_kubernetes_has_the_type_that_it_is_read_by(path: Path) -> None:
    assert find_wrong_types(path) == []
    assert find_unknown_settings(path) == []


@pytest.mark.parametrize(("profile", "gpus"), [("internvl3-2b", "8"), ("internvl3-2b-lora", "8"), ("tiny", None)])
def test_pods_get_the_gpus_of_the_profile(profile: str, gpus: str | None) -> None:
    _, _, run = run_pipeline(RETRAINING, values_now(profile), seal_digests)
    driven = next(node for name, node in run.nodes.items() if name.endswith(".sft-driver"))
    patch = json.loads(next(p["value"] for p in driven["outputs"]["parameters"] if p["name"] == "pod-spec-patch"))
    assert patch["containers"][0]["resources"]["limits"].get("nvidia.com/gpu") == gpus
    assert set(patch["nodeSelector"]) == ({"hardcase.io/gpu-memory"} if gpus else {"hardcase.io/pool"})


@pytest.mark.parametrize("path", [RETRAINING, EVALUATION], ids=["retraining", "evaluation"])
@pytest.mark.parametrize("shards", [1, 8, 32])
def test_a_workflow_stays_small_however_many_shards_there_are(path: Path, shards: int) -> None:
    size = workflow_size(path, values_now(shards=shards), seal_digests)
    # Below the limit as it is, by more than the model is off: nodes stay uncompressed, and the API server's run details
    # go on (kubeflow/pipelines 2.17.0 reads status.nodes only).
    assert 1.1 * size.plain < LIMIT
    assert 4 * (size.spec + size.compressed) < LIMIT
    assert size.nodes == pytest.approx(workflow_size(path, values_now(), seal_digests).nodes, rel=0.01)


def test_executor_inputs_fit_an_argument_many_times() -> None:
    _, driver, _ = run_pipeline(RETRAINING, values_now(shards=32), seal_digests)
    assert len(driver.inputs) == 12
    assert find_long_arguments(driver.inputs) == []
    assert 8 * max(map(len, driver.inputs.values())) < ARGUMENT


@pytest.mark.parametrize("path", [RETRAINING, EVALUATION], ids=["retraining", "evaluation"])
def test_every_attempt_of_a_step_has_its_time(path: Path) -> None:
    assert find_short_windows(path) == []


@pytest.mark.parametrize(
    ("fails", "expected", "phase"),
    [
        (failing(".sft(0).executor", container_failed()), {"sft": 4}, "Failed"),
        (failing(".sft(0).executor", container_failed("CUDA out of memory"), 2), {"sft": 3}, "Succeeded"),
        (failing(".sft(0).executor", POD_DELETED, 1), {"sft": 2}, "Succeeded"),
        (failing(".validate(0).executor", container_failed(REFUSED)), {}, "Failed"),
        (failing(".grpo-driver", container_failed()), {"grpo-driver": 4}, "Failed"),
        (failing(".root-driver", container_failed()), {"root-driver": 4}, "Failed"),
        (failing(".conclude(0).executor", container_failed(), 1), {"conclude": 2}, "Succeeded"),
    ],
    ids=["fails", "recovers", "deleted", "refused", "driver", "first pod", "conclude"],
)
def test_attempts_are_those_that_docs_promise_and_no_layer_multiplies_them(
    fails: Fails, expected: dict[str, int], phase: str
) -> None:
    _, _, run = run_pipeline(RETRAINING, values_now("smoke"), seal_digests, defaults=shipped_defaults(), fails=fails)
    assert attempts(run) == expected
    assert run.phase == phase
    names = {node["name"].rpartition(".onExit")[2] for node in run.pods() if ".onExit" in node["name"]}
    assert ("(0).conclude(0).executor(0)" in names) == ("root-driver" not in expected)


def test_a_refusal_is_on_the_node_for_everyone_to_read() -> None:
    fails = failing(".validate(0).executor", container_failed(REFUSED))
    _, _, run = run_pipeline(RETRAINING, values_now("smoke"), seal_digests, defaults=shipped_defaults(), fails=fails)
    (node,) = [node for name, node in run.nodes.items() if name.endswith(".validate(0).executor(0)")]
    assert node["message"] == f"main: Error (exit code 1): {REFUSED}"


def test_a_run_in_which_every_step_with_a_model_is_tried_again_still_fits() -> None:
    def fails(node: str, attempt: int) -> Result | None:
        long = node.endswith(tuple(f".{step}(0).executor" for step in ("sft", "rollout", "grpo", "answer")))
        return container_failed("x" * 4096) if long and attempt < 3 else None

    defaults = shipped_defaults()
    size = workflow_size(RETRAINING, values_now(shards=32), seal_digests, defaults=defaults, fails=fails)
    assert 4 * (size.spec + size.compressed) < LIMIT
