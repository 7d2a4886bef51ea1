"""Is there anything new? What a source holds, and the key that says what a retraining would be made of."""

import hashlib
import json
import logging
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from hardcase_provider import bucket
from hardcase_provider.bucket import MANIFESTS
from hardcase_provider.operators import REPOSITORY, hardcase_environment, hardcase_program, named_program

SECONDS_TO_ANSWER: Final = 600
logger = logging.getLogger(__name__)
ABSENT: Final = "nothing lies there"  # in the message of hardcase/data/remote.py about an empty prefix
CODE: Final = ("hardcase",)


def source_digest(source: str | None, engine: str) -> str | None:
    """What a source holds, by the program `hardcase` where there is one, else on S3 by Airflow's Amazon provider.

    Args:
        source: as `hardcase run --source` takes it, or None for the profile's own.
        engine: that will read it.

    Returns:
        A digest; the source itself where that says it; None where it cannot be told.

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
            return str(asked("source-digest", source)["digest"])
        except AirflowFailException as error:
            if engine == "local" or ABSENT in str(error):
                raise
            logger.warning("%s; it counts as new, for Kubeflow may see more than this machine", error)
            return None
    return bucket.digest(source) if source.startswith("s3://") else None


def asked(*arguments: str) -> dict[str, Any]:
    """What `hardcase … --json` answers.

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
        found: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        raise AirflowException(f"hardcase {arguments[0]} ended with {done.returncode}: {done.stderr[-500:]}") from None
    if error := found.get("error"):
        raise (AirflowFailException if done.returncode == 2 else AirflowException)(error["message"])
    return found


def code_digest(repository: Path) -> str:
    """Of what trains on this machine, so that changed code is something new."""
    listing = hashlib.sha256()
    for folder in CODE:
        for file in sorted((repository / folder).rglob("*")):
            if file.suffix in (".py", ".yaml", ".j2"):
                listing.update(
                    f"{file.relative_to(repository)}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode()
                )
    return listing.hexdigest()


def fingerprint(**made_of: Any) -> str:
    """The same for the same."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()


def newest_batch(place: str) -> str:
    """The newest batch of a folder of batches, the last by name; a source that is one batch, or no folder, as it is.

    On S3 Airflow's Amazon provider looks, where it is installed; without it, the source is as it is.
    """
    if place.startswith("s3://"):
        return bucket.newest_below(place)
    path = Path(place.removeprefix("file://"))
    if ("://" in place and not place.startswith("file://")) or not path.is_dir():
        return place
    if any((path / name).is_file() for name in MANIFESTS):
        return place
    batches = [each for each in path.iterdir() if any((each / name).is_file() for name in MANIFESTS)]
    if not batches:
        raise FileNotFoundError(f"{path}: neither a manifest nor a folder with one; put labelled batches there")
    return str(max(batches, key=lambda each: each.name))


def worsened(before: Mapping[str, Any], now: Mapping[str, Any], level: float) -> dict[str, Any]:
    """Whether a model scores lower than it did, by more than chance explains.

    One-sided normal test on the difference, the standard errors taken from the 95% intervals; the tests share `level`.

    Args:
        before: scores with `intervals`, as `hardcase` gives them.
        now: the same of today.
        level: of a false alarm.
    """
    from math import erfc, sqrt

    def error(scores: Mapping[str, Any], name: str) -> float:
        low, high = scores["intervals"][name]
        return float(high - low) / (2 * 1.96)

    tests = []
    for name in ("exact_match", "overall"):
        drop = float(before[name] - now[name])
        spread = sqrt(error(before, name) ** 2 + error(now, name) ** 2)
        chance = 0.5 * erfc(drop / spread / sqrt(2)) if spread else (0.0 if drop > 0 else 1.0)
        tests.append({"name": name, "before": before[name], "now": now[name], "drop": drop, "p_value": chance})
    return {"drifted": any(test["p_value"] < level / len(tests) for test in tests), "level": level, "tests": tests}
