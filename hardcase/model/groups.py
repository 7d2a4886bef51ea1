"""Groups of rollouts between their rewards and the loss: leave out what teaches nothing, balance, deal into batches.

A completion whose advantage is 0 adds nothing to a loss that is normalised over all tokens of the step, so the loss
does without it. Completions of a prompt stay together, because the loss computes a prompt once for all that are in one
batch; TRL 1.16 shuffles them (trainer/grpo_trainer.py:1547), which scatters them over all batches of the step.

A batch is a dict of tensors with a row for each completion, but for `pixel_values`, a list with a tensor for each
prompt, and `group`, the number of a row's prompt in that list.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Final

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from trl.trainer.utils import pad

Batch = dict[str, Any]
ROUNDING: Final = 1e-6  # an advantage below it is the rounding error of a mean of equal rewards


def take(batch: Batch, rows: Tensor) -> Batch:
    """Return a batch of some rows, its completions cut to the longest of them."""
    groups, group = torch.unique(batch["group"][rows], return_inverse=True)
    taken = {
        key: value[rows] if isinstance(value, Tensor) and value.ndim else value
        for key, value in batch.items()
        if key != "pixel_values"
    }
    pixels = [batch["pixel_values"][number] for number in groups.tolist()]
    width = max(1, int(taken["completion_mask"].sum(1).max()))
    return {**_cut(taken, width), "group": group, "pixel_values": pixels}


def join(batches: Sequence[Batch], padding: int) -> Batch:
    """Join batches into one, with prompts padded left and completions padded right with the token `padding`."""
    first = accumulate((len(batch["pixel_values"]) for batch in batches), initial=0)
    joined: Batch = {**batches[0], "pixel_values": [pixels for batch in batches for pixels in batch["pixel_values"]]}
    for key, value in batches[0].items():
        if isinstance(value, Tensor) and value.ndim:
            side, fill = "left" if key.startswith("prompt") else "right", padding if key.endswith("_ids") else 0
            rows = [row for batch in batches for row in batch[key]]
            joined[key] = pad(rows, fill, side) if value.ndim > 1 else torch.stack(rows)
    groups = [batch["group"] + start for batch, start in zip(batches, first, strict=False)]
    return {**joined, "group": torch.cat(groups)}


def select_taught(batch: Batch) -> Batch | None:
    """Return the rows that have an advantage, or None where no row has."""
    rows = (batch["advantages"].abs() > ROUNDING).nonzero()[:, 0]
    return take(batch, rows) if len(rows) else None


def balance(batch: Batch | None, accelerator: Accelerator, padding: int) -> Batch | None:
    """Return a process's share of the groups that all processes have, as equal as they can be divided.

    A process keeps its own as far as its share goes, and the rest moves to those that have fewer.
    """
    groups = [] if batch is None else [take(batch, (batch["group"] == n).nonzero()[:, 0]) for n in _number(batch)]
    counts = gather_object([len(groups)])
    share = -(-sum(counts) // len(counts))
    missing = [max(0, share - count) for count in counts]
    first, own = sum(missing[: accelerator.process_index]), missing[accelerator.process_index]
    moved = gather_object([_move(group, "cpu") for group in groups[share:]])[first : first + own]
    parts = groups[:share] + [_move(group, accelerator.device) for group in moved]
    return join(parts, padding) if parts else None


def deal(batch: Batch | None, parts: int, *, whole: bool) -> list[Batch | None]:
    """Deal a batch into `parts`, as equal as they can be and of `whole` groups; None where too little is left."""
    if batch is None:
        return [None] * parts
    of_unit = batch["group"] if whole else torch.arange(len(batch["group"]), device=batch["group"].device)
    units = torch.tensor_split(torch.unique(of_unit), parts)
    return [take(batch, torch.isin(of_unit, some).nonzero()[:, 0]) if len(some) else None for some in units]


def build_idle_batch(batch: Batch, image_token: int, image_tokens: int) -> Batch:
    """Build the smallest batch that all weights have a part in: one tile, one token, no advantage.

    Processes that train together compute the same number of losses, whether or not there is something to learn.
    """
    idle = take(batch, torch.zeros(1, dtype=torch.long, device=batch["group"].device))
    own = idle["prompt_mask"][0].bool()
    prompt = idle["prompt_ids"][0, own]
    end = int((prompt == image_token).nonzero()[image_tokens - 1, 0]) + 1
    idle["prompt_ids"], idle["prompt_mask"] = prompt[None, :end], own.new_ones(1, end, dtype=torch.long)
    idle = _cut(idle, 1)
    if "sampling_per_token_logps" in idle:  # those of another prompt: TRL's mark of an unknown value
        idle["sampling_per_token_logps"] = torch.full_like(idle["sampling_per_token_logps"], torch.nan)
    return {
        **idle,
        "completion_mask": torch.ones_like(idle["completion_ids"]),
        "advantages": torch.zeros_like(idle["advantages"]),
        "pixel_values": [idle["pixel_values"][0][:1]],
    }


def _cut(batch: Batch, width: int) -> Batch:
    """Return the batch with the first `width` tokens of its completions."""
    full = batch["completion_ids"].size(1)
    per_token = {
        key
        for key, value in batch.items()
        if isinstance(value, Tensor) and value.ndim == 2 and value.size(1) == full and not key.startswith("prompt")
    }
    return {key: value[:, :width] if key in per_token else value for key, value in batch.items()}


def _number(batch: Batch) -> range:
    return range(len(batch["pixel_values"]))


def _move(batch: Batch, device: Any) -> Batch:
    moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    return {**moved, "pixel_values": [pixels.to(device) for pixels in batch["pixel_values"]]}
