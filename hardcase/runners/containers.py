"""The steps of a local run in containers, through the Docker API of Docker or podman.

The runner is `kfp.local`'s, with the part that runs a container replaced: upstream lets the engine remove a container
at its end, and takes a missing container for one that succeeded (kubeflow/pipelines #13332). Here it is removed only
after its exit code was read. A container has a network only if something that the run needs is remote. Of this machine
it sees the run's home and the paths that the run names, each under its own path.
"""

import codecs
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.errors import ContainerError, DockerException, NotFound
from docker.types import Mount
from kfp import local
from kfp.local import docker_task_handler
from requests import RequestException

from hardcase.database import database_path
from hardcase.errors import InputError
from hardcase.provenance.code import code_digest
from hardcase.runners.home import Home
from hardcase.runtime.running import LIGHT_IMAGE, TRAIN_IMAGE
from hardcase.store.location import parse_local_path

LABEL = "hardcase.home"
PASSED = ("AWS_", "DO_NOT_TRACK", "HARDCASE_", "HF_", "MLFLOW_", "OMP_", "OPENLINEAGE_", "TOKENIZERS_", "WANDB_")
# The launcher's number means nothing to a container, and the image knows its own commit.
WITHHELD = ("HARDCASE_LAUNCHER_PID", "HARDCASE_COMMIT", "HARDCASE_CLEAN")
DIGEST = ("python3", "-P", "-c", "from hardcase.provenance.code import code_digest; print(code_digest())")
FAILURES = (DockerException, RequestException)


@dataclass(frozen=True)
class Inputs:
    """What a run reads besides its home: paths and URIs, and whether a checkpoint is on the Hugging Face hub."""

    uris: tuple[str, ...] = ()
    hub: bool = False


def check(home: Home) -> None:
    """Verify that engine and images are ready; remove containers that a killed launcher left behind in this home."""
    if os.getuid() == 0:
        raise InputError("containers run as you do, and none may run as root: start this as another user")
    try:
        with closing(docker.from_env()) as client:
            for orphan in client.containers.list(all=True, filters={"label": f"{LABEL}={home.root}"}):
                orphan.remove(v=True, force=True)
            for image in (LIGHT_IMAGE, TRAIN_IMAGE):
                _check_image(client, image)
    except FAILURES as error:
        socket = os.environ.get("DOCKER_HOST") or "its default socket"
        raise InputError(
            f"no container engine answers at {socket} ({error}); start Docker, or `podman system service` with "
            "DOCKER_HOST naming its socket"
        ) from error


def _check_image(client: docker.DockerClient, image: str) -> None:
    try:
        # A volume of the image's own would be left behind: docker-py removes the container without it.
        limits = {"network_mode": "none", "tmpfs": {"/cache": ""}}
        output = client.containers.run(client.images.get(image), list(DIGEST), remove=True, **limits)
    except NotFound as error:
        raise InputError(f"image {image}: the container engine has none; run `make images`") from error
    except ContainerError as error:
        raise InputError(f"image {image}: cannot say what code it holds; run `make images`") from error
    if (held := output.decode().strip()) != code_digest():
        raise InputError(f"image {image}: holds code {held[:12]}, not this ({code_digest()[:12]}); run `make images`")


@contextmanager
def open_runner(home: Home, inputs: Inputs) -> Iterator[local.DockerRunner]:
    """Run each step in a container, with the environment that is set here now."""
    with closing(docker.from_env()) as client:
        about = client.info()
    # The engine of a user maps that user to its root, who has no more rights here than the user has.
    rootless = about.get("Rootless") or "name=rootless" in about.get("SecurityOptions", ())
    upstream = docker_task_handler.run_docker_container
    docker_task_handler.run_docker_container = run_container
    try:
        yield local.DockerRunner(
            environment=_environment(home),
            mounts=_mounts(home, inputs),
            network_mode="host" if _needs_network(home, inputs) else "none",
            user="0:0" if rootless else f"{os.getuid()}:{os.getgid()}",
            read_only=True,
            tmpfs={"/tmp": "exec,mode=1777"},  # noqa: S108
            cap_drop=["ALL"],
            security_opt=["no-new-privileges", "label=disable"],  # SELinux would want the user's files relabelled
            shm_size="1g",
            labels={LABEL: str(home.root)},
        )
    finally:
        docker_task_handler.run_docker_container = upstream


def run_container(
    client: docker.DockerClient, image: str, command: list[str], volumes: Mapping[str, Any], **options: Any
) -> int:
    """Run a container with its output on standard output; return its exit code, 1 if the engine failed or lost it.

    `volumes` is what upstream would mount: all of it is in the home. `options` are those of docker's
    `containers.create`.
    """
    try:
        held = client.images.get(image)
        options["environment"] |= {"HARDCASE_IMAGE": (held.attrs.get("RepoDigests") or [held.id])[0]}
        container = client.containers.create(held, command, **options)
        try:
            container.start()
            decoder = codecs.getincrementaldecoder("utf-8")("replace")
            for chunk in container.logs(stream=True, follow=True):
                sys.stdout.write(decoder.decode(chunk))
            code = int(container.wait()["StatusCode"])
        finally:
            container.remove(v=True, force=True)
    except FAILURES as error:
        sys.stdout.write(f"the container engine failed: {error}\n")
        return 1
    if code:
        sys.stdout.write(f"the container of {image} ended with exit code {code}\n")
    return code


def _environment(home: Home) -> dict[str, str]:
    passed = {name: value for name, value in os.environ.items() if name.startswith(PASSED) and name not in WITHHELD}
    return {"HARDCASE_CACHE": str(home.root / "near"), **passed, "USER": os.environ["HARDCASE_WHO"]}


def _mounts(home: Home, inputs: Inputs) -> list[Mount]:
    """Return the mounts: to write, the home, and store, registry or cache beside it; to read, what else is named."""
    registry = database_path(home.tracking_uri) or home.root
    written = {home.root, *_local(home.store, os.environ.get("HARDCASE_CACHE", ""), str(registry))}
    trusted = os.environ.get("HARDCASE_TRUSTED_KEYS", "").split(os.pathsep)
    # What is inside a folder that is mounted to write is there with it.
    named = (*inputs.uris, os.environ.get("HARDCASE_SIGNING_KEY", ""), *trusted)
    paths = {path for path in {*written, *_local(*named)} if not written & set(path.parents)}
    return [Mount(str(path), str(path), "bind", read_only=path not in written) for path in sorted(paths)]


def _local(*uris: str) -> Iterator[Path]:
    """Yield the paths that exist on this machine; of a file, its folder."""
    for uri in uris:
        with suppress(InputError):
            path = parse_local_path(uri)
            if path.exists():
                yield path if path.is_dir() else path.parent


def _needs_network(home: Home, inputs: Inputs) -> bool:
    """Return whether a step will have to ask another machine."""
    lineage = [value for name, value in os.environ.items() if name.startswith("OPENLINEAGE")]
    variables = [os.environ.get(name, "") for name in ("HARDCASE_SIGNING_KEY", "HARDCASE_WEBHOOK")]
    named = (*inputs.uris, home.store, home.tracking_uri, *variables, *lineage)
    remote = any(uri.startswith(("s3://", "http://", "https://", "awskms:")) for uri in named)
    return inputs.hub or remote or bool(os.environ.get("HARDCASE_SMTP_HOST"))
