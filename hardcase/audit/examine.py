"""The audit of one model version, from the store alone: every signature, every digest, every step of the chain.

The result is a tree of findings: the name of each object in the store, and its problem if it has one. Nothing comes
from a cache. An object counts only if a trusted key signed it, or if a signed record names its digest.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from hardcase.errors import HardcaseError, InputError, UnavailableError
from hardcase.formats import NewerFormatError
from hardcase.progress import track
from hardcase.provenance.attestations import Attestation, fetch_attestation, find_gaps
from hardcase.provenance.code import LOCK
from hardcase.provenance.signing import KEYS, Keyring, read_stored_keys
from hardcase.provenance.statement import (
    ENVELOPE,
    FOLDER,
    SNAPSHOT,
    Provenance,
    Resource,
    fetch_provenance,
    list_members,
)
from hardcase.registry.account import GIVEN, NEEDED
from hardcase.registry.ledger import (
    CHAMPION,
    MODELS,
    Ledger,
    Version,
    dossier_name,
    entry_name,
    list_models,
    read_ledger,
    read_verdict,
    split_spec,
)
from hardcase.store.control import list_all_versions
from hardcase.store.digest import bytes_digest
from hardcase.store.store import Store, object_name

# Resources that no step of the run wrote; other checks cover them.
OUTSIDE = {"code", LOCK, "sbom", "gate", "champion", "reference evaluation", *GIVEN}
READERS = 8
T = TypeVar("T")


@dataclass
class Finding:
    """A node of the tree of an audit: what was examined, its name in the store, what is wrong, and its parts."""

    what: str
    place: str = ""
    problem: str = ""
    newer: bool = False  # whether the problem is a format that this hardcase does not know
    parts: list["Finding"] = field(default_factory=list)

    def add(self, what: str, place: str = "", problem: str = "") -> "Finding":
        """Add a part and return it."""
        self.parts.append(Finding(what, place, problem))
        return self.parts[-1]

    def walk(self) -> Iterator["Finding"]:
        """Yield the finding and all parts below it, in order."""
        yield self
        for part in self.parts:
            yield from part.walk()

    @property
    def broken(self) -> list["Finding"]:
        """Return the findings that have a problem, in order; those of a newer format come last."""
        return sorted((finding for finding in self.walk() if finding.problem), key=lambda finding: finding.newer)


@dataclass
class Audit:
    """Result of an audit: all findings, and what could be read."""

    tree: Finding
    ledger: Ledger
    version: Version | None = None  # None where the ledger itself is broken
    provenance: Provenance | None = None  # None where the statement is broken
    links: Mapping[str, Attestation] = field(default_factory=dict)  # by step

    @property
    def first(self) -> Finding | None:
        """Return the first finding with a problem; one of a newer format only if there is no damage."""
        return next(iter(self.tree.broken), None)


def examine(store: Store, spec: str, keys: Keyring, compare: Callable[[Ledger], Sequence[str]] = lambda _: ()) -> Audit:
    """Audit a version.

    Args:
        store: opened without a cache.
        spec: `NAME`, `NAME@ALIAS` or `NAME:VERSION`.
        keys: trusted keys.
        compare: returns, as sentences, how another registry differs from the ledger.

    Raises:
        InputError: no such model is registered.
        UnavailableError: the store does not answer, so that nothing can be said of what it holds.
    """
    name = split_spec(spec)
    audit = Audit(Finding(spec), Ledger(name))
    _attempt(audit.tree.add("public keys", KEYS), lambda: read_stored_keys(store))
    entries = audit.tree.add("ledger", f"models/{name}/ledger")
    ledger = _attempt(entries, lambda: read_ledger(store, name, keys))
    if ledger is None:
        return audit
    audit.ledger = ledger
    if not ledger.moves:
        known = ", ".join(list_models(store)) or "none; run `hardcase run` first"
        raise InputError(f"model {spec!r}: not registered in {store.uri}; these are: {known}")
    audit.version = ledger.find(spec)
    _add_history(audit, audit.version, entries, store)
    _add_statement(audit, audit.version, store, keys)
    for problem in compare(ledger):
        audit.tree.add("MLflow", problem=problem)
    return audit


def _attempt(finding: Finding, work: Callable[[], T]) -> T | None:
    """Return the result of some work, or None with its error as the finding's problem."""
    try:
        return work()
    except UnavailableError:
        raise
    except HardcaseError as error:
        if not finding.problem or finding.newer:
            finding.problem, finding.newer = str(error), isinstance(error, NewerFormatError)
        return None


def _add_history(audit: Audit, version: Version, entries: Finding, store: Store) -> None:
    ledger = audit.ledger
    audit.tree.what = f"{ledger.name}:{version.number}"
    if aliases := [alias for alias, number in ledger.aliases.items() if number == version.number]:
        audit.tree.what += f" ({', '.join(aliases)})"
    for number, move in enumerate(ledger.moves, start=1):
        action = "rolled back to" if move.is_rollback else "made" if move.made else "promoted by hand"
        what = f"{move.when} {action} {ledger.name}:{move.version}, {move.alias}, by {move.who}: {move.why}"
        if extra := {**(move.model_extra or {}), **((move.made and move.made.model_extra) or {})}:
            what += f" (keys that this hardcase does not know: {', '.join(extra)})"
        entries.add(what, entry_name(ledger.name, number))
    _add_rewritten(entries, ledger.name, store)
    versions = {name.split("/")[2] for name in store.list_names(f"models/{ledger.name}")} - {"ledger"}
    for stray in sorted(versions - {str(number) for number in ledger.versions}):
        entries.add(
            "dossier without a version",
            f"models/{ledger.name}/{stray}",
            f"models/{ledger.name}/{stray}: the ledger has no such version: its end was cut off, or this was put there",
        )


def _add_rewritten(entries: Finding, name: str, store: Store) -> None:
    """Report names that were written again or deleted, where the bucket keeps versions; hardcase writes a name once."""
    for folder in (f"{MODELS}/{name}", KEYS):
        try:
            done = list_all_versions(store.uri, folder) or {}
        except HardcaseError as error:
            entries.add(f"whether names in {folder} were written again was not looked at: {error}")
            continue
        for place, versions in done.items():
            if len(versions) > 1:
                what = f"{place}: written or deleted {len(versions)} times; the bucket's versions have what was there"
                entries.add("written again", place, what)


def _add_statement(audit: Audit, version: Version, store: Store, keys: Keyring) -> None:
    statement = audit.tree.add("statement", object_name(version.statement))
    provenance = _attempt(statement, partial(fetch_provenance, store, keys, version.statement))
    if provenance is None:
        return
    audit.provenance = provenance
    for resource in provenance.dependencies.values():
        if resource.notes and not resource.digest:
            notes = ", ".join(f"{key} {value}" for key, value in resource.notes.items())
            statement.add(f"{resource.name}: {notes}")
    objects = defaultdict[str, list[Finding]](list)
    for resource in [*provenance.resources, Resource("dossier", version.dossier, FOLDER)]:
        finding = audit.tree.add(resource.name, object_name(resource.digest))
        if resource.kind not in (FOLDER, SNAPSHOT):
            objects[resource.digest].append(finding)
            continue
        members = _attempt(finding, partial(list_members, store, resource.digest, resource.kind))
        for member, digest in (members or {}).items():
            objects[digest].append(finding.add(member, object_name(digest)))
    _add_published(audit.ledger.name, version, audit.tree.parts[-1], store)
    _rehash(objects, store)
    _add_chain(audit, provenance, version, store, keys)


def _rehash(objects: Mapping[str, Sequence[Finding]], store: Store) -> None:
    def rehash(digest: str) -> None:
        try:
            store.get_object(digest)
        except UnavailableError:
            raise
        except HardcaseError as error:
            for finding in objects[digest]:
                finding.problem = finding.problem or str(error)

    with ThreadPoolExecutor(READERS) as pool:
        for _ in track(pool.map(rehash, objects), "rehashing", len(objects)):
            pass


def _add_published(name: str, version: Version, dossier: Finding, store: Store) -> None:
    """Compare the dossier under its readable name with the one that the ledger names."""
    try:
        listing = json.loads(store.get_object(version.dossier))
    except UnavailableError:
        raise
    except (HardcaseError, ValueError):
        return  # reported already
    strays = set(store.list_names(f"models/{name}/{version.number}"))
    for file, digest in listing.items():
        place = dossier_name(name, version.number, file)
        data = store.get_named(place)
        problem = "" if data is not None and bytes_digest(data) == digest else f"{place}: was altered"
        if data is None:
            problem = f"{place}: is missing; register again, or `hardcase audit --rebuild`"
        dossier.add(f"{file}, as published", place, problem)
        strays.discard(place)
    for place in sorted(strays):
        dossier.add("stray file", place, f"{place}: no part of the dossier; remove it")


def _add_chain(audit: Audit, provenance: Provenance, version: Version, store: Store, keys: Keyring) -> None:
    """Verify that the attestations form one chain and agree with the statement."""
    chain = audit.tree.add("chain of steps")
    links: dict[str, Attestation] = {}
    for resource in provenance.byproducts.values():
        if resource.kind == ENVELOPE:
            place = object_name(resource.digest)
            finding = chain.add(resource.name, place)
            link = _attempt(finding, partial(fetch_attestation, store, keys, resource.digest))
            if link is not None:
                links[link.step] = link
                read, wrote = ", ".join(link.materials) or "the source", ", ".join(link.products)
                finding.what = f"{link.step} in run {link.run}: {read} → {wrote}"
    audit.links = links
    if chain.broken:
        return
    contradictions = [
        *_contradictions_of_steps(provenance, links, audit.ledger),
        *_contradictions_of_ledger(provenance, version, store),
    ]
    for problem in contradictions:
        chain.add("contradiction", problem=f"{object_name(version.statement)}: {problem}")


def _contradictions_of_steps(provenance: Provenance, links: Mapping[str, Attestation], ledger: Ledger) -> Iterator[str]:
    """Yield what the statement says other than the attestations."""
    resources = {resource.name: resource for resource in provenance.resources}
    given = {name: resources[name].digest for name in GIVEN if name in resources}
    yield from find_gaps(list(links.values()), given.values())
    makers = {name: link for link in links.values() for name in link.products}
    if "trained" in makers:  # the model's name before decision 0010
        makers["model"] = makers["trained"]
    products = {digest for link in links.values() for digest in link.products.values()}
    for name, resource in resources.items():
        if name not in OUTSIDE and resource.kind != ENVELOPE and resource.digest not in products:
            yield f"{name} {resource.digest[:12]} was made by no step"
    if missing := [name for name in NEEDED if name not in makers]:
        yield f"no step made {', '.join(missing)}"
        return
    if provenance.subject not in makers["model"].products.values():
        yield f"the model is not what {makers['model'].step} made"
    # Before decision 0010 each role and shard of answers had an attestation.
    final = (link for step, link in links.items() if step == "answer" or step.startswith("answer-final"))
    if {link.materials.get("model") for link in final} - {provenance.subject}:
        yield "the answers that were judged are another model's"
    used = {name: link.materials[name] for link in links.values() for name in GIVEN if name in link.materials}
    yield from (f"{name} is not what training used" for name in GIVEN if used.get(name) != given.get(name))
    if {link.parameters.get("code") for link in links.values()} != {resources["code"].digest}:
        yield "the code is not what the steps ran"
    config = {link.section: link.parameters["config"] for link in links.values() if "config" in link.parameters}
    stated = provenance.parameters["config"]
    for section, ran_with in config.items():
        if stated.get(section) != ran_with:
            yield f"the configuration of {section} is not what it ran with"
    reference = makers["drift"].parameters["reference"]
    if reference and reference not in {version.evaluation for version in ledger.versions.values()}:
        yield f"drift compared with {reference[:12]}, which is the evaluation of no version"
    champion = resources.get("champion")
    if champion and champion.digest not in {version.digest for version in ledger.versions.values()}:
        yield "it was judged against a model that is not in the ledger"


def _contradictions_of_ledger(provenance: Provenance, version: Version, store: Store) -> Iterator[str]:
    """Yield what the ledger says other than the statement."""
    if provenance.subject != version.digest:
        yield f"it is of the model {provenance.subject[:12]}, not of {version.digest[:12]}"
    byproducts = {name: resource.digest for name, resource in provenance.byproducts.items()}
    if (byproducts.get("evaluation"), byproducts.get("gate")) != (version.evaluation, version.gate):
        yield "evaluation or gate record are not those of the ledger"
    if provenance.internal.get("fingerprint") != version.fingerprint:
        yield "its run is not the one of the ledger"
    try:
        gate = json.loads(store.get_object(version.gate))
    except UnavailableError:
        raise
    except HardcaseError:
        return  # reported already
    if (read_verdict(gate["verdict"]), gate["reasons"]) != (version.verdict, version.reasons):
        yield "the gate's record does not say what the ledger says"


def as_json(audit: Audit) -> dict[str, Any]:
    """Return an audit as a JSON value; `broken` lists damage, `newer` what only a newer hardcase can judge."""

    def node(finding: Finding) -> dict[str, Any]:
        own = {"what": finding.what, "place": finding.place, "problem": finding.problem}
        return {**own, "parts": [node(part) for part in finding.parts]}

    first, version = audit.first, audit.version
    return {
        "name": audit.ledger.name,
        "version": version.number if version else None,
        "digest": version.digest if version else None,
        "champion": audit.ledger.aliases.get(CHAMPION),
        "clean": first is None,
        "broken": [finding.problem for finding in audit.tree.broken if not finding.newer],
        "newer": [finding.problem for finding in audit.tree.broken if finding.newer],
        "tree": node(audit.tree),
    }
