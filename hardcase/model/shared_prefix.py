"""Compute the logits of completions with each prompt computed once for all of its completions, gradients included.

Two forms of the same computation, on stock model classes:
- cached: prompts first, then all completions from copies of their key-value cache. This form is the faster one.
- packed: one row `[prompt | c1 | c2 …]` a prompt, a mask that separates completions, and positions that restart.
  It needs one call of the model and no cache, as activation checkpointing and data parallelism require.

Positions and padding are those of TRL 1.16: prompts padded left, positions counted over the padding too.

Shapes: R rows (completions), B prompts, P prompt tokens, C completion tokens, S slots (most completions of a prompt),
V vocabulary size.
"""

from typing import Any

import torch
from torch import Tensor


def compute_cached_logits(
    model: Any, input_ids: Tensor, mask: Tensor, prompt_tokens: int, of_row: Tensor, pixels: Tensor
) -> Tensor:
    """Return the logits (R, C, V) that predict each completion token.

    `input_ids` and `mask` (R, P + C) are each row's prompt and completion, `of_row` (R,) the number of its prompt, from
    0 to B - 1. `pixels` are the images of the B prompts, in order, as the model takes them.
    """
    first = _find_first_rows(of_row)
    prompt = model(
        input_ids=input_ids[first, :prompt_tokens],
        attention_mask=mask[first, :prompt_tokens],
        pixel_values=pixels,
        use_cache=True,
        logits_to_keep=1,
    )
    prompt.past_key_values.batch_select_indices(of_row)
    positions = torch.arange(prompt_tokens, input_ids.size(1), device=input_ids.device)
    completion = model(
        input_ids=input_ids[:, prompt_tokens:],
        attention_mask=mask,
        position_ids=positions.expand(len(input_ids), -1),
        past_key_values=prompt.past_key_values,
        use_cache=True,
    )
    return torch.cat([prompt.logits[of_row, -1:], completion.logits[:, :-1]], 1)


def compute_packed_logits(
    model: Any, input_ids: Tensor, mask: Tensor, prompt_tokens: int, of_row: Tensor, pixels: Tensor
) -> Tensor:
    """Return the same as `compute_cached_logits`, in one call of the model."""
    first, device = _find_first_rows(of_row), input_ids.device
    rows, width = len(input_ids), input_ids.size(1) - prompt_tokens
    earlier_R = (of_row[:, None] == of_row).tril(-1).sum(1)  # its slot: the number of earlier completions of its prompt
    slots = int(earlier_R.max()) + 1

    def pack(of_tokens: Tensor) -> Tensor:
        slots_BSC = of_tokens.new_zeros(len(first), slots, width)
        slots_BSC[of_row, earlier_R] = of_tokens[:, prompt_tokens:]
        return torch.cat([of_tokens[first, :prompt_tokens], slots_BSC.flatten(1)], 1)

    segment_L = torch.cat([torch.zeros(prompt_tokens), torch.arange(1, slots + 1).repeat_interleave(width)]).to(device)
    position_L = torch.cat([torch.arange(prompt_tokens), prompt_tokens + torch.arange(width).repeat(slots)]).to(device)
    same_LL = (segment_L == 0) | (segment_L[:, None] == segment_L)
    allowed_LL = same_LL.tril()
    # A position that sees nothing would give NaN.
    itself_LL = torch.eye(len(segment_L), dtype=torch.bool, device=device)
    visible_B1LL = (allowed_LL & pack(mask).bool()[:, None, None]) | itself_LL
    logits = model(
        input_ids=pack(input_ids),
        attention_mask=visible_B1LL,
        position_ids=position_L.expand(len(first), -1),
        pixel_values=pixels,
        use_cache=False,
        logits_to_keep=slots * width + 1,
    ).logits
    own_RC = 1 + earlier_R[:, None] * width + torch.arange(width - 1, device=device)
    return torch.cat([logits[of_row, :1], logits[of_row[:, None], own_RC]], 1).reshape(rows, width, -1)


def _find_first_rows(of_row: Tensor) -> Tensor:
    return torch.stack([(of_row == number).nonzero()[0, 0] for number in range(int(of_row.max()) + 1)])
