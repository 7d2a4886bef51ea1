"""The audit of one model version, from the store alone: every signature, every digest, every link of the chain.

What is found is a tree: a place in the store for each object, and what is wrong with it. Nothing is taken from a cache,
and nothing is believed that is not signed by someone trusted, or named by digest in something that is.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from hardcase.errors import HardcaseError, InputError
from hardcase.progress import track
from hardcase.provenance.attestations import Link, gaps, open_link
from hardcase.provenance.code import LOCK
from hardcase.provenance.signing import KEYS, Keyring, stored_keys
from hardcase.provenance.statement import (
    ENVELOPE,
    FOLDER,
    SNAPSHOT,
    Provenance,
    Resource,
    list_members,
    read_provenance,
)
from hardcase.registry.ledger import (
    CHAMPION,
    MODELS,
    Ledger,
    Version,
    dossier_name,
    entry_name,
    models,
    read_ledger,
    read_verdict,
    split_spec,
)
from hardcase.store.control import list_all_versions
from hardcase.store.digest import bytes_digest
from hardcase.store.store import Store, object_name

# What no step of the run wrote: it is checked against something else.
OUTSIDE = {"code", LOCK, "sbom", "gate", "champion", "reference evaluation", "base_model"}
READERS = 8


@dataclass
class Finding:
    """A node of the tree.

    Attributes:
        what: it is.
        place: its name in the store; empty where it has none.
        problem: what is wrong with it; empty if nothing.
        parts: below it.
    """

    what: str
    place: str = ""
    problem: str = ""
    parts: list["Finding"] = field(default_factory=list)

    def add(self, what: str, place: str = "", problem: str = "") -> "Finding":
        """A new part."""
        self.parts.append(Finding(what, place, problem))
        return self.parts[-1]

    def walk(self) -> Iterator["Finding"]:
        """It and all below, in order."""
        yield self
        for part in self.parts:
            yield from part.walk()

    @property
    def broken(self) -> list["Finding"]:
        """Those that have a problem, in order."""
        return [each for each in self.walk() if each.problem]


@dataclass
class Audit:
    """What was found.

    Attributes:
        tree: all of it.
        ledger: of the model.
        version: audited; None where the ledger itself is broken.
        provenance: of the version; None where the statement is broken.
        links: of its steps, by name.
    """

    tree: Finding
    ledger: Ledger
    version: Version | None = None
    provenance: Provenance | None = None
    links: Mapping[str, Link] = field(default_factory=dict)

    @property
    def first(self) -> Finding | None:
        """The first broken link."""
        return self.tree.broken[0] if self.tree.broken else None


def examine(store: Store, spec: str, keys: Keyring, shown: Callable[[Ledger], Sequence[str]] = lambda _: ()) -> Audit:
    """Audit a version.

    Args:
        store: opened without a cache.
        spec: `NAME`, `NAME@ALIAS` or `NAME:VERSION`.
        keys: who is trusted.
        shown: says what another registry shows other than the ledger.

    Raises:
        InputError: no such model is registered.
    """
    name = split_spec(spec)
    found = Audit(Finding(spec), Ledger(name))
    _guarded(found.tree.add("public keys", KEYS), lambda: stored_keys(store))
    entries = found.tree.add("ledger", f"models/{name}/ledger")
    _guarded(entries, lambda: setattr(found, "ledger", read_ledger(store, name, keys)))
    if entries.problem:
        return found
    if not found.ledger.moves:
        known = ", ".join(models(store)) or "none; run `hardcase run` first"
        raise InputError(f"model {spec!r}: not registered in {store.uri}; these are: {known}")
    found.version = found.ledger.find(spec)
    _history(found, entries, store)
    _statement(found, store, keys)
    for problem in shown(found.ledger):
        found.tree.add("MLflow", problem=problem)
    return found


def _guarded(finding: Finding, work: Callable[[], Any]) -> Any:
    """What the work gives, or its error as the finding's problem."""
    try:
        return work()
    except HardcaseError as error:
        finding.problem = finding.problem or str(error)
        return None


def _history(found: Audit, entries: Finding, store: Store) -> None:
    ledger, version = found.ledger, found.version
    assert version is not None
    found.tree.what = f"{ledger.name}:{version.number}"
    aliases = [alias for alias, number in ledger.aliases.items() if number == version.number]
    if aliases:
        found.tree.what += f" ({', '.join(aliases)})"
    for place, move in enumerate(ledger.moves, start=1):
        action = "made" if move.made else "rolled back to"
        entries.add(
            f"{move.when} {action} {ledger.name}:{move.version}, {move.alias}, by {move.who}: {move.why}",
            entry_name(ledger.name, place),
        )
    _rewritten(entries, ledger.name, store)
    versions = {name.split("/")[2] for name in store.list_names(f"models/{ledger.name}")} - {"ledger"}
    for stray in sorted(versions - {str(number) for number in ledger.versions}):
        entries.add(
            "dossier without a version",
            f"models/{ledger.name}/{stray}",
            f"models/{ledger.name}/{stray}: the ledger has no such version: its end was cut off, or this was put there",
        )


def _rewritten(entries: Finding, name: str, store: Store) -> None:
    """Names are written once; a versioned bucket remembers which were written again or deleted."""
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


def _statement(found: Audit, store: Store, keys: Keyring) -> None:
    version = found.version
    assert version is not None
    what = object_name(version.statement)
    statement = found.tree.add("statement", what)
    envelope = _guarded(statement, lambda: store.get_object(version.statement))
    if envelope is None:
        return
    opened = _guarded(statement, lambda: read_provenance(keys.open_envelope(envelope, what), what))
    if opened is None:
        return
    found.provenance = opened
    for resource in opened.dependencies.values():
        if resource.notes and not resource.digest:
            said = ", ".join(f"{key} {value}" for key, value in resource.notes.items())
            statement.add(f"{resource.name}: {said}")
    checks = _Objects(store)
    for resource in opened.resources:
        checks.add(found.tree.add(resource.name, object_name(resource.digest)), resource.digest, resource.kind)
    dossier = found.tree.add("dossier", object_name(version.dossier))
    checks.add(dossier, version.dossier, FOLDER)
    _published(found.ledger.name, version, dossier, store)
    checks.rehash()
    _chain(found, store, keys)


class _Objects:
    """Objects to be rehashed: listings at once, for what they list, the rest together."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._waiting: dict[str, list[Finding]] = {}

    def add(self, finding: Finding, digest: str, kind: str) -> None:
        if kind not in (FOLDER, SNAPSHOT):
            self._waiting.setdefault(digest, []).append(finding)
            return
        content = _guarded(finding, lambda: self._store.get_object(digest))
        listing = _guarded(finding, lambda: list_members(content, kind, finding.place)) if content is not None else None
        for name, below in (listing or {}).items():
            self._waiting.setdefault(below, []).append(finding.add(name, object_name(below)))

    def rehash(self) -> None:
        def problem(digest: str) -> str:
            try:
                self._store.get_object(digest)
            except HardcaseError as error:
                return str(error)
            return ""

        with ThreadPoolExecutor(READERS) as pool:
            problems = track(pool.map(problem, self._waiting), "rehashing", len(self._waiting))
            for findings, said in zip(self._waiting.values(), problems, strict=True):
                for finding in findings:
                    finding.problem = finding.problem or said


def _published(name: str, version: Version, dossier: Finding, store: Store) -> None:
    """The dossier as people find it is the one that the ledger names."""
    try:
        listing = json.loads(store.get_object(version.dossier))
    except (HardcaseError, ValueError):
        return  # said already
    there = set(store.list_names(f"models/{name}/{version.number}"))
    for file, digest in listing.items():
        place = dossier_name(name, version.number, file)
        data = store.get_named(place)
        problem = "" if data is not None and bytes_digest(data) == digest else f"{place}: was altered"
        if data is None:
            problem = f"{place}: is missing; register again, or `hardcase audit --rebuild`"
        dossier.add(f"{file}, as published", place, problem)
        there.discard(place)
    for place in sorted(there):
        dossier.add("stray file", place, f"{place}: no part of the dossier; remove it")


def _chain(found: Audit, store: Store, keys: Keyring) -> None:
    """The steps' records make one chain, and say what the statement says."""
    provenance, version = found.provenance, found.version
    assert provenance is not None and version is not None
    chain = found.tree.add("chain of steps")
    links: dict[str, Link] = {}
    for resource in provenance.byproducts.values():
        if resource.kind == ENVELOPE:
            place = object_name(resource.digest)
            finding = chain.add(resource.name, place)
            link = _guarded(finding, partial(_link, resource.digest, store, keys))
            if link is not None:
                links[link.step] = link
                finding.what = (
                    f"{link.step} in run {link.run}: {', '.join(link.materials) or 'the source'} → "
                    + ", ".join(link.products)
                )
    found.links = links
    if chain.broken:
        return
    for problem in [*_disagreements(provenance, links, found.ledger), *_misjudged(provenance, version, store)]:
        chain.add("contradiction", problem=f"{object_name(version.statement)}: {problem}")


def _link(digest: str, store: Store, keys: Keyring) -> Link:
    return open_link(store.get_object(digest), keys, object_name(digest))


def _disagreements(provenance: Provenance, links: Mapping[str, Link], ledger: Ledger) -> Iterator[str]:
    resources = {resource.name: resource for resource in provenance.resources}
    base = resources.get("base_model", Resource("base_model", ""))
    yield from gaps(list(links.values()), [base.digest])
    made = {digest for link in links.values() for digest in link.products.values()}
    for name, resource in resources.items():
        if name not in OUTSIDE and resource.kind != ENVELOPE and resource.digest not in made:
            yield f"{name} {resource.digest[:12]} was made by no step"
    if missing := {"ingest", "sft", "mine", "grpo", "evaluate", "drift"} - set(links):
        yield f"no record of {', '.join(sorted(missing))}"
        return
    # Versions of before decision 0010 name the model `trained`, and have a record of each role and shard of answers.
    if provenance.subject not in (links["grpo"].products.get(name) for name in ("model", "trained")):
        yield "the model is not what grpo made"
    final = (link for step, link in links.items() if step == "answer" or step.startswith("answer-final"))
    answered = {link.materials.get("model") for link in final}
    if answered - {provenance.subject}:
        yield "the answers that were judged are another model's"
    if base.digest != links["sft"].materials.get("base_model", ""):
        yield "the base model is not what sft started from"
    if {link.parameters.get("code") for link in links.values()} != {resources["code"].digest}:
        yield "the code is not what the steps ran"
    config = {link.section: link.parameters["config"] for link in links.values() if "config" in link.parameters}
    stated = provenance.parameters["config"]
    for section, ran_with in config.items():
        if stated.get(section) != ran_with:
            yield f"the configuration of {section} is not what it ran with"
    reference = links["drift"].parameters["reference"]
    if reference and reference not in {version.evaluation for version in ledger.versions.values()}:
        yield f"drift compared with {reference[:12]}, which is the evaluation of no version"
    champion = resources.get("champion")
    if champion and champion.digest not in {version.digest for version in ledger.versions.values()}:
        yield "it was judged against a model that is not in the ledger"


def _misjudged(provenance: Provenance, version: Version, store: Store) -> Iterator[str]:
    """What the ledger says otherwise than the statement."""
    if provenance.subject != version.digest:
        yield f"it is of the model {provenance.subject[:12]}, not of {version.digest[:12]}"
    said = {name: resource.digest for name, resource in provenance.byproducts.items()}
    if (said.get("evaluation"), said.get("gate")) != (version.evaluation, version.gate):
        yield "evaluation or gate record are not those of the ledger"
    if provenance.internal.get("fingerprint") != version.fingerprint:
        yield "its run is not the one of the ledger"
    try:
        gate = json.loads(store.get_object(version.gate))
    except HardcaseError:
        return  # said already
    if (read_verdict(gate["verdict"]), gate["reasons"]) != (version.verdict, version.reasons):
        yield "the gate's record does not say what the ledger says"


def as_json(audit: Audit) -> dict[str, Any]:
    """All that was found, for programs."""

    def node(finding: Finding) -> dict[str, Any]:
        facts = {"what": finding.what, "place": finding.place, "problem": finding.problem}
        return {**facts, "parts": [node(part) for part in finding.parts]}

    first, version = audit.first, audit.version
    return {
        "name": audit.ledger.name,
        "version": version.number if version else None,
        "digest": version.digest if version else None,
        "champion": audit.ledger.aliases.get(CHAMPION),
        "clean": first is None,
        "broken": [f.problem for f in audit.tree.broken],
        "tree": node(audit.tree),
    }
