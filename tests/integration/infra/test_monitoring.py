"""The exporter of runs, the rules of Prometheus and the dashboard. Expressions go through a parser of PromQL."""

import importlib.util
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlparse

import promql_parser
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from tests.support.manifests import HERE, OVERLAYS, REPOSITORY, one


def expressions() -> list[tuple[str, str]]:
    """Of the rules and of the dashboard, with Grafana's variables filled in."""
    found = []
    for overlay in OVERLAYS:
        for group in one(overlay, "PrometheusRule", "hardcase")["spec"]["groups"]:
            found += [(rule.get("alert") or rule["record"], rule["expr"]) for rule in group["rules"]]
    for panel in dashboard()["panels"]:
        found += [(panel["title"], target["expr"].replace("$__range", "7d")) for target in panel["targets"]]
    return found


def dashboard() -> dict[str, Any]:
    return json.loads((HERE / "base" / "monitoring" / "runs.json").read_text())


def test_expressions_of_alerts_and_panels_parse() -> None:
    for name, expression in expressions():
        try:
            promql_parser.parse(expression)
        except ValueError as error:
            pytest.fail(f"{name}: {error}\n{expression}")


def test_metrics_of_ours_that_are_asked_for_are_exported_or_recorded() -> None:
    groups = one("prod", "PrometheusRule", "hardcase")["spec"]["groups"]
    known = set(exporter().METRICS) | {
        rule["record"] for group in groups for rule in group["rules"] if "record" in rule
    }
    for name, expression in expressions():
        bare = re.sub(r'"[^"]*"', '""', expression)
        assert set(re.findall(r"\bhardcase[_:][a-z_:]+", bare)) <= known, name


def test_alerts_say_how_bad_it_is_and_what_to_do_and_the_docs_have_it() -> None:
    docs = (HERE.parents[1] / "docs" / "how-to" / "install-on-kubernetes.md").read_text()
    for group in one("prod", "PrometheusRule", "hardcase")["spec"]["groups"]:
        for rule in group["rules"]:
            if "alert" in rule:
                assert rule["labels"]["severity"] in ("warning", "critical")
                assert {"summary", "action"} == set(rule["annotations"])
                page = r'docs/how-to/install-on-kubernetes\.md, "([^"]+)"'
                for heading in re.findall(page, rule["annotations"]["action"]):
                    assert heading in docs


def test_dashboard_has_unique_panels_that_do_not_overlap() -> None:
    panels = dashboard()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels) == len({panel["title"] for panel in panels})
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        grid = panel["gridPos"]
        assert grid["x"] + grid["w"] <= 24
        cells = {(x + grid["x"], y + grid["y"]) for x in range(grid["w"]) for y in range(grid["h"])}
        assert not cells & taken, panel["title"]
        taken |= cells
    assert one("prod", "ConfigMap", "dashboard-runs")["metadata"]["labels"]["grafana_dashboard"] == "1"


def exporter() -> Any:
    spec = importlib.util.spec_from_file_location("run_exporter", HERE / "base" / "monitoring" / "exporter.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


RECORDED = REPOSITORY / "tests" / "recordings" / "kubeflow"
RUNS = ("run-succeeded-smoke", "run-fail-state-02-failed", "run-terminated-final", "run-short-state-01-running")
SUCCEEDED, FAILED, STOPPED, RUNNING = (
    json.loads((RECORDED / f"{name}.json").read_text())["response"]["body"] for name in RUNS
)


@pytest.fixture
def kubeflow() -> Iterator[str]:
    """Serve four recorded runs as KFP's API lists them, to those who bring the token."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlparse(self.path).query)
            allowed = self.headers["Authorization"] == "Bearer abc" and query["namespace"] == ["hardcase"]
            self.send_response(200 if allowed else 401)
            self.end_headers()
            runs = [{**FAILED, "display_name": 'a "b"'}, SUCCEEDED, STOPPED, RUNNING]
            self.wfile.write(json.dumps({"runs": runs}).encode())

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Answer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture
def environment(kubeflow: str, tmp_path: Path) -> dict[str, str]:
    (tmp_path / "token").write_text("abc\n")
    return {
        "KFP_URL": kubeflow,
        "KFP_NAMESPACE": "hardcase",
        "KFP_TOKEN_FILE": str(tmp_path / "token"),
        "HARDCASE_STORE": str(tmp_path / "store"),
    }


def scrape(environment: dict[str, str], of: Any = None) -> list[str]:
    """What Prometheus gets, in its text format."""
    registry = CollectorRegistry()
    registry.register(of or exporter().Exporter(environment))
    return generate_latest(registry).decode().splitlines()


def states(lines: list[str]) -> dict[str, str]:
    """The state of each run, by id."""
    found = (re.match(r'hardcase_run_info\{name=".*",run="([^"]+)",state="(\w+)"\} 1\.0$', line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def record(environment: dict[str, str], run: str, status: str) -> Path:
    """Write the record of a run into the store, as its last step does."""
    path = Path(environment["HARDCASE_STORE"], "runs", f"{run}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"format": 1, "run_id": run, "status": status}))
    return path


def test_runs_and_scores_are_exported(environment: dict[str, str]) -> None:
    for version, key, overall in (("1", "grpo", 60.5), ("2", "final", 64.0)):
        folder = Path(environment["HARDCASE_STORE"], "models", "image-screener", version)
        folder.mkdir(parents=True)
        (folder / "scores.json").write_text(json.dumps({key: {"overall": overall, "exact_match": 0.5}, "sft": None}))
    lines = scrape(environment)
    name = f'name="a \\"b\\"",run="{FAILED["run_id"]}"'
    assert f'hardcase_run_info{{{name},state="FAILED"}} 1.0' in lines
    assert f"hardcase_run_seconds{{{name}}} 60.0" in lines
    timed = {line.partition('run="')[2].partition('"')[0] for line in lines if line.startswith("hardcase_run_seconds{")}
    assert timed == {run["run_id"] for run in (SUCCEEDED, FAILED, STOPPED)}
    assert 'hardcase_model_score{model="image-screener",score="overall",stage="final",version="2"} 64.0' in lines
    assert 'hardcase_model_version{model="image-screener"} 2.0' in lines
    sources = {line for line in lines if line.startswith("hardcase_source_up{")}
    assert sources == {f'hardcase_source_up{{source="{source}"}} 1.0' for source in ("kubeflow", "records", "store")}


def test_a_stopped_run_is_no_failed_run(environment: dict[str, str]) -> None:
    """Kubeflow ends it as FAILED, and the alert on failed runs would fire."""
    assert STOPPED["state"] == "FAILED"
    assert states(scrape(environment)) == {
        SUCCEEDED["run_id"]: "SUCCEEDED",
        FAILED["run_id"]: "FAILED",
        STOPPED["run_id"]: "CANCELED",
        RUNNING["run_id"]: "RUNNING",
    }


@pytest.mark.parametrize(
    ("status", "state"),
    [
        ("failed", "FAILED"),
        ("cancelled", "CANCELED"),
        ("succeeded", "SUCCEEDED"),
        ("rejected", "SUCCEEDED"),
        ("evaluated", "SUCCEEDED"),
    ],
)
def test_a_runs_record_says_how_it_ended_whatever_kubeflow_says(
    environment: dict[str, str], status: str, state: str
) -> None:
    path = record(environment, RUNNING["run_id"], status)
    one = exporter().Exporter(environment)
    assert states(scrape(environment, one))[RUNNING["run_id"]] == state
    path.unlink()
    assert states(scrape(environment, one))[RUNNING["run_id"]] == state, "a record is read once: it never changes"


def test_a_source_that_cannot_be_read_is_named_and_the_others_are_exported(environment: dict[str, str]) -> None:
    lines = scrape({**environment, "KFP_TOKEN_FILE": ""})
    assert {'hardcase_source_up{source="kubeflow"} 0.0', 'hardcase_source_up{source="store"} 1.0'} <= set(lines)
    record(environment, FAILED["run_id"], "failed").write_text("no record")
    lines = scrape(environment)
    assert {'hardcase_source_up{source="kubeflow"} 1.0', 'hardcase_source_up{source="records"} 0.0'} <= set(lines)
    assert states(lines)[FAILED["run_id"]] == "FAILED"
