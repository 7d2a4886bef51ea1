"""Run an Argo Workflow as the workflow controller of Argo Workflows v4.0.5 does, pod results being given.

Follows argoproj/argo-workflows v4.0.5, workflow/controller/operator.go (executeTemplate, processNodeRetries,
mergedTemplateDefaultsInto, inferFailedReason), dag.go (executeDAG, executeDAGTask, assessDAGPhase), exit_handler.go and
pkg/apis/workflow/v1alpha1/workflow_types.go (NodeStatus). Time is counted in seconds; tasks that do not depend on each
other run at once. Left out: deadlines of templates and workflow, limits of parallelism, locks, memoization.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.argo_expression import evaluate
from tests.support.argo_templates import Json

REFERENCE = re.compile(r"\{\{([^{}]+)\}\}")
DONE, FAILED = ("Succeeded", "Failed", "Error", "Skipped", "Omitted"), ("Failed", "Error")
POLICIES = {"Always": FAILED, "OnFailure": ("Failed",), "OnError": ("Error",)}
START = 1_795_831_143  # any time: 2026-11-28


@dataclass(frozen=True)
class Result:
    """How a pod ended: its node's phase and message, its output parameters, its duration in seconds.

    A pod takes ten seconds or more: the controller looks at a workflow as often as that (workflow/controller/
    rate_limiters.go:15, DEFAULT_REQUEUE_TIME).
    """

    phase: str = "Succeeded"
    message: str = ""
    outputs: Mapping[str, str] = field(default_factory=dict)
    seconds: int = 10


def container_failed(termination: str = "", seconds: int = 10) -> Result:
    """Return what a container that exits with 1 leaves on its node (operator.go:1766).

    KFP's launcher exits with 1 whatever its step did; `termination` is what was written to /dev/termination-log, which
    argoexec leaves alone when the process that it started fails (cmd/argoexec/main.go:23).
    """
    message = "main: Error (exit code 1)"
    return Result("Failed", f"{message}: {termination}" if termination else message, seconds=seconds)


POD_DELETED = Result("Error", "pod deleted")  # operator.go:1289


def merge_defaults(template: Json, defaults: Json) -> Json:
    """Merge `templateDefaults` into a template, whose own values win (operator.go:4448)."""
    merged = dict(defaults)
    for name, value in template.items():
        nested = isinstance(value, dict) and isinstance(defaults.get(name), dict)
        merged[name] = merge_defaults(value, defaults[name]) if nested else value
    return merged


class Run:
    """One run of a workflow; `nodes` holds `status.nodes` by name.

    Args:
        workflow: as compiled.
        pod: how a pod ends, by its node's name (without the number of the attempt), its inputs and the attempt.
        defaults: `workflowDefaults.spec.templateDefaults` of the controller's ConfigMap.
        name: the workflow's.
    """

    def __init__(
        self,
        workflow: Json,
        pod: Callable[[str, Mapping[str, str], int], Result],
        defaults: Json,
        name: str = "hardcase-retraining-2xbm4",
    ) -> None:
        spec = workflow["spec"]
        self.templates = {t["name"]: merge_defaults(t, defaults) for t in spec["templates"]}
        self.globals = {f"workflow.parameters.{p['name']}": p["value"] for p in spec["arguments"]["parameters"]}
        self.name, self.pod, self.now = name, pod, 0.0
        self.nodes: dict[str, Json] = {}
        self.names: dict[str, str] = {}  # by id
        self._execute(name, spec["entrypoint"], {}, "")

    @property
    def phase(self) -> str:
        """How the workflow ended."""
        return str(self.nodes[self.name]["phase"])

    def node_id(self, name: str) -> str:
        """Return the id of a node: FNV-1a of its name (workflow_types.go:3751)."""
        if name == self.name:
            return name
        value = 0x811C9DC5
        for byte in name.encode():
            value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
        return f"{self.name}-{value}"

    def pods(self) -> list[Json]:
        """Return the nodes that are pods."""
        return [node for node in self.nodes.values() if node["type"] == "Pod"]

    def _execute(self, name: str, template: str, arguments: Mapping[str, str], boundary: str, **flag: bool) -> Json:
        body = self.templates[template]
        inputs = {p["name"]: arguments.get(p["name"], p.get("default")) for p in body["inputs"].get("parameters", [])}
        if "retryStrategy" not in body:
            return self._attempt(name, name, body, inputs, boundary, 0, flag)
        # The strategy's own references are resolved with the template's inputs, like the rest of it.
        strategy = json.loads(_replace(json.dumps(body["retryStrategy"]), _scope(inputs), escaped=True))
        # The attempts share the flag of their Retry node (operator.go:2323).
        retried = {**flag, "retried": True}
        node = self._initialize(name, "Retry", template, boundary, flag=retried if flag else {}, inputs=inputs)
        attempts: list[Json] = []
        while not attempts or self._try_again(node, attempts, strategy):
            attempt = f"{name}({len(attempts)})"
            node["children"].append(self.node_id(attempt))
            attempts.append(self._attempt(attempt, name, body, inputs, boundary, len(attempts), retried))
        if attempts[-1].get("outputs"):
            node["outputs"] = attempts[-1]["outputs"]
        return node

    def _try_again(self, node: Json, attempts: list[Json], strategy: Json) -> bool:
        """Decide on a failed attempt as processNodeRetries does, in its order (operator.go:978)."""
        last, message = attempts[-1], None
        if last["phase"] not in FAILED:
            self._end(node, "Succeeded")
            return False
        if backoff := strategy.get("backoff"):
            longest = _seconds(backoff.get("maxDuration", ""))
            deadline = attempts[0]["started"] + longest if backoff.get("maxDuration") else float("inf")
            if self.now > deadline:
                message = "Max duration limit exceeded"
            wait = _seconds(backoff["duration"]) * max(int(backoff.get("factor", 0)), 1) ** (len(attempts) - 1)
            if message is None and self.now + wait > deadline:
                message = "Backoff would exceed max duration limit"
            if message is None and len(attempts) <= int(strategy["limit"]):
                self.now += wait
        policy = strategy.get("retryPolicy") or ("Always" if strategy.get("expression") else "OnFailure")
        if message is None and last["phase"] not in POLICIES[policy]:
            message = last.get("message", "")
        if message is None and "limit" in strategy and len(attempts) > int(strategy["limit"]):
            message = "No more retries left"
        if message is None and (expression := strategy.get("expression")):
            scope = {"status": last["phase"], "message": last.get("message", ""), "exitCode": "1"}
            if not evaluate(expression, {"lastRetry": scope}):
                message = "retryStrategy.expression evaluated to false"
        if message is None:
            return True
        self._end(node, last["phase"], message)
        return False

    def _attempt(
        self, name: str, plain: str, template: Json, inputs: Mapping[str, str], boundary: str, number: int, flag: Json
    ) -> Json:
        kind = "DAG" if "dag" in template else "Pod"
        node = self._initialize(name, kind, template["name"], boundary, flag=flag, inputs=inputs)
        if kind == "DAG":
            self._run_dag(node, template["dag"]["tasks"], inputs)
            return node
        result = self.pod(plain, inputs, number)
        self.now += result.seconds
        wanted = template["outputs"].get("parameters", [])
        if result.phase == "Succeeded" and wanted:
            values = {p["name"]: result.outputs.get(p["name"], p["valueFrom"].get("default", "")) for p in wanted}
            node["outputs"] = {"parameters": [{**p, "value": values[p["name"]]} for p in wanted]}
        if result.phase != "Error":
            node.setdefault("outputs", {})["exitCode"] = "0" if result.phase == "Succeeded" else "1"
        node["hostNodeName"], node["progress"] = "ip-10-0-12-34.eu-central-1.compute.internal", "1/1"
        node["resourcesDuration"] = {"cpu": 1, "memory": result.seconds}
        self._end(node, result.phase, result.message)
        return node

    def _run_dag(self, dag: Json, tasks: list[Json], inputs: Mapping[str, str]) -> None:
        outputs, ended, finished, begun = _scope(inputs), dict[str, str](), dict[str, float](), self.now
        for task in _ordered(tasks):
            name, before = f"{dag['name']}.{task['name']}", _dependencies(task)
            parents = [p for n in before for p in self._outbound(f"{dag['name']}.{n}")] or [dag["name"]]
            self.now = max((finished[n] for n in before), default=begun)
            if broken := [ended[n] for n in before if ended[n] != "Succeeded"]:
                self._skip(name, task, dag, parents, "Omitted", "omitted: depends condition not met")
                ended[task["name"]] = broken[0]  # an omitted task inherits how its branch failed (dag.go:143)
            else:
                node = self._run_task(name, task, dag, parents, outputs)
                ended[task["name"]] = "Succeeded" if node["phase"] == "Skipped" else node["phase"]
                for parameter in node.get("outputs", {}).get("parameters", []):
                    outputs[f"tasks.{task['name']}.outputs.parameters.{parameter['name']}"] = parameter["value"]
                if hook := task.get("hooks", {}).get("exit"):
                    arguments = _arguments(hook["arguments"], {**self.globals, **outputs})
                    self._execute(f"{name}.onExit", hook["template"], arguments, dag["id"], hooked=True)
                    node["children"].append(self.node_id(f"{name}.onExit"))
            finished[task["name"]] = self.now
        self.now = max(finished.values())
        targets = {task["name"] for task in tasks} - {n for task in tasks for n in _dependencies(task)}
        leaves = [task["name"] for task in tasks if task["name"] in targets]
        dag["outboundNodes"] = [self.nodes[n]["id"] for leaf in leaves for n in self._outbound(f"{dag['name']}.{leaf}")]
        # A DAG's node ends without a message (dag.go:334).
        self._end(dag, next((ended[leaf] for leaf in leaves if ended[leaf] in FAILED), "Succeeded"))

    def _run_task(self, name: str, task: Json, dag: Json, parents: list[str], outputs: Mapping[str, str]) -> Json:
        scope = {**self.globals, **outputs}
        if "withSequence" not in task:
            return self._run_one(name, task, dag, parents, scope)
        self._link(parents, name)
        group = self._initialize(name, "TaskGroup", task["template"], dag["id"])
        items, ends, begun = list[Json](), [self.now], self.now
        for i in range(int(_replace(task["withSequence"]["count"], scope))):
            self.now = begun
            items.append(self._run_one(f"{name}({i}:{i})", task, dag, [name], {**scope, "item": str(i)}))
            ends.append(self.now)
        self.now = max(ends)
        self._end(group, next((item["phase"] for item in reversed(items) if item["phase"] in FAILED), "Succeeded"))
        return group

    def _run_one(self, name: str, task: Json, dag: Json, parents: list[str], scope: Mapping[str, str]) -> Json:
        if when := task.get("when"):
            left, wrong = _replace(when, scope).split(" != ")
            if left == wrong:
                message = f"when '{left} != {wrong}' evaluated false"
                return self._skip(name, task, dag, parents, "Skipped", message)
        self._link(parents, name)
        return self._execute(name, task["template"], _arguments(task["arguments"], scope), dag["id"])

    def _skip(self, name: str, task: Json, dag: Json, parents: list[str], phase: str, message: str) -> Json:
        self._link(parents, name)
        node = self._initialize(name, "Skipped", task["template"], dag["id"])
        self._end(node, phase, message)
        return node

    def _link(self, parents: list[str], child: str) -> None:
        for parent in parents:
            self.nodes[parent]["children"].append(self.node_id(child))

    def _outbound(self, name: str) -> list[str]:
        """Return the nodes that the next task comes after (operator.go:3205)."""
        node = self.nodes[name]
        if node["type"] == "Retry":
            return [self.names[node["children"][-1]]]
        if node["type"] == "TaskGroup" and node["children"]:
            return [n for child in node["children"] for n in self._outbound(self.names[child])]
        if node["type"] == "DAG":
            return [n for i in node["outboundNodes"] for n in self._outbound(self.names[i])]
        return [name]

    def _initialize(
        self,
        name: str,
        kind: str,
        template: str,
        boundary: str,
        flag: Json | None = None,
        inputs: Mapping[str, str] | None = None,
    ) -> Json:
        above = self.names.get(boundary, "")
        node: Json = {
            "id": self.node_id(name),
            "name": name,
            "displayName": name.removeprefix(above).removeprefix(".") if above else name,
            "type": kind,
            "templateName": template,
            "templateScope": f"local/{self.name}",
            "phase": "Running",
            "started": self.now,
            "children": [],
            "nodeFlag": flag or {},
        }
        if boundary:
            node["boundaryID"] = boundary
        declared = self.templates[template]["inputs"].get("parameters", [])
        if inputs:
            node["inputs"] = {"parameters": [{**p, "value": inputs[p["name"]]} for p in declared]}
        self.nodes[name], self.names[node["id"]] = node, name
        return node

    def _end(self, node: Json, phase: str, message: str = "") -> None:
        node["phase"], node["finished"] = phase, self.now
        if message:
            node["message"] = message


def _scope(inputs: Mapping[str, str]) -> dict[str, str]:
    return {f"inputs.parameters.{name}": value for name, value in inputs.items()}


def _replace(text: str, scope: Mapping[str, str], *, escaped: bool = False) -> str:
    def resolve(match: re.Match[str]) -> str:
        value = scope.get(match[1])
        return match[0] if value is None else json.dumps(value)[1:-1] if escaped else value

    return REFERENCE.sub(resolve, text)


def _arguments(arguments: Json, scope: Mapping[str, str]) -> dict[str, str]:
    return {parameter["name"]: _replace(parameter["value"], scope) for parameter in arguments.get("parameters", [])}


def _dependencies(task: Json) -> list[str]:
    return [part.removesuffix(".Succeeded") for part in task["depends"].split(" && ")] if "depends" in task else []


def _ordered(tasks: list[Json]) -> list[Json]:
    """Order tasks such that each comes after those that it depends on."""
    done: list[Json] = []
    while len(done) < len(tasks):
        names = {task["name"] for task in done}
        done.append(next(t for t in tasks if t not in done and names.issuperset(_dependencies(t))))
    return done


def _seconds(text: Any) -> float:
    """Parse a duration: seconds, or with units as `2m` (workflow_types.go, ParseStringToDuration)."""
    units = {"": 1, "s": 1, "m": 60, "h": 3600}
    return sum(float(number) * units[unit] for number, unit in re.findall(r"([\d.]+)([smh]?)", str(text)))
