"""What `hardcase launch` does.

Put together of what is sent (`package`, `sending`), how Kubeflow is reached (`client`), and what comes of it
(`following`).
"""

import json
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import typer

from hardcase.errors import HardcaseError
from hardcase.kubeflow.client import Absent, Address, Client, Rehearsal, Unreachable, address_of, url_of
from hardcase.kubeflow.following import Account, Board, Gone, follow
from hardcase.kubeflow.forwarding import forward
from hardcase.kubeflow.package import load_package, typed, with_images
from hardcase.kubeflow.sending import Kubeflow, Order, cron_of
from hardcase.store.store import Store


class Interrupted(HardcaseError):
    """By Ctrl-C."""

    exit_code = 130


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How Kubeflow is reached: the options of the command line.

    Attributes:
        host: URL of the API.
        port_forward: reach it by kubectl.
        context: of kubectl.
        in_cluster: this is a pod.
        token_file: with the bearer token.
        ca: certificates to trust.
        ui: base of links.
    """

    host: str = ""
    port_forward: bool = False
    context: str = ""
    in_cluster: bool = False
    token_file: Path | None = None
    ca: Path | None = None
    ui: str = ""

    @contextmanager
    def opened(self) -> Iterator[Address]:
        """The address, as long as the context lasts."""
        logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # it tells of each attempt; we, of the last
        more: Any = {"ui": self.ui, "token_file": self.token_file, "in_cluster": self.in_cluster, "ca": self.ca}
        if not self.port_forward:
            yield address_of(self.host, **more)
            return
        with forward(self.context) as forwarding:
            yield address_of(f"http://127.0.0.1:{forwarding.port}", **more, keep=forwarding.keep)

    @property
    def again(self) -> str:
        """The options by which it is reached again."""
        forward = "--port-forward" + (f" --context {self.context}" if self.context else "")
        said = [forward if self.port_forward else f"--host {self.host}" if self.host else ""]
        said += [f"--{name} {value}" for name, value in (("token-file", self.token_file), ("ca", self.ca)) if value]
        return " ".join(filter(None, [*said, "--in-cluster" if self.in_cluster else ""]))


def build_order(
    pipeline: str, images: Sequence[str], given: Sequence[str], *, key: str, schedule: str, **more: Any
) -> Order:
    """Return the order that the command line describes.

    Args:
        pipeline: name or file of the compiled pipeline.
        images: of the form `IMAGE=REFERENCE`.
        given: parameters of the form `name=value`.
        key: name of the run or the schedule; made up if empty.
        schedule: cron; empty for now.
        more: what else `Order` takes.
    """
    package = with_images(load_package(pipeline), images)
    made_up = package.name if schedule else f"{package.name}-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(2)}"
    cron = cron_of(schedule) if schedule else ""
    return Order(package=package, parameters=typed(package, given), key=key or made_up, cron=cron, **more)


def describe_order(order: Order) -> dict[str, Any]:
    """Return an order for programs."""
    package = order.package
    facts = {name: getattr(order, name) for name in ("key", "namespace", "experiment", "service_account", "parameters")}
    facts |= {"schedule": order.cron, "max_concurrency": order.concurrency} if order.cron else {}
    loose = [
        f"image {image} is not pinned by digest: what runs may change; say --image {image}=…" for image in package.loose
    ]
    return {"pipeline": package.name, "version": package.version, "images": package.images, "warnings": loose, **facts}


def rehearse(order: Order, host: str) -> dict[str, Any]:
    """Return what would be sent to a Kubeflow that has none of it yet; nobody is contacted."""
    client = Rehearsal(Address(url_of(host) if host else ""))
    Kubeflow(client).launch(order)
    return {**describe_order(order), "host": client.address.url, "requests": [asdict(each) for each in client.sent]}


def send_order(order: Order, address: Address) -> dict[str, Any]:
    """Send an order, and return what came of it.

    Raises:
        HardcaseError: it may have been carried out nevertheless; the message says how to find out.
    """
    try:
        done = Kubeflow(Client(address)).launch(order)
    except Absent:
        raise
    except (Unreachable, KeyboardInterrupt) as error:
        kind = type(error) if isinstance(error, Unreachable) else Interrupted
        again = f"what was started is found by launching again with --key {order.key}"
        raise kind(f"{str(error) or 'interrupted'}; {again}") from error
    facts = {**describe_order(order), "version_id": done.version.pipeline_version_id, "uploaded": done.uploaded}
    if done.run is None:
        link = address.link("recurringrun", done.schedule)
        return {**facts, "recurring_run_id": done.schedule, "changed": done.changed, "link": link}
    return {**facts, "run_id": done.run.run_id, "started": done.started, "link": address.link("runs", done.run.run_id)}


def watch_run(
    run_id: str,
    address: Address,
    *,
    again: str,
    store: Store | None = None,
    mlflow: str = "",
    namespace: str = "",
    poll: float = 5,
) -> dict[str, Any]:
    """Follow a run until it ends, or we must leave it.

    Args:
        run_id: of the run.
        address: where it is.
        again: options by which it is reached again.
        store: where its steps leave records.
        mlflow: URL of MLflow, which knows the outcome of runs.
        namespace: of the run's pods.
        poll: seconds between looks.

    Returns:
        What `Account.conclude` says, or only `error` if the run was left before its end.
    """
    kubeflow = Kubeflow(Client(address))
    account = Account(kubeflow, store, mlflow, namespace)
    try:
        with Board(account.look) as board:
            run = follow(kubeflow, run_id, board, poll)
        return account.conclude(run)
    except (HardcaseError, KeyboardInterrupt) as error:
        code = error.exit_code if isinstance(error, HardcaseError) else Interrupted.exit_code
        message = str(error) or "interrupted"
        if not isinstance(error, Gone):
            message += f"; run {run_id} goes on: hardcase launch --attach {run_id} {again}".rstrip()
        return {"error": {"message": message, "exit_code": code}}


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
