"""Fixtures and rules of all tests. The folder of a test is its tier; durations.json balances the workers."""

import json
import os
import shutil
import socket
import sys
from collections import Counter
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.support.machine import Machine

# Seconds that a test of each tier may take: a test that hangs fails, and the rest runs on.
LIMITS = {"unit": 120, "integration": 600, "compat": 300, "e2e": 1200, "vllm": 300, "acceptance": 1200}
TESTS = Path(__file__).parent
DURATIONS = TESTS / "durations.json"
# Those of vLLM run in an environment of their own: `make test-vllm`.
collect_ignore = [] if find_spec("vllm") else ["vllm"]
# `make test` installs Chromium, and says so where it cannot.
BROWSERS = Path(os.environ.get("PLAYWRIGHT_BROWSERS_PATH") or Path.home() / ".cache" / "ms-playwright")
if not (shutil.which("chromium") or shutil.which("google-chrome") or any(BROWSERS.glob("chromium-*"))):
    collect_ignore.append("integration/pages")

# Tests start many processes. Without compiled modules each of them would compile its imports again.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# One thread a worker: the workers share the cores, and numbers do not depend on how many there are.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that records durations."""
    parser.addoption("--record-durations", action="store_true", help=f"write the seconds of each file to {DURATIONS}")


@pytest.hookimpl(tryfirst=True)  # before -m selects by these marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests with their tier and its limit, and put the longest files first, so that no worker ends with one."""
    seconds = json.loads(DURATIONS.read_text(encoding="utf-8"))
    items.sort(key=lambda item: -seconds.get(item.path.relative_to(TESTS).as_posix(), LIMITS["unit"]))
    for item in items:
        tier = item.path.relative_to(TESTS).parts[0]
        item.add_marker(tier)
        if not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(LIMITS[tier]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Record the seconds of each file that ran, set-up included."""
    if not config.getoption("--record-durations"):
        return
    seconds = Counter[str]()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if isinstance(report, pytest.TestReport):
            seconds[report.nodeid.partition("::")[0].removeprefix("tests/")] += report.duration
    recorded = json.loads(DURATIONS.read_text(encoding="utf-8")) | {name: round(s, 1) for name, s in seconds.items()}
    there = {name: recorded[name] for name in sorted(recorded) if (TESTS / name).is_file()}
    DURATIONS.write_text(json.dumps(there, indent=1) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """Return an empty home for the tests of a file, whose path holds what a URI, a list of paths or a shell reads."""
    return Machine(tmp_path_factory.mktemp("machine") / "home %41%2F:?#é'$")


@pytest.fixture
def unused_port() -> int:
    """Return a port of loopback that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    return port
