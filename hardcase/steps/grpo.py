"""grpo: HCM-GRPO from the SFT model on all training samples; mined cases are weighted by how much they can teach."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hardcase.config import GrpoConfig
from hardcase.config.base import Destination
from hardcase.data.cases import read_cases
from hardcase.data.snapshot import Snapshot
from hardcase.errors import InputError
from hardcase.model.grpo import train_grpo
from hardcase.model.internvl import hold_equal_weights, load_model, save_model, set_attention, set_up_torch
from hardcase.model.training import write_log
from hardcase.provenance.products import fetch_product
from hardcase.provenance.statement import FOLDER
from hardcase.registry.account import REWARDS
from hardcase.runtime.processes import in_processes
from hardcase.runtime.running import open_destination, running
from hardcase.stats.learning import list_warnings

logger = logging.getLogger(__name__)


def execute(plan: Mapping[str, Any], snapshot: str, sft_model: str, mined: str) -> str:
    """Train the SFT model further, and return the sha256 of the step's attestation."""
    files = plan["parameters"]["reward_files"]
    given = {REWARDS: files} if files else {}
    with running("grpo", plan, {"snapshot": snapshot, "sft_model": sft_model, "mined": mined}, given) as work:
        in_processes(
            run,
            GrpoConfig.model_validate(work.config),
            work.folder,
            snapshot=work.input("snapshot"),
            store=plan["store"],
            model=work.input("sft_model"),
            mined=work.input("mined"),
            seed=work.seed,
            model_out=work.outputs / "model",
            log=work.outputs / "grpo_log",
            to=open_destination(plan),
            hold_out=plan["parameters"]["hold_out"],
            reward_files=fetch_product(work.store, files, FOLDER, work.folder / "inputs" / REWARDS) if files else None,
        )
    return work.attestation


def run(
    snapshot: Path,
    store: str,
    model: Path,
    mined: Path,
    config: GrpoConfig,
    seed: int,
    scratch: Path,
    model_out: Path,
    log: Path,
    reward_files: Path | None = None,
    hold_out: float = 0.0,
    to: Destination | None = None,
) -> None:
    """Train the SFT model with GRPO on the training split; scratch, model and log are as of the step `sft`.

    `reward_files` is the folder of the user's reward functions, `hold_out` the share of groups held out,
    `to` where metrics are shown.

    The last entry of the log says whether training changed the weights.
    """
    from accelerate import PartialState

    samples, held_out = Snapshot.open(snapshot, store).open_samples("train").hold_out(hold_out)
    if config.validate_steps and not held_out:
        raise InputError("snapshot: no group is held out, which GRPO validates on; raise sft.hold_out")
    cases, ids = read_cases(mined), samples.read_column("id")
    own = [case.id for case in cases]
    if own != ids and (config.depends_on_mining or not set(own) < set(ids)):
        raise InputError(f"{mined}: its ids are not the training split's; mine this snapshot again")
    set_up_torch(seed, config.threads)
    network, processor = load_model(model, dtype=config.dtype)
    set_attention(network, config.attention)
    entries = train_grpo(network, processor, samples, cases, config, seed, scratch, reward_files, held_out, to)
    save_model(network, processor, model_out)
    if PartialState().is_main_process:
        entries[-1]["weights_changed"] = not hold_equal_weights(model, model_out)
        for warning in list_warnings(log=entries):
            logger.warning(warning)
    write_log(entries, log)
