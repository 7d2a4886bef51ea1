"""What the checks of an installation share, and the table of what they saw."""

import re
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from hardcase.kubeflow.address import KubeflowError
from tests.acceptance.installation import Installation, Launched

FIRST = "test_access.py"  # what a run needs; without it none is started
ROWS = pytest.StashKey[dict[str, list[Any]]]()
LEFT = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def installation(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Installation]:
    """The installation that the options name; what was made there is removed."""
    there = Installation(folder=tmp_path_factory.mktemp("acceptance"))
    assert there.host, "no installation: say make acceptance HOST=URL"
    yield there
    left = request.config.stash[LEFT] = []
    try:
        left.extend(there.clear())
    except KubeflowError as error:
        left.append(f"what was made could not be removed; its name begins with {there.prefix}: {error}")


@pytest.fixture(scope="session")
def ready(request: pytest.FixtureRequest) -> None:
    """Nothing is launched where rights or settings are missing: a run would wait for its deadline."""
    rows = request.config.stash[ROWS]
    if lacking := [row[0] for test, row in rows.items() if FIRST in test and row[1] == "FAILED"]:
        pytest.fail(f"not tried: mend first what was found missing ({', '.join(lacking)})")


@pytest.fixture(scope="session")
def smoke(installation: Installation, ready: None) -> Launched:
    """The first run, nothing of it from the cache, followed to its end."""
    return installation.launch("smoke")


@pytest.fixture
def succeeded(smoke: Launched) -> Launched:
    """The same, once it has succeeded."""
    if smoke.exit_code:
        pytest.fail("not tried: the first run did not succeed")
    return smoke


@pytest.fixture(scope="session")
def requeue(installation: Installation) -> str:
    """How soon Argo looks at a workflow again; empty for its own 10 s."""
    deployment = installation.kubectl("/apis/apps/v1/namespaces/kubeflow/deployments/workflow-controller")
    containers = deployment["spec"]["template"]["spec"]["containers"]
    variables = {each["name"]: each.get("value", "") for one in containers for each in one.get("env") or []}
    return str(variables.get("DEFAULT_REQUEUE_TIME", ""))


def pytest_configure(config: pytest.Config) -> None:
    config.stash[ROWS] = {}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Keep a row for each check: its name, the result, seconds, and what was seen."""
    report = yield
    if not item.get_closest_marker("acceptance"):
        return report
    row = item.config.stash[ROWS].setdefault(item.nodeid, [item.name[5:].replace("_", " "), "ok", 0.0, ""])
    row[2] += report.duration
    if report.skipped:
        row[1], row[3] = "not checked", report.longrepr[2].removeprefix("Skipped: ")
    elif report.failed:
        words = report.longrepr.reprcrash.message if hasattr(report.longrepr, "reprcrash") else report.longrepr
        row[1], row[3] = "FAILED", re.sub("^(AssertionError|Failed): ", "", str(words)).split("\nassert")[0]
    elif row[1] == "ok":
        row[3] = "; ".join(str(value) for key, value in report.user_properties if key == "seen")
    return report


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not (rows := config.stash[ROWS]):
        return
    table = Table("check", "result", "seconds", "seen")
    for name, result, seconds, seen in rows.values():
        table.add_row(name, result, f"{seconds:.1f}", seen)
    console = Console(width=200, highlight=False, emoji=False, markup=False, file=terminalreporter._tw._file)
    console.print()
    console.print(table)
    for line in config.stash.get(LEFT, []):
        console.print(line)
