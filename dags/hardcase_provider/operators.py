"""The retraining as an Airflow task: on Kubeflow, deferred while it runs, or on this machine as a process."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import IO, Any, ClassVar, Final, cast

import httpx
from airflow.sdk import BaseOperator, BaseOperatorLink
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from hardcase.kubeflow.address import Refused
from hardcase.kubeflow.runs import ENDED, explain_end, list_steps, parse_moment, summarise_run
from hardcase_provider.hooks import DEFAULT_CONNECTION, KubeflowHook, explain
from hardcase_provider.registry import find_record
from hardcase_provider.step_records import look_at_steps
from hardcase_provider.triggers import KubeflowRunTrigger

REPOSITORY: Final = Path(__file__).resolve().parents[2]
LINK_KEY: Final = "kubeflow_run_link"
# Of Airflow's own, not for the process that trains: its secrets, and its way of finding modules.
PRIVATE: Final = ("AIRFLOW", "_AIRFLOW", "PYTHONPATH", "VIRTUAL_ENV")
SECONDS_TO_END: Final = 20
# The triggerer stops the run of a cleared task within seconds, or within minutes if the API is away. Until then, the
# task's next attempt finds that run active.
SECONDS_TO_BE_STOPPED: Final = 300
UNKNOWN: Final = (
    "Not started again, because the step may have refused its input, which only connection hardcase_mlflow or "
    "HARDCASE_STORE would tell. Clear the task to start another run"
)


class KubeflowRunLink(BaseOperatorLink):
    """To the run, in Kubeflow's UI."""

    name = "Kubeflow run"

    @property
    def xcom_key(self) -> str:
        """Return the key under which the link is stored from the launch on."""
        return LINK_KEY

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> str:
        """Return the link, once the run is launched."""
        return str(getattr(operator, "link", "") or "")


class KubeflowRunOperator(BaseOperator):
    """Launch one run for one key, wait without holding a worker, and fail as it fails.

    Args:
        package: compiled pipeline, a file; uploaded when it changed. Without one, the newest version there is run.
        account: service account of the run's pods. Airflow masks every field whose name has `service_account` in it.
    """

    template_fields: Sequence[str] = ("key", "pipeline", "parameters", "package", "connection_id", "account")
    operator_extra_links = (KubeflowRunLink(),)
    ui_color = "#e8f0fe"

    def __init__(
        self,
        *,
        key: str,
        pipeline: str,
        parameters: Any = None,
        package: str = "",
        connection_id: str = DEFAULT_CONNECTION,
        account: str = "",
        poll: float = 30,
        limit: timedelta = timedelta(days=3),
        patience: timedelta = timedelta(hours=1),
        **more: Any,
    ) -> None:
        super().__init__(**more)
        self.key = key
        self.pipeline = pipeline
        self.parameters = parameters
        self.package = package
        self.connection_id = connection_id
        self.account = account
        self.poll = poll
        self.limit = limit
        self.patience = patience
        self.link = ""
        self._launched: tuple[KubeflowHook, str] | None = None

    def execute(self, context: Any) -> dict[str, Any] | None:
        """Launch, or find that it was."""
        hook = KubeflowHook(self.connection_id)
        try:
            version = hook.version(self.pipeline, self.package)
            run, started = hook.launch(self.key, version, self.parameters or {}, self.account)
        except Refused as error:
            raise AirflowFailException(explain(error)) from error
        self._launched = (hook, run["run_id"])
        self._push_link(hook, run["run_id"], context)
        self.log.info("run %s: %s, %s", run["run_id"], "started" if started else "there already", self.link)
        names = list_steps(version.get("pipeline_spec") or {})
        if run.get("state") in ENDED:
            steps, address = look_at_steps(run, names), hook.address
            return self._conclude(summarise_run(run, steps, link=self.link, namespace=address.namespace))
        self.defer(
            trigger=KubeflowRunTrigger(
                self.connection_id,
                run["run_id"],
                self.poll,
                time.time() + self.limit.total_seconds(),
                self.patience.total_seconds(),
                names,
            ),
            method_name="resumed",
            kwargs={"run_id": run["run_id"], "adopted": 0 if started else time.time()},
        )
        return None

    def resumed(self, context: Any, run_id: str, event: Mapping[str, Any], adopted: float = 0) -> dict[str, Any] | None:
        """Take up the task when the trigger has fired.

        Args:
            adopted: Unix time at which the run was found active; 0 if this task started it.
        """
        hook = KubeflowHook(self.connection_id)
        self._push_link(hook, run_id, context)
        status = event["status"]
        if status == "ended":
            run = event["run"]
            cancelled = parse_moment(run["cancelled_at"], float("inf"))
            if adopted and cancelled < adopted + SECONDS_TO_BE_STOPPED:
                self.log.info("run %s was being stopped when this task found it; starting another", run_id)
                return self.execute(context)
            return self._conclude(run)
        if status == "vanished":
            raise AirflowException(event["message"])
        if status == "late":
            end = "was stopped" if hook.terminate(run_id) else "has ended since"
            raise AirflowFailException(f"run {run_id} took more than {self.limit}; it {end}")
        raise AirflowException(f"run {run_id}: Kubeflow gave no answer for {self.patience}: {event['message']}")

    def on_kill(self) -> None:
        """Stop the run if the task is killed before it is deferred; after that, the trigger's `on_kill` does it."""
        if self._launched is not None:
            hook, run_id = self._launched
            hook.terminate(run_id)

    def _push_link(self, hook: KubeflowHook, run_id: str, context: Any) -> None:
        self.link = hook.address.link(run_id)
        context["ti"].xcom_push(key=LINK_KEY, value=self.link)
        context["ti"].xcom_push(key="kubeflow_run_id", value=run_id)

    def _conclude(self, run: dict[str, Any]) -> dict[str, Any]:
        """Return a successful run; raise what its own record says of another, else what its nodes show."""
        record: dict[str, Any] = {}
        if run["state"] != "SUCCEEDED":
            try:
                record = find_record(run["run_id"])
            except httpx.HTTPError as error:
                self.log.warning("MLflow cannot be asked how run %s ended: %s", run["run_id"], error)
        kind, message = explain_end(run, record)
        if kind in ("cancelled", "refused"):
            raise AirflowFailException(f"{message}. {run['link']}")
        if kind == "failed" and not record and (run["failure"] or {}).get("refused") is None:
            raise AirflowFailException(f"{message}. {run['link']}. {UNKNOWN}")
        if kind == "failed":
            raise AirflowException(f"{message}. {run['link']}")
        return run


class LocalRunOperator(BaseOperator):
    """Run `hardcase … --json` of the project's own environment as a process, and give back what it prints.

    Exit codes are the README's: 1 may be tried again and continues where it was, 2 may not, 3 (rejected by the gate) is
    a result.

    Args:
        program: the executable; `$HARDCASE_BIN`, the repository's, or that of the path by default.
    """

    template_fields: Sequence[str] = ("arguments", "program", "folder")
    ui_color = "#e6f4ea"
    results: ClassVar[frozenset[int]] = frozenset({0, 3})

    def __init__(self, *, arguments: Any, program: str = "", folder: str = "", **more: Any) -> None:
        super().__init__(**more)
        self.arguments = arguments
        self.program = program
        self.folder = folder
        self._process: subprocess.Popen[str] | None = None

    def execute(self, context: Any) -> dict[str, Any]:
        """Start it, pass on what it says, and wait."""
        command = [hardcase_program(self.program), *(str(each) for each in self.arguments), "--json"]
        self.log.info("%s", " ".join(command))
        self._process = process = subprocess.Popen(
            command,
            cwd=self.folder or REPOSITORY,
            env={**hardcase_environment(), "HARDCASE_WHO": f"airflow {context['ti'].dag_id} {context['run_id']}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # a group of its own, so that its steps end with it
        )
        words = threading.Thread(target=self._pass_on, args=(process.stderr,), daemon=True)
        words.start()
        try:
            printed = cast("IO[str]", process.stdout).read()
            code = process.wait()
            words.join(timeout=5)
        finally:
            if process.poll() is None:
                self.on_kill()
        return self._concluded(printed, code)

    def on_kill(self) -> None:
        """End the process and its steps; hard, if they do not. Called from a signal handler, so it does not wait."""
        if (process := self._process) is None or process.poll() is not None:
            return
        self.log.warning("stopping process %d and its steps", process.pid)
        _signal_group(process.pid, signal.SIGTERM)
        last = threading.Timer(SECONDS_TO_END, _signal_group, (process.pid, signal.SIGKILL))
        last.daemon = True
        last.start()

    def _pass_on(self, stream: Any) -> None:
        for line in stream:
            if line.strip():
                self.log.info("%s", line.rstrip())

    def _concluded(self, printed: str, code: int) -> dict[str, Any]:
        lines = printed.strip().splitlines()
        try:
            result = json.loads(lines[-1]) if lines else {}
        except ValueError:
            result = {}
        if code in self.results and result:
            return {**result, "exit_code": code}
        error = result.get("error") or {}
        message = str(error.get("message") or f"hardcase ended with {code} and printed no result")
        if error.get("step") and not message.startswith(error["step"]):
            message = f"{error['step']}: {message}"
        if code < 0 or code == 128 + signal.SIGTERM:  # the latter in order
            name = signal.Signals(abs(code) % 128).name
            raise AirflowException(f"hardcase was stopped by {name}; a retry goes on from there")
        raise (AirflowFailException if code == 2 else AirflowException)(message)


def hardcase_environment() -> dict[str, str]:
    """Return the environment of a process of the project's: nothing of Airflow's own, safe imports."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}
    return {**own, "PYTHONSAFEPATH": "1"}


def named_program(named: str = "") -> str:
    """Return the executable of the project's own environment, there or not; empty if there is none here.

    The script `hardcase` in Airflow's environment does not work: the package is there without its dependencies.
    """
    own = REPOSITORY / ".venv" / "bin" / "hardcase"
    if named := named or os.environ.get("HARDCASE_BIN", "") or (str(own) if own.is_file() else ""):
        return named
    airflows = Path(sys.executable).parent.resolve()
    folders = [folder for folder in os.get_exec_path() if Path(folder).resolve() != airflows]
    return shutil.which("hardcase", path=os.pathsep.join(folders)) or ""


def hardcase_program(named: str = "") -> str:
    """Return the same executable, which must be there."""
    program = named_program(named)
    if not program or shutil.which(program) is None:
        raise AirflowFailException(
            f"{program or 'hardcase'}: no such program; set HARDCASE_BIN to that of its environment"
        )
    return program


def _signal_group(leader: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(leader, number)
