"""An Airflow provider for hardcase: a connection type `kubeflow`, its hook, a deferrable operator and a local one."""

from importlib.metadata import version
from typing import Any


def get_provider_info() -> dict[str, Any]:
    """What Airflow asks of a provider."""

    def field(label: str, kind: str, description: str, **more: Any) -> dict[str, Any]:
        return {"label": label, "schema": {"type": [kind, "null"], **more}, "description": description}

    return {
        "package-name": "hardcase-airflow-provider",
        "name": "hardcase",
        "description": "Kubeflow Pipelines over its REST API, and hardcase on this machine.",
        "versions": [version("hardcase-airflow-provider")],
        "connection-types": [
            {
                "connection-type": "kubeflow",
                "hook-class-name": "hardcase_provider.hooks.KubeflowHook",
                "hook-name": "Kubeflow Pipelines",
                "ui-field-behaviour": {
                    "hidden-fields": ["login"],
                    "relabeling": {"password": "Bearer token", "schema": "http or https"},
                },
                "conn-fields": {
                    "engine": field("Engine", "string", "kubeflow, or local: this machine's own.", default="kubeflow"),
                    "namespace": field("Namespace", "string", "Of the profile, where Kubeflow has several users."),
                    "experiment": field("Experiment", "string", "That runs belong to; made if there is none."),
                    "token_file": field("Token file", "string", "Read at each request; the projected one by default."),
                    "ui": field("Address of the UI", "string", "For links to runs; the API's own by default."),
                    "ca": field("CA bundle", "string", "File of certificates to trust; the system's by default."),
                    "timeout": field("Time-out", "integer", "Of one request, in seconds.", default=30),
                },
            }
        ],
        "extra-links": ["hardcase_provider.operators.KubeflowRunLink"],
    }
