"""register: the gate's verdict on a model, stored as a version with the alias `champion` or `challenger`.

First everything that the model was made of is stored, then one entry of the ledger creates the version and moves the
alias, last come the views of it. Repeated, after a kill at any point or not, the step reads what is stored and arrives
at the same bytes. If another run registered a champion since this one was launched, the model is compared with that
one.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from hardcase.config import RegisterConfig
from hardcase.data.cases import read_cases
from hardcase.data.evaluations import read_evaluation
from hardcase.data.scores import read_scores
from hardcase.errors import HardcaseError
from hardcase.provenance.signing import Keyring
from hardcase.registry.account import Account, gather_account
from hardcase.registry.dossier import make_dossier
from hardcase.registry.ledger import (
    CHALLENGER,
    CHAMPION,
    MODELS,
    Alias,
    Ledger,
    Move,
    Version,
    append,
    now_utc,
    publish_dossier,
    read_ledger,
)
from hardcase.registry.mirror import Mirror, UnshownError
from hardcase.runtime.materials import keyring
from hardcase.runtime.running import circumstances, running
from hardcase.stats.gate import Decision, decide
from hardcase.stats.learning import list_warnings, read_log
from hardcase.store.control import retain
from hardcase.store.digest import canonical_json
from hardcase.store.store import Store, write_atomically

logger = logging.getLogger(__name__)


def execute(plan: Mapping[str, Any], model: str, evaluation: str, drift: str) -> str:
    """Register the model of these attestations, and return the sha256 of the step's own."""
    with running("register", plan, {"model": model, "evaluation": evaluation, "drift": drift}) as work:
        attestations = sorted({material.attested_by for material in work.materials.values()})
        made = gather_account(attestations, work.plan["parameters"], circumstances(), keyring(), work.store)
        config = RegisterConfig.model_validate(work.config)
        work.cached = not run(made, keyring(), plan["tracking_uri"], config, work.outputs / "registration")
    return work.attestation


def run(made: Account, keys: Keyring, tracking_uri: str, config: RegisterConfig, result: Path) -> bool:
    """Register a model, and make it the champion if it passes the gate; return False if the same work registered it.

    `result` is JSON: `verdict`, `reasons`, `warnings`, `name`, `version`, `alias`, `digest`, `against` (the champion,
    or null), `differences` (null where nothing was compared).
    """
    mirror, store = Mirror(tracking_uri), made.store
    scores, drift = read_scores(made.read("scores")), made.read_json("drift")
    table = read_evaluation(made.read("evaluation"), "evaluation of this run")
    warnings = list_warnings(read_cases(made.read("mined")), read_log(made.read("grpo_log")), scores)
    new = False
    while True:
        ledger = read_ledger(store, config.name, keys)
        done = ledger.find_judged(made.model, made.evaluation, made.plan["fingerprint"], made.pinned)
        if done is not None:
            break
        champion = _champion(ledger, made)
        before = _evaluation(store, ledger, champion) if champion else None
        against = f"{ledger.name}:{champion.number}" if champion else ""
        decision = decide(scores, table, before, drift, config, made.seed, against)
        version = _version(made, decision, warnings, champion, ledger, keys)
        who, why = made.circumstances.get("who", "hardcase"), "; ".join(decision.reasons)
        move = Move(alias=_alias(version), version=version.number, who=who, when=now_utc(), why=why, made=version)
        if append(store, keys, ledger, move):
            done, new = version, True
            break
        logger.info("another run registered a version first; judging again")
    published = publish_dossier(store, config.name, done)
    if config.retention_days is not None:
        for name in [*published, *store.list_names(f"{MODELS}/{config.name}/ledger")]:
            retain(store.uri, name, config.retention_days)
    try:
        mirror.show(partial(read_ledger, store, config.name, keys), store.uri)
    except UnshownError as error:
        logger.warning("%s:%d is registered, but MLflow does not show it: %s", config.name, done.number, error)
    gate = json.loads(store.get_object(done.gate))
    registered = {
        "verdict": done.verdict,
        "reasons": done.reasons,
        "warnings": gate.get("warnings", []),  # 0.1.0 had none
        "name": config.name,
        "version": done.number,
        "alias": _alias(done),
        "digest": done.digest,
        "against": gate["against"],
        "differences": gate["differences"],
    }
    result.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(result, (json.dumps(registered, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode())
    return new


def _alias(version: Version) -> Alias:
    return CHAMPION if version.verdict == "promoted" else CHALLENGER


def _champion(ledger: Ledger, made: Account) -> Version | None:
    """Return today's champion, which may be another than when the run was launched."""
    pinned = made.pinned
    if pinned and int(pinned) not in ledger.versions:
        raise HardcaseError(
            f"champion {ledger.name}:{pinned} is not in the ledger; bring the store back as it was, or run again"
        )
    if made.reference and made.reference not in {version.evaluation for version in ledger.versions.values()}:
        raise HardcaseError(
            f"cannot account for the model: drift compared with {made.reference[:12]}, which is no version's "
            "evaluation; nothing was registered, run again"
        )
    if (now := ledger.champion) and str(now.number) != pinned:
        logger.info(
            "the champion is %s:%d by now, not %s; judging against it", ledger.name, now.number, pinned or "none"
        )
    return now


def _evaluation(store: Store, ledger: Ledger, champion: Version) -> pa.Table:
    try:
        data = store.get_object(champion.evaluation)
    except HardcaseError as error:
        raise HardcaseError(
            f"champion {ledger.name}:{champion.number}: its evaluation is lost: {error}; bring it back, or "
            f"`hardcase rollback {ledger.name}` to a version that is whole, and run again"
        ) from error
    return read_evaluation(data, f"evaluation of champion {ledger.name}:{champion.number}")


def _version(
    made: Account,
    decision: Decision,
    warnings: list[str],
    champion: Version | None,
    ledger: Ledger,
    keys: Keyring,
) -> Version:
    """Store the judgement, the signed statement and the dossier, and return the version that they make."""
    store, number = made.store, len(ledger.versions) + 1
    against = champion.number if champion else None
    gate = {**asdict(decision), "warnings": warnings, "against": against}
    provenance = made.provenance(ledger.name, champion, store.put_object(canonical_json(gate)))
    statement = keys.sign(provenance.statement(json.loads(store.get_object(made.model))))
    files = make_dossier(made, ledger.name, number, gate, statement)
    listing = {name: store.put_object(data) for name, data in files.items()}
    return Version(
        number=number,
        digest=made.model,
        evaluation=made.evaluation,
        fingerprint=made.plan["fingerprint"],
        pinned=made.pinned,
        reference=str(against or ""),
        reference_evaluation=made.reference,
        verdict=decision.verdict,
        reasons=decision.reasons,
        gate=provenance.byproducts["gate"].digest,
        statement=store.put_object(statement),
        dossier=store.put_object(canonical_json(listing)),
        run=provenance.run,
    )
