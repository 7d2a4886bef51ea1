"""The command `hardcase launch`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from hardcase.cli.console import AsJson, StoreUri, errors, reported
from hardcase.cli.settings import parse_settings
from hardcase.errors import InputError

REACH, SENT = "How Kubeflow is reached", "What is sent"
NAMESPACE = "hardcase"  # of infra/kubernetes


def launch(
    host: Annotated[
        str, typer.Option(envvar="HARDCASE_KFP_HOST", help="URL of Kubeflow Pipelines.", rich_help_panel=REACH)
    ] = "",
    port_forward: Annotated[
        bool, typer.Option("--port-forward", help="Reach it by kubectl port-forward.", rich_help_panel=REACH)
    ] = False,
    context: Annotated[str, typer.Option(help="Of kubectl, for --port-forward.", rich_help_panel=REACH)] = "",
    in_cluster: Annotated[
        bool, typer.Option("--in-cluster", help="This is a pod: use its service and token.", rich_help_panel=REACH)
    ] = False,
    token_file: Annotated[
        Path | None,
        typer.Option(
            envvar="HARDCASE_KFP_TOKEN_FILE",
            help="With the bearer token; or set HARDCASE_KFP_TOKEN.",
            rich_help_panel=REACH,
        ),
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="Certificates to trust, in PEM.", rich_help_panel=REACH)] = None,
    ui: Annotated[
        str, typer.Option(envvar="HARDCASE_KFP_UI", help="Base of links, if not the host.", rich_help_panel=REACH)
    ] = "",
    namespace: Annotated[
        str, typer.Option(help="Of the user; '' where Kubeflow has only one.", rich_help_panel=REACH)
    ] = NAMESPACE,
    pipeline: Annotated[
        str, typer.Option(help="Compiled pipeline: name in pipelines/, or a YAML file.", rich_help_panel=SENT)
    ] = "retraining",
    images: Annotated[
        list[str] | None,
        typer.Option("--image", help="Another image: IMAGE=REPOSITORY@sha256:DIGEST.", rich_help_panel=SENT),
    ] = None,
    given: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="Of the pipeline: name=value.", rich_help_panel=SENT),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="A key of the profile, as in `run`: sft.steps=100.", rich_help_panel=SENT),
    ] = None,
    profile: Annotated[str | None, typer.Option(help="As -p profile=…", rich_help_panel=SENT)] = None,
    source: Annotated[str | None, typer.Option(help="As -p source=…", rich_help_panel=SENT)] = None,
    seed: Annotated[str | None, typer.Option(help="As -p seed=…", rich_help_panel=SENT)] = None,
    experiment: Annotated[str, typer.Option(help="That the run belongs to.", rich_help_panel=SENT)] = "hardcase",
    service_account: Annotated[
        str, typer.Option(help="Of the run's pods; Kubeflow's default if empty.", rich_help_panel=SENT)
    ] = "pipeline-runner",
    key: Annotated[
        str, typer.Option(help="Name of the run or schedule; launched again, it is found.", rich_help_panel=SENT)
    ] = "",
    schedule: Annotated[
        str, typer.Option(metavar="CRON", help="Run it again and again, in UTC: '0 3 * * 1'.", rich_help_panel=SENT)
    ] = "",
    max_concurrency: Annotated[int, typer.Option(min=1, max=10, help="Of a schedule.", rich_help_panel=SENT)] = 1,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
    following: Annotated[bool, typer.Option("--follow/--no-follow", help="Wait, and show progress.")] = True,
    attach: Annotated[str, typer.Option(metavar="RUN_ID", help="Launch nothing; follow that run.")] = "",
    poll: Annotated[float, typer.Option(min=0.1, help="Seconds between looks.")] = 5,
    store: StoreUri = None,
    mlflow: Annotated[
        str, typer.Option(envvar="MLFLOW_TRACKING_URI", help="URL of MLflow, to know the outcome without a store.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Run the pipeline on Kubeflow, now or on a schedule, and follow it."""
    from hardcase.cli import launching

    with reported(as_json), launching.translated():
        if attach and (dry_run or schedule or key or given or settings):
            raise InputError("--attach: it launches nothing; leave out --dry-run, --schedule, --key, -p and --set")
        opened_store = launching.open_outcome(store, mlflow, ask=not dry_run)
        facts: dict[str, Any] = {"run_id": attach}
        if not attach:
            own = {"profile": profile, "source": source, "seed": seed}
            own["settings"] = json.dumps(parse_settings(settings)) if settings else None
            package, order = launching.build_order(
                pipeline,
                images or [],
                [*(given or []), *(f"{name}={value}" for name, value in own.items() if value is not None)],
                key=key,
                schedule=schedule,
                concurrency=max_concurrency,
                experiment=experiment,
                service_account=service_account,
            )
            facts = launching.describe_order(package, order, namespace)
            if dry_run:
                facts = launching.rehearse(package, order, host, namespace)
            for warning in facts["warnings"]:
                errors.print("warning:", warning)
        if not dry_run:
            reach = launching.Reach(
                host=host,
                port_forward=port_forward,
                context=context,
                in_cluster=in_cluster,
                token_file=token_file,
                ca=ca,
                ui=ui,
                namespace=namespace,
            )
            with reach.opened() as client:
                if not attach:
                    facts = launching.send_order(package, order, client)
                    if not as_json:
                        launching.show_sent(facts)
                if attach or (following and not schedule):
                    again = [
                        reach.again,
                        *(["--store", store] if store else []),
                        *(["--mlflow", mlflow] if mlflow else []),
                    ]
                    again += [] if namespace == NAMESPACE else [f"--namespace '{namespace}'"]
                    more: Any = {"store": opened_store, "mlflow": mlflow, "poll": poll}
                    facts |= launching.watch_run(facts["run_id"], client, again=" ".join(again), **more)
        elif not as_json:
            launching.show_order(facts)
    for note in facts.get("notes", []):
        errors.print("note:", note)
    if as_json:
        typer.echo(json.dumps(facts))
    if error := facts.get("error"):
        errors.print("error:", " ".join(str(error["message"]).split()))
        raise typer.Exit(error["exit_code"])
    if "state" in facts and not as_json:
        typer.echo(f"run {facts['run_id']} {facts['state'].lower()}")
        if (model := facts.get("model")) and (gate := facts.get("gate")):
            typer.echo(f"{model['name']}:{model['version']} {gate['verdict']}")
