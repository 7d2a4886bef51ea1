"""Airflow on one machine, its four components apart, on loopback only, with SQLite.

Airflow's own `standalone` leaves its children behind at SIGTERM; here each component leads a process group of its own
and is ended by it. One that dies is started again, so a wait in the triggerer goes on.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from base64 import urlsafe_b64encode
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

REPOSITORY: Final = Path(__file__).resolve().parents[2]
COMPONENTS: Final = ("api-server", "scheduler", "dag-processor", "triggerer")
RESTARTS: Final = 5
SECONDS_TO_END: Final = 20
# How long one component waits for another's writing; SQLite's five are too few on a busy machine.
SECONDS_LOCKED: Final = 60


def environment(home: Path, port: int) -> dict[str, str]:
    """What all components find in their environment."""
    url = f"http://127.0.0.1:{port}"
    settings = {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__API__BASE_URL": url,
        "AIRFLOW__API__HOST": "127.0.0.1",
        "AIRFLOW__API__PORT": str(port),
        "AIRFLOW__API__SECRET_KEY": secret(home / "secrets" / "api"),
        "AIRFLOW__API__WORKERS": "1",
        "AIRFLOW__API_AUTH__JWT_SECRET": secret(home / "secrets" / "jwt"),
        "AIRFLOW__CORE__AUTH_MANAGER": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
        "AIRFLOW__CORE__DAGS_FOLDER": str(REPOSITORY / "dags"),
        "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
        "AIRFLOW__CORE__EXECUTOR": "LocalExecutor",
        "AIRFLOW__CORE__FERNET_KEY": secret(home / "secrets" / "fernet"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__PARALLELISM": "4",
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": "admin:admin",
        "AIRFLOW__DAG_PROCESSOR__REFRESH_INTERVAL": "30",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{home / 'airflow.db'}?timeout={SECONDS_LOCKED}",
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
        "AIRFLOW__SCHEDULER__ENABLE_HEALTH_CHECK": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "DO_NOT_TRACK": "1",
        "PYTHONSAFEPATH": "1",
    }
    chosen = {"AIRFLOW_CONN_KUBEFLOW_DEFAULT": '{"conn_type": "kubeflow", "extra": {"engine": "local"}}'}
    return {**chosen, **os.environ, **settings}


def secret(path: Path) -> str:
    """Of 32 bytes, made at the first start, for its owner only."""
    if not path.is_file():
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            file.write(urlsafe_b64encode(secrets.token_bytes(32)).decode())
    return path.read_text(encoding="utf-8")


class Served:
    """The components, while they run."""

    def __init__(self, home: Path, port: int) -> None:
        self.home, self.port = home, port
        self.environment = environment(home, port)
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self.restarts = dict.fromkeys(COMPONENTS, 0)

    def airflow(self, *arguments: str, log: str) -> subprocess.Popen[bytes]:
        """Start a command of Airflow's, in a group of its own, its output in a log."""
        path = self.home / "logs" / f"{log}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as file:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "airflow", *arguments],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def start(self, name: str) -> None:
        """Start a component."""
        # Logs lie where the API server finds them; the servers of logs would listen on every address.
        more: tuple[str, ...] = ("--skip-serve-logs",) if name in ("scheduler", "triggerer") else ()
        if name == "api-server":
            more = ("--host", "127.0.0.1", "--port", str(self.port))
        self.running[name] = self.airflow(name, *more, log=name)
        (self.home / f"{name}.pid").write_text(f"{self.running[name].pid}\n", encoding="utf-8")

    def healthy(self) -> bool:
        """Whether the API answers."""
        with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api/v2/version", timeout=2):
            return True
        return False

    def watch(self) -> None:
        """Start again what died; give up on what dies again and again."""
        for name, process in self.running.items():
            if (code := process.poll()) is None:
                continue
            self.restarts[name] += 1
            if self.restarts[name] > RESTARTS:
                raise SystemExit(f"{name} ended {RESTARTS} times; see {self.home / 'logs' / name}.log")
            say(f"{name} ended with {code}; starting it again")
            _end_group(process, signal.SIGKILL)
            self.start(name)

    def stop(self) -> None:
        """End all, and what they started, by their ids; hard, if they do not."""
        for process in self.running.values():
            _end_group(process, signal.SIGTERM)
        end = time.monotonic() + SECONDS_TO_END
        for process in self.running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, end - time.monotonic()))
        for name, process in self.running.items():
            _end_group(process, signal.SIGKILL)
            process.wait()
            (self.home / f"{name}.pid").unlink(missing_ok=True)


def main() -> None:
    """Serve until Ctrl-C or SIGTERM."""
    home = Path(os.environ.get("AIRFLOW_HOME") or REPOSITORY / ".airflow").absolute()
    port = int(os.environ.get("PORT") or 8080)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise SystemExit(f"port {port} is taken; name another: make airflow PORT=8081") from None
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    (home / ".gitignore").write_text("*\n", encoding="utf-8")
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _asked_to_stop)
    served = Served(home, port)
    try:
        say("preparing the database")
        served.running["migrate"] = served.airflow("db", "migrate", log="migrate")
        if served.running["migrate"].wait():
            raise SystemExit(f"the database could not be prepared; see {home / 'logs' / 'migrate.log'}")
        del served.running["migrate"]
        for name in COMPONENTS:
            served.start(name)
        announced = False
        while True:
            time.sleep(1)
            served.watch()
            if not announced and (announced := served.healthy()):
                passwords = home / "simple_auth_manager_passwords.json.generated"
                say(f"Airflow is at http://127.0.0.1:{port} (user admin, password in {passwords}); Ctrl-C stops it")
    except KeyboardInterrupt:
        say("stopping")
    finally:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        served.stop()


def say(words: str) -> None:
    """Print words at once, also where the output is no terminal."""
    print(words, flush=True)


def _asked_to_stop(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _end_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


if __name__ == "__main__":
    main()
