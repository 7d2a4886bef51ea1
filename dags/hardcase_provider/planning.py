"""Is there anything new? What a source holds, and the key that says what a retraining would be made of."""

import hashlib
import json
import logging
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from airflow.sdk.exceptions import AirflowException, AirflowFailException

import hardcase
from hardcase_provider import bucket
from hardcase_provider.bucket import MANIFESTS
from hardcase_provider.operators import REPOSITORY, hardcase_environment, hardcase_program, named_program

SECONDS_TO_ANSWER: Final = 600
logger = logging.getLogger(__name__)
ABSENT: Final = "no objects there"  # in the message of hardcase/data/listing.py about an empty prefix
PACKAGE: Final = Path(hardcase.__file__).parent


def source_digest(source: str | None, engine: str) -> str | None:
    """Return the digest of what a source holds.

    The program `hardcase` computes it, where there is one; else, on S3, Airflow's Amazon provider.

    Returns:
        A digest; the source itself where that identifies the data; None where neither is known.

    Raises:
        AirflowFailException: it is not there, or cannot be seen by that engine.
    """
    if not source or source.startswith(("procedural://", "snapshot:")):
        return source or ""
    if engine == "kubeflow" and not source.startswith("s3://"):
        raise AirflowFailException(
            f"source {source}: Kubeflow's steps cannot see it; put it on S3, or choose engine local"
        )
    if named_program():
        try:
            return str(ask_program("source-digest", source)["digest"])
        except AirflowFailException as error:
            if engine == "local" or ABSENT in str(error):
                raise
            logger.warning("%s; it counts as new, for Kubeflow may see more than this machine", error)
            return None
    return bucket.digest(source) if source.startswith("s3://") else None


def digest_sources(sources: Sequence[Sequence[str | None]], engine: str) -> list[str | None]:
    """Return for each source the digest that its producer named, or else `source_digest`."""
    return [digest or source_digest(source, engine) for source, digest in sources]


def ask_program(*arguments: str) -> dict[str, Any]:
    """Return what `hardcase … --json` answers.

    Raises:
        AirflowFailException: it says that the input is at fault.
    """
    done = subprocess.run(
        [hardcase_program(), *arguments, "--json"],
        env=hardcase_environment(),
        cwd=REPOSITORY,
        check=False,
        capture_output=True,
        text=True,
        timeout=SECONDS_TO_ANSWER,
    )
    try:
        answer: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise AirflowException(f"hardcase {arguments[0]} ended with {done.returncode}: {done.stderr[-500:]}") from None
    if error := answer.get("error"):
        raise (AirflowFailException if done.returncode == 2 else AirflowException)(error["message"])
    return answer


def code_digest() -> str:
    """Return the digest of the code that trains on this machine, so that changed code is something new."""
    listing = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*")):
        if file.suffix in (".py", ".yaml", ".j2"):
            digest = hashlib.sha256(file.read_bytes()).hexdigest()
            listing.update(f"{file.relative_to(PACKAGE)}\0{digest}\n".encode())
    return listing.hexdigest()


def fingerprint(**made_of: Any) -> str:
    """Return a digest: the same for the same."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def newest_batch(folder: str) -> str:
    """Return the newest batch of a folder of batches, the last by name.

    A source that is one batch, or no folder, is returned as it is.

    On S3 Airflow's Amazon provider looks, where it is installed; without it, the source is as it is.
    """
    if folder.startswith("s3://"):
        return bucket.newest_below(folder)
    path = Path(folder.removeprefix("file://"))
    if ("://" in folder and not folder.startswith("file://")) or not path.is_dir():
        return folder
    if any((path / name).is_file() for name in MANIFESTS):
        return folder
    batches = [each for each in path.iterdir() if any((each / name).is_file() for name in MANIFESTS)]
    if not batches:
        raise FileNotFoundError(f"{path}: neither a manifest nor a folder with one; put labelled batches there")
    return str(max(batches, key=lambda each: each.name))
