"""answer: a model's greedy answers on the untouched split; one shard of the samples."""

from pathlib import Path

from hardcase.config import EvaluateConfig
from hardcase.data.completions import write_completions
from hardcase.data.snapshot import Snapshot
from hardcase.errors import InputError
from hardcase.model.engine import generate_answers, open_engine
from hardcase.model.internvl import set_up_torch


def run(
    snapshot: Path,
    store: str,
    model: Path,
    config: EvaluateConfig,
    seed: int,
    shard: str,
    scratch: Path,
    answers: Path,
) -> None:
    """Write the completions of one shard.

    Args:
        snapshot: the manifest; its `eval` split is answered.
        store: where its shards lie.
        model: its folder.
        config: of answering.
        seed: of the engine; answers are greedy.
        shard: which one of how many: `1/1` is all.
        scratch: folder for what was answered; a run that was stopped goes on from there.
        answers: the table.

    Raises:
        InputError: the snapshot holds no evaluation rows.
    """
    opened = Snapshot.open(snapshot, store)
    if not opened.count("eval"):
        raise InputError("snapshot: no rows in the evaluation split; raise `ingest.eval_share` or mark rows `eval`")
    first, samples = opened.load_shard("eval", shard)
    set_up_torch(seed, config.threads)
    texts = generate_answers(
        open_engine(config.engine, model, seed),
        samples,
        copies=1,
        batch_size=config.batch_size,
        max_new_tokens=config.max_new_tokens,
        temperature=0,
        seed=seed,
        what="answering",
        kept=scratch / "answers",
        first=first,
    )
    write_completions([sample.id for sample in samples], texts, answers)
