"""Training on several nodes: what Kubeflow Trainer's SDK sends to a cluster's API, and nodes that really run.

The API is a server on loopback that keeps TrainJobs and runs their nodes as processes, where Trainer would make pods.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kubernetes_validate
import pytest
import yaml
from kubeflow.trainer import TrainerClient
from kubeflow_trainer_api import models

from hardcase.config import EvaluateConfig, GrpoConfig, SftConfig
from hardcase.data.completions import Completion, read_completions, write_completions
from hardcase.errors import HardcaseError, InputError
from hardcase.runtime.nodes import run_on_nodes
from hardcase.runtime.processes import COMMAND, in_processes, in_shards
from hardcase.runtime.trainjob import _notice_dead_connections
from tests.integration.runtime.test_launching import CONFIG
from tests.support import meeting, sharing

pytestmark = pytest.mark.usefixtures("hostile_folder")
PIPELINES = Path(__file__).parents[3] / "infra/kubernetes/base/pipelines"
RUNTIME = PIPELINES / "training.yaml"
ROLES = list(yaml.safe_load_all((PIPELINES / "roles.yaml").read_text()))
RULES = next(role["rules"] for role in ROLES if role["metadata"]["name"] == "pipeline-runner")
VERBS = {"POST": "create", "DELETE": "delete"}
JOBS = "/apis/trainer.kubeflow.org/v1alpha1/namespaces/hardcase/trainjobs"
NAME = "hardcase-grpo-0123456789abcdef"
LIMITS = {
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE): 1,
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE): 20,
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL): 10,
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT): 3,
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT): 60_000,
}


def allowed(method: str, path: str) -> bool:
    """Whether the manifests' role lets a step ask that; what is not in its namespace it may never."""
    parts = path.strip("/").split("/")
    group, place = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
    if place[:2] != ["namespaces", "hardcase"]:
        return False
    kind, *name = place[2:]
    wanted = group, "/".join([kind, *name[1:]]), VERBS.get(method, "get" if name else "list")
    return any(
        all(what in rule[key] for what, key in zip(wanted, ("apiGroups", "resources", "verbs"), strict=True))
        and (not rule.get("resourceNames") or name[:1] == rule["resourceNames"])
        for rule in RULES
    )


class Api(BaseHTTPRequestHandler):
    """What Kubernetes answers to the SDK and to its own client."""

    cluster: "Cluster"

    def answer(self, content: Any, status: int = 200) -> None:
        data = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/plain" if isinstance(content, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def refuse(self, status: int) -> None:
        self.answer({"kind": "Status", "status": "Failure", "code": status}, status)

    def do_GET(self) -> None:
        place = urlsplit(self.path)
        name = place.path.rpartition("/")[2]
        if self.cluster.refused or not allowed("GET", place.path):
            self.refuse(self.cluster.refused or 403)
        elif self.cluster.away and place.path.startswith(JOBS):
            self.cluster.away -= 1
            self.refuse(503)
        elif place.path.endswith("/trainingruntimes/hardcase-train"):
            self.answer(self.cluster.runtime)
        elif place.path.startswith(JOBS) and name in self.cluster.jobs:
            self.answer(self.cluster.job(name))
        elif place.path.endswith("/pods"):
            (selector,) = parse_qs(place.query)["labelSelector"]
            job = selector.partition("jobset.sigs.k8s.io/jobset-name=")[2].partition(",")[0]
            self.answer({"kind": "PodList", "apiVersion": "v1", "items": self.cluster.pods(job)})
        elif place.path.endswith("/workloads"):
            quota = {"type": "QuotaReserved", "status": "False", "message": self.cluster.workload}
            self.answer({"items": [{"status": {"conditions": [quota]}}] if self.cluster.workload else []})
        elif place.path.endswith("/log"):
            self.log(place.path.split("/")[-2], parse_qs(place.query))
        else:
            self.refuse(404)

    def log(self, pod: str, query: dict[str, list[str]]) -> None:
        job, _, index = pod.rpartition("-node-")
        if "follow" in query:
            self.cluster.wait(job, int(index))
        lines = (self.cluster.folder / f"{pod}.log").read_text().splitlines(keepends=True)
        if "timestamps" in query:
            lines = [f"2026-01-01T00:00:00.{number:09}Z {line}" for number, line in enumerate(lines)]
        whole = "".join(lines[-int(query["tailLines"][0]) :] if "tailLines" in query else lines)
        sent = "".join(lines[: self.cluster.cut]) if self.cluster.cut else whole
        self.cluster.cut = 0
        self.send_response(200)
        self.send_header("Content-Length", str(len(whole.encode())))
        self.end_headers()
        self.wfile.write(sent.encode())
        self.close_connection = sent != whole

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = sent["metadata"]["name"]
        if not allowed("POST", self.path) or name in self.cluster.jobs:
            self.refuse(409 if name in self.cluster.jobs else 403)
            return
        self.cluster.start(name, sent)
        self.answer(self.cluster.job(name), 201)

    def do_DELETE(self) -> None:
        name = urlsplit(self.path).path.rpartition("/")[2]
        if not allowed("DELETE", self.path) or name not in self.cluster.jobs:
            self.refuse(404 if allowed("DELETE", self.path) else 403)
            return
        self.cluster.deleted.append(name)
        self.cluster.stop(name)
        self.answer({"kind": "Status", "status": "Success"})

    def log_message(self, *_: Any) -> None:
        pass


class Cluster:
    """What it was asked, and the nodes that it runs, by TrainJob."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.jobs, self.nodes = folder, dict[str, Any](), dict[str, list["subprocess.Popen[bytes]"]]()
        self.sent: list[Any] = []
        self.deleted: list[str] = []
        self.away = self.refused = 0
        self.cut = 0  # after how many lines the connection of a log breaks, once
        self.conditions: list[Any] = []  # of every job, besides the one that says how it ended
        self.workload = ""  # why Kueue does not admit a job
        self.pending = list[Any]()  # what one answer after the other says of pods that are not at work yet
        self.exit: dict[str, Any] = {}  # how the container of a node that failed ended
        self.lingering = list[float]()  # how long pods of a job that was deleted take to end, in seconds
        self.gone = dict[str, tuple[float, list[Any]]]()
        self.runtime = yaml.safe_load(RUNTIME.read_text())
        self.gpus(2)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Api,), {"cluster": self}))
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "here",
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me", "namespace": "hardcase"}}],
            "clusters": [{"name": "here", "cluster": {"server": f"http://127.0.0.1:{self.server.server_port}"}}],
            "users": [{"name": "me", "user": {"token": "t"}}],
        }
        (folder / "kubeconfig").write_text(yaml.safe_dump(config))

    def gpus(self, number: int) -> None:
        (job,) = self.runtime["spec"]["template"]["spec"]["replicatedJobs"]
        (node,) = job["template"]["spec"]["template"]["spec"]["containers"]
        node["resources"]["limits"]["nvidia.com/gpu"] = str(number)

    def start(self, name: str, sent: Any) -> None:
        self.sent.append(sent)
        self.jobs[name], trainer = sent, sent["spec"]["trainer"]
        self.nodes[name] = []
        port = 29500 + os.getpid() % 2000
        for rank in range(trainer["numNodes"]):
            place = {"PET_NNODES": trainer["numNodes"], "PET_NODE_RANK": rank, "PET_NPROC_PER_NODE": 2}
            place |= {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
            with (self.folder / f"{name}-node-{rank}.log").open("wb") as log:
                self.nodes[name].append(
                    subprocess.Popen(
                        trainer["command"],
                        env={**os.environ, **{key: str(value) for key, value in place.items()}},
                        stdout=log,
                        stderr=log,
                    )
                )

    def stop(self, name: str) -> None:
        for node in self.nodes[name]:
            node.kill()
            node.wait()
        if self.lingering:
            self.gone[name] = time.monotonic() + self.lingering.pop(), self.pods(name)
        del self.jobs[name], self.nodes[name]

    def wait(self, name: str, rank: int) -> None:
        """Until that node has ended; when one fails, JobSet deletes the others."""
        nodes = self.nodes[name]
        while nodes[rank].poll() is None:
            if any(node.poll() for node in nodes):
                nodes[rank].kill()
            time.sleep(0.05)

    def job(self, name: str) -> Any:
        codes = [node.poll() for node in self.nodes[name]]
        kind = "Failed" if any(codes) else "Complete" if set(codes) == {0} else ""
        ended = {
            "type": kind,
            "status": "True",
            "reason": "",
            "message": "",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }
        sent = self.jobs[name]
        about = {**sent["metadata"], "namespace": "hardcase", "creationTimestamp": "2026-01-01T00:00:00Z", "uid": "1"}
        return {**sent, "metadata": about, "status": {"conditions": [*self.conditions, *([ended] if kind else [])]}}

    def pods(self, job: str) -> list[Any]:
        status = {None: {"phase": "Running"}, 0: {"phase": "Succeeded"}}
        if self.pending and job in self.nodes:
            status[None] = {"phase": "Pending", **self.pending.pop(0)}
        until, left = self.gone.get(job, (0.0, []))
        return (left if time.monotonic() < until else []) + [
            {
                "metadata": {
                    "name": f"{job}-node-{rank}",
                    "creationTimestamp": "2026-01-01T00:00:00Z",
                    "labels": {
                        "jobset.sigs.k8s.io/replicatedjob-name": "node",
                        "batch.kubernetes.io/job-completion-index": str(rank),
                    },
                },
                "spec": {"containers": [{"name": "node", "image": "train"}]},
                "status": status.get(node.poll(), {"phase": "Failed", **self.exit}),
            }
            for rank, node in enumerate(self.nodes.get(job, []))
        ]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    found = Cluster(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    monkeypatch.setattr("hardcase.runtime.trainjob.SECONDS_BETWEEN", 0.1)
    yield found
    for name in list(found.jobs):
        found.stop(name)
    found.server.shutdown()
    found.server.server_close()


def container(state: dict[str, Any]) -> dict[str, Any]:
    told = {"name": "node", "image": "train", "imageID": "", "ready": False, "restartCount": 0, "state": state}
    return {"containerStatuses": [told]}


def said(script: str) -> list[str]:
    return [sys.executable, "-P", "-c", f"import os, sys, time\nrank = os.environ['PET_NODE_RANK']\n{script}"]


def test_what_is_sent_is_a_trainjob_and_the_first_nodes_log_is_the_steps(
    cluster: Cluster, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HARDCASE_IMAGE", "registry/train@sha256:abc")
    command = said("print(f'node {rank} was here')")
    assert run_on_nodes(command, 2, 2, "grpo-0123456789abcdef") == ""
    assert "node 0 was here\n" in capfd.readouterr().out
    assert cluster.sent == [
        {
            "apiVersion": "trainer.kubeflow.org/v1alpha1",
            "kind": "TrainJob",
            "metadata": {"name": NAME, "labels": {"kueue.x-k8s.io/queue-name": "gpu"}},
            "spec": {
                "runtimeRef": {"name": "hardcase-train", "kind": "TrainingRuntime"},
                "trainer": {"image": "registry/train@sha256:abc", "numNodes": 2, "command": command},
            },
        }
    ]
    assert cluster.deleted == [NAME]


def test_node_that_fails_is_named_with_its_last_lines(cluster: Cluster) -> None:
    ended = run_on_nodes(said("if rank == '1': sys.exit('out of memory')"), 2, 2, "grpo-0123456789abcdef")
    assert ended.splitlines() == [f"TrainJob {NAME} failed", "node-1 failed; its last lines:", "out of memory"]
    assert cluster.deleted == [NAME]


def test_node_that_the_kernel_killed_says_so(cluster: Cluster) -> None:
    cluster.exit = container({"terminated": {"reason": "OOMKilled", "exitCode": 137}})
    ended = run_on_nodes(said("if rank == '0': sys.exit('last line')"), 2, 2, "grpo-0123456789abcdef")
    assert "node-0 failed (OOMKilled, exit code 137); its last lines:\nlast line" in ended


def test_job_of_a_step_that_was_killed_gives_way(cluster: Cluster) -> None:
    trainer = {"numNodes": 1, "command": said("time.sleep(99)")}
    reference = {"name": "hardcase-train", "kind": "TrainingRuntime"}
    cluster.start(NAME, {"metadata": {"name": NAME}, "spec": {"runtimeRef": reference, "trainer": trainer}})
    assert run_on_nodes(said(""), 2, 2, "grpo-0123456789abcdef") == ""
    assert cluster.deleted == [NAME, NAME]


def test_nodes_begin_when_the_pods_of_an_earlier_attempt_are_gone(cluster: Cluster) -> None:
    """Two trainings wrote into one folder, since a job that is gone leaves its pods behind for up to 30 s."""
    reference = {"name": "hardcase-train", "kind": "TrainingRuntime"}
    trainer = {"numNodes": 1, "command": said("time.sleep(99)")}
    cluster.start(NAME, {"metadata": {"name": NAME}, "spec": {"runtimeRef": reference, "trainer": trainer}})
    cluster.lingering = [1.5]
    began = time.monotonic()
    assert run_on_nodes(said(""), 2, 2, "grpo-0123456789abcdef") == ""
    assert time.monotonic() - began > 1.5
    assert len(cluster.sent) == 2


def test_pods_that_stay_are_named(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hardcase.runtime.trainjob.SECONDS_AWAY", 0.5)
    reference = {"name": "hardcase-train", "kind": "TrainingRuntime"}
    trainer = {"numNodes": 1, "command": said("time.sleep(99)")}
    cluster.start(NAME, {"metadata": {"name": NAME}, "spec": {"runtimeRef": reference, "trainer": trainer}})
    cluster.lingering = [60]
    with pytest.raises(HardcaseError, match=f"{NAME}-node-0 of an earlier attempt does not end"):
        run_on_nodes(said(""), 2, 2, "grpo-0123456789abcdef")
    assert len(cluster.sent) == 1


def test_a_log_whose_connection_breaks_is_shown_whole_and_no_line_twice(
    cluster: Cluster, capfd: pytest.CaptureFixture[str]
) -> None:
    cluster.cut = 3
    assert run_on_nodes(said("[print('line', number) for number in range(6)]"), 2, 2, "grpo-0123456789abcdef") == ""
    assert capfd.readouterr().out.splitlines() == [f"line {number}" for number in range(6)]


def test_a_connection_whose_other_end_is_gone_is_ended_by_the_kernel(cluster: Cluster) -> None:
    """The step hung for ever on a log stream after the API was unreachable for 30 s."""
    client = TrainerClient()
    _notice_dead_connections(client)
    connection = client.backend.core_api.api_client.rest_client.pool_manager.connection_from_host(
        *cluster.server.server_address
    )._get_conn()
    connection.connect()
    try:
        told = {option: connection.sock.getsockopt(*option) for option in LIMITS}
    finally:
        connection.close()
    assert told == LIMITS


def test_an_api_that_is_never_there_is_no_bad_input(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.server.shutdown()
    cluster.server.server_close()
    monkeypatch.setattr("hardcase.runtime.trainjob.SECONDS_AWAY", 0.5)
    with pytest.raises(HardcaseError, match="TrainingRuntime hardcase-train") as failure:
        run_on_nodes(said(""), 2, 2, "grpo-0123456789abcdef")
    assert failure.value.exit_code == 1, "a step that is refused is never tried again"
    assert "asking again" in caplog.text


@pytest.mark.parametrize("status", [401, 403])
def test_an_api_that_refuses_us_is_the_users_to_mend(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(cluster, "refused", status)
    with pytest.raises(InputError, match=str(status)):
        run_on_nodes(said(""), 2, 2, "grpo-0123456789abcdef")


def test_a_job_that_waits_says_why(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    suspended = {"type": "Suspended", "status": "True", "reason": "", "message": "TrainJob is suspended"}
    cluster.conditions = [suspended]
    cluster.workload = "couldn't assign flavors to pod set node: insufficient quota for nvidia.com/gpu"
    threading.Timer(1.0, cluster.conditions.clear).start()
    with caplog.at_level("INFO"):
        assert run_on_nodes(said("time.sleep(1.5)"), 2, 2, "grpo-0123456789abcdef") == ""
    (waits,) = [record.message for record in caplog.records if " waits: " in record.message]
    assert waits == f"TrainJob {NAME} waits: queued by Kueue: {cluster.workload}"


def test_a_pod_that_waits_says_why_each_time_it_changes(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    message = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    unschedulable = [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]
    pulling = container({"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image"}})
    cluster.pending = [{"conditions": unschedulable}, {"conditions": unschedulable}, pulling, {}]
    with caplog.at_level("INFO"):
        assert run_on_nodes(said("time.sleep(2)"), 2, 2, "grpo-0123456789abcdef") == ""
    waits = [record.message.partition("pending")[2] for record in caplog.records if " waits: 2 of 2" in record.message]
    assert waits == [f": {message}", ": ImagePullBackOff: Back-off pulling image", ""]


def test_a_kubeconfig_that_is_wrong_is_the_users_to_mend(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text("contexts: []")
    with pytest.raises(InputError, match=r"nodes is 2: no cluster is known: .*current-context"):
        run_on_nodes(said(""), 2, 2, "grpo-0")


def test_a_node_that_is_asked_to_end_does_so_as_first_process_of_its_container(tmp_path: Path) -> None:
    """The kernel keeps signals without a handler from the first process; a node held on for 30 s."""
    shard = {"shard": "1/1", "scratch": str(tmp_path), "answers": str(tmp_path / "table")}
    job = {"module": "tests.support.sleeping", "function": "run", "kind": "ingest", "arguments": {}, "shards": [shard]}
    (tmp_path / "job.json").write_text(json.dumps(job))
    place = {"PET_NODE_RANK": "0", "PET_NNODES": "1", "PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": "0"}
    inside = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", "--mount-proc"]
    command = [*inside, *COMMAND, str(tmp_path / "job.json"), "node"]
    with subprocess.Popen(command, env={**os.environ, **place}) as node:
        until = time.monotonic() + 60
        while not (tmp_path / "began").exists() and time.monotonic() < until:
            time.sleep(0.1)
        (first,) = Path(f"/proc/{node.pid}/task/{node.pid}/children").read_text().split()
        os.kill(int(first), signal.SIGTERM)
        began = time.monotonic()
        assert node.wait(30) == 128 + signal.SIGTERM
        assert time.monotonic() - began < 3
    sleeper = int((tmp_path / "began").read_text())
    assert sleeper > 1, "it was a process of its own, which ended with the container"


def test_api_that_is_away_for_a_while_is_asked_again(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    threading.Timer(0.3, lambda: setattr(cluster, "away", 2)).start()
    assert run_on_nodes(said("time.sleep(1.5)"), 2, 2, "grpo-0123456789abcdef") == ""
    assert "asking again" in caplog.text


def test_job_that_someone_deletes_is_told(cluster: Cluster) -> None:
    threading.Timer(1.0, lambda: cluster.stop(NAME)).start()
    with pytest.raises(HardcaseError, match="deleted while it was at work; run again to go on"):
        run_on_nodes(said("time.sleep(99)"), 2, 2, "grpo-0123456789abcdef")


def test_step_that_is_stopped_deletes_its_job(cluster: Cluster, tmp_path: Path) -> None:
    code = f"from hardcase.runtime.nodes import run_on_nodes\nrun_on_nodes({said('time.sleep(99)')!r}, 2, 2, 'grpo-0')"
    with subprocess.Popen([sys.executable, "-P", "-c", code], env=dict(os.environ)) as step:
        until = time.monotonic() + 60
        while not cluster.sent and time.monotonic() < until:
            time.sleep(0.1)
        step.send_signal(signal.SIGTERM)
        assert step.wait(60) == 128 + signal.SIGTERM
    assert cluster.deleted == ["hardcase-grpo-0"]


def test_runtime_that_is_missing_or_does_not_fit_is_the_users_error(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="2 GPUs a node for 4 processes"):
        run_on_nodes(said(""), 2, 4, "grpo-0")
    monkeypatch.setenv("HARDCASE_TRAINING_RUNTIME", "other")
    with pytest.raises(InputError, match=r"namespace hardcase has no TrainingRuntime other, so it has"):
        run_on_nodes(said(""), 2, 2, "grpo-0")
    monkeypatch.setenv("HARDCASE_TRAINER", "docker")
    with pytest.raises(InputError, match="say local or kubernetes"):
        run_on_nodes(said(""), 2, 2, "grpo-0")
    assert cluster.sent == []


def test_step_trains_on_two_nodes_that_meet(cluster: Cluster, tmp_path: Path) -> None:
    config = GrpoConfig.model_validate(CONFIG | {"processes": 1, "nodes": 2})
    cluster.gpus(1)
    scratch = tmp_path / "scratch" / "grpo-1"
    scratch.mkdir(parents=True)
    (scratch / "given").write_text("given")
    in_processes(meeting.run, config, scratch, source=scratch / "given", out=scratch / "out")
    assert json.loads((scratch / "out").read_text()) == {"world": 2, "read": "given"}


def test_nodes_divide_shards_and_a_retry_takes_no_more_nodes_than_it_needs(cluster: Cluster, tmp_path: Path) -> None:
    common = {"config": EvaluateConfig(engine="transformers"), "refused": tmp_path / "scratch" / "refused"}
    given = {"shards": 3, "nodes": 2, "scratch": tmp_path / "scratch" / "final", "written": "answers", **common}
    given["scratch"].mkdir(parents=True)
    given["refused"].write_text("2/3")
    with pytest.raises(InputError, match="shard 2/3 is refused"):
        in_shards(sharing.run, **given)
    given["refused"].unlink()
    (given["scratch"] / "shard-3-of-3" / "done").touch()
    write_completions(["3/3"], [[Completion("kept")]], given["scratch"] / "shard-3-of-3" / "written")
    tables = in_shards(sharing.run, **given)
    assert read_completions(tables, ["1/3", "2/3", "3/3"]) == [[Completion(text)] for text in ("", "", "kept")]
    assert [job["spec"]["trainer"]["numNodes"] for job in cluster.sent] == [2, 1]
    assert len({job["metadata"]["name"] for job in cluster.sent}) == 1


def test_two_nodes_of_the_local_back_end_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARDCASE_TRAINER", "local")
    config = GrpoConfig.model_validate(CONFIG | {"processes": 1, "nodes": 2})
    (tmp_path / "elsewhere").write_text("given")
    here = Path.cwd()
    in_processes(meeting.run, config, tmp_path, source=tmp_path / "elsewhere", out=tmp_path / "out")
    assert json.loads((tmp_path / "out").read_text())["world"] == 2
    assert Path.cwd() == here


def test_runtime_of_the_manifests_fits_trainer_and_kubernetes() -> None:
    manifest = yaml.safe_load(RUNTIME.read_text())
    assert models.TrainerV1alpha1TrainingRuntime.from_dict(manifest) is not None
    (job,) = manifest["spec"]["template"]["spec"]["replicatedJobs"]
    template = job["template"]["spec"]["template"]
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", **template}, "1.34", strict=True)
    (node,) = template["spec"]["containers"]
    assert {"name": "scratch", "mountPath": "/scratch"} in node["volumeMounts"]
    assert template["spec"]["serviceAccountName"] == "gpu-step"


def test_tiny_models_phases_take_no_nodes() -> None:
    phase = {"steps": 1, "batch_size": 1, "learning_rate": 1e-3}
    with pytest.raises(ValueError, match="no `nodes`"):
        SftConfig.model_validate({**phase, "nodes": 2, "reading": phase})
