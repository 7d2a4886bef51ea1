"""Compare two versions of a model: data, configuration, code, environment, scores."""

import json
from collections.abc import Mapping
from typing import Any

from hardcase.audit.examine import Audit
from hardcase.data.scores import read_scores
from hardcase.data.snapshot import Snapshot
from hardcase.errors import HardcaseError
from hardcase.provenance.sbom import packages
from hardcase.provenance.statement import Provenance
from hardcase.registry.account import GIVEN
from hardcase.store.digest import bytes_digest, canonical_json
from hardcase.store.store import Store


def compare_versions(store: Store, before: Audit, after: Audit) -> dict[str, Any]:
    """Compare two versions.

    Args:
        store: store of both.
        before: audit of the earlier version.
        after: audit of the later version.

    Returns:
        `facts` (model, commit, seed, source, base model, reward files), `config`, `packages`, `scores`: by key, before
        and after, where they differ; `data`: ids of rows `added`, `removed`, `changed` (same id and aspect, other
        images, answer, reasoning or split); `code`: files likewise.

    Raises:
        HardcaseError: a version is damaged, or cannot be judged.
    """
    first, second = map(_provenance, (before, after))
    return {
        "facts": _changed(_facts(first), _facts(second)),
        "data": _split(_rows(store, first), _rows(store, second)),
        "config": _changed(_flat(first.parameters["config"]), _flat(second.parameters["config"])),
        "code": _split(_listing(store, first), _listing(store, second)),
        "packages": _changed(_packages(store, first), _packages(store, second)),
        "scores": _changed(_scores(store, first), _scores(store, second)),
    }


def _provenance(audit: Audit) -> Provenance:
    if audit.first or audit.provenance is None:
        problem = audit.first.problem if audit.first else "it has no provenance"
        raise HardcaseError(f"{audit.tree.what}: cannot be compared: {problem}")
    return audit.provenance


def _packages(store: Store, provenance: Provenance) -> dict[str, str]:
    return packages(store.get_object(provenance.byproducts["sbom"].digest))


def _facts(provenance: Provenance) -> dict[str, Any]:
    resources = provenance.dependencies
    return {
        "model": provenance.subject,
        "commit": resources["git commit"].notes.get("commit", ""),
        "seed": provenance.parameters["seed"],
        "source": provenance.parameters["source"],
        **{name: resources[name].digest if name in resources else "" for name in GIVEN},
    }


def _rows(store: Store, provenance: Provenance) -> dict[str, str]:
    """Return the digest of each row's content, by id and aspect."""
    digest = provenance.dependencies["snapshot"].digest
    table = Snapshot(digest, json.loads(store.get_object(digest)), store).read_table()
    digests = {}
    for row in table.select(["id", "aspect", "answer", "reasoning", "split", "images"]).to_pylist():
        content = {**row, "answer": sorted(row["answer"]), "images": [image["sha256"] for image in row["images"]]}
        digests[f"{row['id']} ({row['aspect']})"] = bytes_digest(canonical_json(content))
    return digests


def _listing(store: Store, provenance: Provenance) -> dict[str, str]:
    files: dict[str, str] = json.loads(store.get_object(provenance.dependencies["code"].digest))
    return files


def _scores(store: Store, provenance: Provenance) -> dict[str, Any]:
    final = read_scores(store.get_object(provenance.byproducts["scores"].digest))["final"]
    return {key: value for key, value in _flat(final).items() if isinstance(value, int | float)}


def _flat(tree: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return the leaves of a tree by dotted key."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        leaves |= _flat(value, f"{path}{key}.") if isinstance(value, Mapping) else {f"{path}{key}": value}
    return leaves


def _split(before: Mapping[str, str], after: Mapping[str, str]) -> dict[str, list[str]]:
    return {
        "added": sorted(set(after) - set(before)),
        "removed": sorted(set(before) - set(after)),
        "changed": sorted(key for key in set(before) & set(after) if before[key] != after[key]),
    }


def _changed(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    keys = sorted({*before, *after})
    return {key: [before.get(key), after.get(key)] for key in keys if before.get(key) != after.get(key)}
