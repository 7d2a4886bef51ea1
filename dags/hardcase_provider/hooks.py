"""Kubeflow Pipelines as an Airflow hook: a connection, and the rules of `hardcase.kubeflow`."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from airflow.sdk import BaseHook
from airflow.sdk.exceptions import AirflowNotFoundException

from hardcase.kubeflow.address import Address, KubeflowError, Refused, find_address, projected_token
from hardcase.kubeflow.client import Client
from hardcase.kubeflow.launching import (
    Order,
    check_namespace,
    check_parameters,
    find_newest_version,
    launch,
    list_inputs,
    terminate,
    upload,
)

DEFAULT_CONNECTION: Final = "kubeflow_default"
# With a pause of one second these attempts take four minutes, which is longer than a restart of the API server.
CONNECTION_ATTEMPTS: Final = 10
REMEDIES: Final = {
    "host": "see the connection's host",
    "token": "see the connection's password or token file",
    "ca": "name its authority in the connection's CA bundle",
    "namespace": "see the connection's namespace",
}


def read_address(connection: Any) -> Address:
    """Read a connection of type `kubeflow`.

    Raises:
        Refused: it is no address, or would send a token by plain http.
    """
    more = connection.extra_dejson
    if not connection.host:
        raise Refused(f"connection {connection.conn_id!r}: no host; name that of Kubeflow's API")
    file = str(more.get("token_file") or "") or (projected_token() if Path(projected_token()).is_file() else "")
    return find_address(
        url_of(connection),
        token=connection.password or "",
        token_file=file,
        in_cluster=True,
        timeout=float(more.get("timeout") or 30),
        pause=float(more.get("pause") or 1),
        connection_attempts=CONNECTION_ATTEMPTS,
        **{name: str(more.get(name) or "") for name in ("namespace", "ui", "ca")},
    )


def url_of(connection: Any) -> str:
    """Return the URL of a connection, whose host may name a scheme (`https` if not) and a path."""
    host = connection.host.rstrip("/")
    scheme, _, rest = (host if "://" in host else f"{connection.schema or 'https'}://{host}").partition("://")
    name, slash, path = rest.partition("/")
    return f"{scheme}://{name}{f':{connection.port}' if connection.port else ''}{slash}{path}"


def explain(error: KubeflowError) -> str:
    """Return the message of an error, with the field of the connection that is at fault."""
    return f"{error}; {REMEDIES[error.about]}" if error.about else str(error)


def choose_engine(wanted: str) -> str:
    """Return `kubeflow` or `local` as wanted; `auto` is what the default connection names, and `local` without one."""
    if wanted != "auto":
        return wanted
    try:
        connection = BaseHook.get_connection(DEFAULT_CONNECTION)
    except AirflowNotFoundException:
        return "local"
    return str(connection.extra_dejson.get("engine") or "kubeflow")


class KubeflowHook(BaseHook):
    """Kubeflow Pipelines."""

    conn_name_attr = "connection_id"
    default_conn_name = DEFAULT_CONNECTION
    conn_type = "kubeflow"
    hook_name = "Kubeflow Pipelines"

    def __init__(
        self, connection_id: str = DEFAULT_CONNECTION, address: Address | None = None, experiment: str = ""
    ) -> None:
        super().__init__()
        self.connection_id = connection_id
        self.experiment = experiment
        self._client = Client(address) if address else None

    @property
    def client(self) -> Client:
        """Return the client; the connection is read once."""
        if self._client is None:
            connection = self.get_connection(self.connection_id)
            self.experiment = self.experiment or str(connection.extra_dejson.get("experiment") or "")
            self._client = Client(read_address(connection))
        return self._client

    @property
    def address(self) -> Address:
        """Return where Kubeflow is."""
        return self.client.address

    def test_connection(self) -> tuple[bool, str]:
        """Test the connection for the button of its form, without a pause between attempts."""
        try:
            Client(replace(self.address, pause=0)).ask("GET", "healthz")
        except KubeflowError as error:
            return False, explain(error)
        except Exception as error:
            return False, str(error)
        return True, "Kubeflow answers"

    def version(self, name: str, package: str = "") -> dict[str, Any]:
        """Return the version of a pipeline to run: that of the package (a file), or the newest there is.

        Raises:
            Refused: there is none.
        """
        if not package:
            return self.client.run(find_newest_version(name, self.address))
        path = Path(package)
        if not path.is_file():
            raise Refused(f"{path}: no such file; name the compiled pipeline, or none", 404)
        content = path.read_bytes()
        check_package(content, path)
        version, _ = self.client.run(upload(name, content, self.address))
        return version

    def launch(
        self, key: str, version: Mapping[str, Any], parameters: Mapping[str, Any], account: str = ""
    ) -> tuple[dict[str, Any], bool]:
        """Start one run for one idempotency key, or find it.

        Returns:
            the run, and whether this call started it.
        """
        check_parameters(str(version.get("display_name")), list_inputs(version), parameters)
        self.client.run(check_namespace(self.address))
        order = Order(key=key, parameters=parameters, experiment=self.experiment, service_account=account)
        launched = self.client.run(launch(order, version, self.address))
        return launched.thing, launched.created

    def terminate(self, run_id: str) -> bool:
        """Stop a run, unless it has ended or is gone; return whether it was active."""
        return self.client.run(terminate(run_id, self.address))


def check_package(content: bytes, path: Path) -> None:
    """Check that a file is a compiled pipeline before it is sent.

    The API server reads a file that is no YAML for ever (kubeflow/pipelines 2.17.0,
    backend/src/apiserver/template/template.go:75).

    Raises:
        Refused: it is not.
    """
    import yaml

    try:
        spec = [*yaml.load_all(content, getattr(yaml, "CSafeLoader", yaml.SafeLoader)), None][0]
    except (yaml.YAMLError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise Refused(f"{path}: not YAML ({reason}); `hardcase compile` writes a pipeline", 400) from error
    if not isinstance(spec, dict) or not {"pipelineInfo", "root", "deploymentSpec"} <= set(spec):
        raise Refused(f"{path}: not a compiled pipeline; `hardcase compile` writes a pipeline", 400)
