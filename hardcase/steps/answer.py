"""answer: greedy answers of a model to the untouched split, one shard of the samples at a time.

The final model answers in several orders of the candidates, by which its confidence is calibrated.
"""

from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from hardcase.config import EvaluateConfig
from hardcase.data.completions import merge_completions, write_completions
from hardcase.data.snapshot import Snapshot
from hardcase.errors import InputError
from hardcase.model.engine import WINDOW, generate_answers, open_engine
from hardcase.model.internvl import set_up_torch
from hardcase.runtime.processes import in_shards
from hardcase.runtime.running import running


def execute(plan: Mapping[str, Any], snapshot: str, model: str, sft_model: str = "") -> str:
    """Answer with a model, and with the SFT model if there is one; return the sha256 of the step's attestation."""
    with running("answer", plan, {"snapshot": snapshot, "model": model, "sft_model": sft_model}) as work:
        (work.outputs / "answers").mkdir()
        config = EvaluateConfig.model_validate(work.config)
        for name, role in (("model", "final"), ("sft_model", "sft")):
            if name in work.materials:
                tables = in_shards(
                    run,
                    int(plan["shards"]),
                    int(plan["nodes"]),
                    scratch=work.folder / role,
                    written="answers",
                    snapshot=work.input("snapshot"),
                    store=plan["store"],
                    model=work.input(name),
                    config=config if role == "final" else config.model_copy(update={"orders": 1}),
                    seed=work.seed,
                )
                merge_completions(tables, work.outputs / "answers" / f"{role}.parquet")
    return work.attestation


def run(
    snapshot: Path, store: str, model: Path, config: EvaluateConfig, seed: int, shard: str, scratch: Path, answers: Path
) -> None:
    """Write the completions of one shard (`i/n`) of the `eval` split; a stopped run continues in `scratch`."""
    opened = Snapshot.open(snapshot, store)
    if not opened.count("eval"):
        raise InputError("snapshot: no rows in the evaluation split; raise `ingest.eval_share` or mark rows `eval`")
    first, samples = opened.open_samples("eval").select_shard(shard, WINDOW * config.batch_size)
    set_up_torch(seed, config.threads)
    engine = open_engine(config, model, seed)
    by_order = [
        generate_answers(
            engine,
            samples,
            copies=1,
            batch_size=config.batch_size,
            max_new_tokens=config.max_new_tokens,
            temperature=0,
            seed=seed,
            what=f"answering in order {order + 1} of {config.orders}",
            folder=scratch / "answers" / str(order),
            first=first,
            order=order,
        )
        for order in range(config.orders)
    ]
    write_completions(samples.read_column("id"), [[*chain(*row)] for row in zip(*by_order, strict=True)], answers)
