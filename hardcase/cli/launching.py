"""What `hardcase launch` does: connect to Kubeflow, send an order, watch the run."""

import json
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import typer

from hardcase.cli.cron import parse_cron
from hardcase.cli.forwarding import forward
from hardcase.cli.package import Package, load_package, parse_parameters, replace_images
from hardcase.cli.watching import Account, Board
from hardcase.config import load_profile
from hardcase.errors import HardcaseError, InputError
from hardcase.kubeflow.address import (
    IN_CLUSTER,
    Absent,
    Address,
    Gone,
    KubeflowError,
    Refused,
    Unreachable,
    check_token,
    find_address,
    parse_url,
    projected_token,
)
from hardcase.kubeflow.client import Client, Rehearsal
from hardcase.kubeflow.launching import Order, launch_package
from hardcase.kubeflow.watching import watch
from hardcase.provenance.signing import KEYS
from hardcase.registry.mirror import Mirror
from hardcase.steps.preflight import refused
from hardcase.store.store import Store, open_store

TOKEN: Final = "HARDCASE_KFP_TOKEN"  # noqa: S105  a name
REMEDIES: Final = {
    "host": "fix --host",
    "token": f"renew it in --token-file or {TOKEN}",
    "ca": "name its authority by --ca",
    "namespace": "say --namespace NAME, or --namespace '' where there is only one user",
}


class Interrupted(HardcaseError):
    """By Ctrl-C."""

    exit_code = 130


def translate(error: KubeflowError) -> HardcaseError:
    """Return an error of the client as one of the command line, with the option to correct."""
    remedy = f"; {REMEDIES[error.about]}" if error.about else ""
    at_fault = isinstance(error, Refused | Absent) and not isinstance(error, Gone)
    return (InputError if at_fault else HardcaseError)(f"{error}{remedy}")


@contextmanager
def translated() -> Iterator[None]:
    """Turn an error of the client into one of the command line."""
    try:
        yield
    except KubeflowError as error:
        raise translate(error) from error


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How Kubeflow is reached: the options of the command line."""

    host: str = ""  # URL of the API
    port_forward: bool = False  # reach it by kubectl
    context: str = ""  # of kubectl
    in_cluster: bool = False  # this is a pod: use its service and token
    token_file: Path | None = None  # holds the bearer token; else `HARDCASE_KFP_TOKEN` has it, or there is none
    ca: Path | None = None  # certificates to trust
    ui: str = ""  # base of links
    namespace: str = ""  # of the user; empty for an installation for one user

    def find_address(self, host: str = "", **more: Any) -> Address:
        """Return the address of the API.

        Raises:
            InputError: the options name no host, or no file of certificates.
            Refused: it is no address, has no token where it should, or would send one by plain http.
        """
        host = host or self.host or (IN_CLUSTER if self.in_cluster else "")
        if not host:
            raise InputError("no host: say --host URL, --port-forward or --in-cluster, or set HARDCASE_KFP_HOST")
        if self.ca and not self.ca.is_file():
            raise InputError(f"--ca {self.ca}: no such file; name certificates in PEM")
        file = str(self.token_file or "") or (projected_token() if self.in_cluster else "")
        more |= {"ui": self.ui, "ca": str(self.ca or ""), "namespace": self.namespace, "token_file": file}
        token = "" if file else os.environ.get(TOKEN, "").strip()
        more["token"] = token and check_token(token, TOKEN)
        address = find_address(host, in_cluster=self.in_cluster, **more)
        address.headers()  # it is better to miss the token now than in the middle
        return address

    @contextmanager
    def opened(self) -> Iterator[Client]:
        """Connect, as long as the context lasts."""
        if not self.port_forward:
            yield Client(self.find_address())
            return
        with forward(self.context) as forwarding:
            yield Client(self.find_address(f"http://127.0.0.1:{forwarding.port}", before=forwarding.keep))

    @property
    def again(self) -> str:
        """The options by which it is reached again."""
        forward = "--port-forward" + (f" --context {self.context}" if self.context else "")
        said = [forward if self.port_forward else f"--host {self.host}" if self.host else ""]
        said += [f"--{name} {value}" for name, value in (("token-file", self.token_file), ("ca", self.ca)) if value]
        return " ".join(filter(None, [*said, "--in-cluster" if self.in_cluster else ""]))


def build_order(
    pipeline: str, images: Sequence[str], given: Sequence[str], *, key: str = "", schedule: str = "", **more: Any
) -> tuple[Package, Order]:
    """Return the package and the order that the command line describes."""
    package = replace_images(load_package(pipeline), images)
    made_up = package.name if schedule else f"{package.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    cron = parse_cron(schedule) if schedule else ""
    parameters = parse_parameters(package, given)
    check_profile(package, parameters)
    return package, Order(key=key or made_up, parameters=parameters, cron=cron, **more)


def open_outcome(uri: str | None, mlflow: str, *, ask: bool) -> Store | None:
    """Return the store, if one is named, that the outcome of a run is read from, unless MLflow is asked.

    Raises:
        InputError: one of them is no store or MLflow, or, if the store is asked, does not let itself be listed.
    """
    if mlflow:
        Mirror(mlflow)
    store = open_store(uri, create=False) if uri else None
    if store and ask:
        with refused():
            store.list_names(KEYS)
    return store


def check_profile(package: Package, parameters: Mapping[str, Any]) -> None:
    """Refuse a profile and settings that the first step of a retraining would refuse."""
    asked = {**{name: definition.get("defaultValue") for name, definition in package.inputs.items()}, **parameters}
    if set(asked) != {"profile", "source", "seed", "settings"}:
        return  # another pipeline
    own = {name: asked[name] for name in ("source", "seed") if asked[name]}
    profile = load_profile(asked["profile"], {**asked["settings"], **own})
    if (steps := profile.vllm_steps) and not profile.cluster.gpu_memory:
        raise InputError(f"{steps[0]}.engine is vllm, which needs GPUs; set cluster.gpu_memory, or it to transformers")


def describe_order(package: Package, order: Order, namespace: str) -> dict[str, Any]:
    """Return an order for programs."""
    facts = {name: getattr(order, name) for name in ("key", "experiment", "service_account", "parameters")}
    facts |= {"schedule": order.cron, "max_concurrency": order.concurrency} if order.cron else {}
    loose = [
        f"image {image} is not pinned by digest: what runs may change; say --image {image}=…" for image in package.loose
    ]
    about = {"pipeline": package.name, "version": package.version, "images": package.images, "warnings": loose}
    return {**about, "namespace": namespace, **facts}


def send(package: Package, order: Order, client: Client) -> Any:
    """Launch an order; return what `launch_package` returns."""
    flow = launch_package(order, package.name, package.content, package.description, client.address)
    return client.run(flow)


def rehearse(package: Package, order: Order, host: str, namespace: str) -> dict[str, Any]:
    """Return what would be sent to a Kubeflow that has none of it yet, without contacting it."""
    client = Rehearsal(Address(parse_url(host) if host else "", namespace=namespace))
    send(package, order, client)
    return {**describe_order(package, order, namespace), "host": client.address.url, "requests": client.sent}


def send_order(package: Package, order: Order, client: Client) -> dict[str, Any]:
    """Send an order, and return what came of it.

    Raises:
        Unreachable: it may have been carried out nevertheless; the message says how to find out.
        Interrupted: the same.
    """
    again = f"what was started is found by launching again with --key {order.key}"
    try:
        done = send(package, order, client)
    except Absent:
        raise
    except Unreachable as error:
        raise Unreachable(f"{error}; {again}") from error
    except KeyboardInterrupt as error:
        raise Interrupted(f"interrupted; {again}") from error
    address = client.address
    facts = describe_order(package, order, address.namespace)
    facts |= {"version_id": done.version["pipeline_version_id"], "uploaded": done.uploaded}
    if order.cron:
        schedule = done.thing["recurring_run_id"]
        link = address.link(schedule, "recurringrun")
        return {**facts, "recurring_run_id": schedule, "changed": done.created, "link": link}
    run_id = done.thing["run_id"]
    return {**facts, "run_id": run_id, "started": done.created, "link": address.link(run_id)}


def watch_run(
    run_id: str,
    client: Client,
    *,
    again: str,
    store: Store | None = None,
    mlflow: str = "",
    poll: float = 5,
) -> dict[str, Any]:
    """Follow a run until it ends, or we must leave it.

    Returns:
        What `Account.conclude` returns, or only `error` if the run was left before its end.
    """
    account = Account(client, store, mlflow)
    left = f"; run {run_id} goes on: hardcase launch --attach {run_id} {again}".rstrip()
    try:
        with Board(account.look) as board:
            run = client.run(watch(run_id, client.address, poll), board.see)
        return account.conclude(run)
    except KubeflowError as error:
        translated = translate(error)
        left = "" if isinstance(error, Refused) and error.status == 404 else left
    except HardcaseError as error:
        translated = error
    except KeyboardInterrupt:
        translated = Interrupted("interrupted")
    return {"error": {"message": f"{translated}{left}", "exit_code": translated.exit_code}}


def show_order(facts: Mapping[str, Any]) -> None:
    """Print what would be sent, for people."""
    for name in ("host", "pipeline", "version", "key", "schedule", "namespace", "experiment", "service_account"):
        if facts.get(name):
            typer.echo(f"{name.replace('_', ' '):<16} {facts[name]}")
    for name, value in facts["parameters"].items():
        typer.echo(f"{'parameter':<16} {name} = {json.dumps(value)}")
    for image in sorted(set(facts["images"].values())):
        runs = ", ".join(sorted(name for name, each in facts["images"].items() if each == image))
        typer.echo(f"{'image':<16} {image} in {runs}")
    for request in facts["requests"]:
        query = "".join(f" {name}={value}" for name, value in request["query"].items())
        body = f" {json.dumps(request['body'])}" if request["body"] else ""
        typer.echo(f"{request['method']:<16} {request['path']}{query}{body}")


def show_sent(facts: Mapping[str, Any]) -> None:
    """Print what was sent, for people."""
    typer.echo(f"version {facts['version']}: {'uploaded' if facts['uploaded'] else 'there already'}")
    if "recurring_run_id" in facts:
        typer.echo(f"schedule {facts['key']} ({facts['schedule']}): {'set' if facts['changed'] else 'as it was'}")
    else:
        typer.echo(f"run {facts['run_id']}: {'started' if facts['started'] else 'there already'}, key {facts['key']}")
    typer.echo(facts["link"])
