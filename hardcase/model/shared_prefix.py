"""Compute the log-probabilities of completions with each prompt computed once for all of them, gradients included.

A prompt and its completions become one row `[prompt | c1 | c2 …]`, without padding between them. A mask separates the
completions, and their positions all continue the prompt's. So one call of a stock model does the work of many, as
activation checkpointing and data parallelism require. Only the hidden states that predict a completion's token reach
the language model's head, which TRL computes in tiles, so that logits over the vocabulary never exist whole.

Positions and padding are those of TRL 1.16: prompts padded left, positions counted over the padding too.

Shapes: R completions, B prompts, P prompt tokens, C completion tokens, L tokens of the longest row, H hidden width.
"""

from dataclasses import dataclass
from typing import Any, Final

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BLOCK = 128  # side of a block that FlexAttention computes or skips
BY_PARTS: Final = "sdpa_by_parts"


def attend_by_parts(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    prompt_tokens: int = 0,
    prompt_mask: bool = True,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as sdpa does, the prompts of packed rows apart: without padding they need no mask, which costs half."""
    if attention_mask is None or not prompt_tokens:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    first, rest = (slice(prompt_tokens), slice(prompt_tokens, None))
    own_mask = attention_mask[:, :, first, first] if prompt_mask else None
    prompt, _ = sdpa_attention_forward(
        module, query[:, :, first], key[:, :, first], value[:, :, first], own_mask, **kwargs
    )
    completions, _ = sdpa_attention_forward(module, query[:, :, rest], key, value, attention_mask[:, :, rest], **kwargs)
    return torch.cat([prompt, completions], 1), None


AttentionInterface.register(BY_PARTS, attend_by_parts)
AttentionMaskInterface.register(BY_PARTS, sdpa_mask)


@dataclass(frozen=True)
class Packed:
    """Rows of prompts with their completions, and which of their positions predict the completions' tokens."""

    ids: Tensor  # (B, L), as the next two
    position: Tensor
    segment: Tensor  # 0 in a prompt, the number of the completion from 1, -1 in padding
    predictor: Tensor  # (R, C) position in the row

    def may_attend(self, row: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Return whether a position may attend to another."""
        own, other = self.segment[row, query], self.segment[row, key]
        earlier = (key <= query) & (other >= 0) & ((other == 0) | (other == own))
        return earlier | (key == query)  # a position that sees nothing would give NaN

    def build_mask(self, *, block_sparse: bool) -> Any:
        """Build the attention mask: a FlexAttention `BlockMask`, or dense (B, 1, L, L)."""
        (rows, length), device = self.ids.shape, self.ids.device
        if block_sparse:
            return create_block_mask(
                lambda row, _, query, key: self.may_attend(row, query, key),
                *(rows, None, length, length),
                device=device,
                BLOCK_SIZE=BLOCK,
            )
        row, position = torch.arange(rows, device=device), torch.arange(length, device=device)
        return self.may_attend(row[:, None, None], position[:, None], position)[:, None]


def pack(input_ids: Tensor, mask: Tensor, prompt_tokens: int, of_row: Tensor, multiple: int = 1) -> Packed:
    """Pack prompts and completions, `input_ids` and `mask` (R, P + C), into rows of a `multiple` of tokens.

    `of_row` (R,) is the number of each completion's prompt, from 0 to B - 1. Every prompt has one.
    """
    device, completion_mask = input_ids.device, mask[:, prompt_tokens:].bool()
    first_B = torch.stack([(of_row == number).nonzero()[0, 0] for number in range(int(of_row.max()) + 1)])
    length_R = completion_mask.sum(1)
    start_R = prompt_tokens + ((of_row[:, None] == of_row).tril(-1) * length_R).sum(1)
    length = -(-int((start_R + length_R).max()) // multiple) * multiple
    row, token = completion_mask.nonzero(as_tuple=True)
    own = of_row[row], start_R[row] + token

    ids_BL = input_ids.new_zeros(len(first_B), length)
    ids_BL[:, :prompt_tokens] = input_ids[first_B, :prompt_tokens]
    ids_BL[own] = input_ids[row, prompt_tokens + token]
    position_BL = torch.arange(length, device=device).repeat(len(first_B), 1)
    position_BL[own] = prompt_tokens + token
    segment_BL = torch.full_like(position_BL, -1)
    segment_BL[:, :prompt_tokens] = mask[first_B, :prompt_tokens].long() - 1
    segment_BL[own] = row + 1
    predictor_RC = start_R[:, None] - 1 + torch.arange(completion_mask.size(1), device=device)
    predictor_RC[:, 0] = prompt_tokens - 1
    return Packed(ids_BL, position_BL, segment_BL, predictor_RC.clamp(max=length - 1))


def compute_log_probabilities(
    model: Any,
    stock: Any,
    input_ids: Tensor,
    mask: Tensor,
    prompt_tokens: int,
    of_row: Tensor,
    pixels: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Return log-probability and entropy (R, C) of each completion token, 0 where the completion is padded.

    Args:
        model: what TRL's trainer calls, whose language model's head is TRL's (1.16.0, trainer/utils.py:1548), which
            fixes the temperature and whether there are entropies.
        stock: the same model without what wraps it for several processes.
        input_ids: each row's prompt and completion (R, P + C); `mask` is of the same shape.
        of_row: as of `pack`.
        pixels: images of the B prompts, in order, as the model takes them.
    """
    attention = stock.config.get_text_config()._attn_implementation
    block_sparse = attention == "flex_attention"
    packed = pack(input_ids, mask, prompt_tokens, of_row, BLOCK if block_sparse else 1)
    labels = input_ids[:, prompt_tokens:].masked_fill(mask[:, prompt_tokens:] == 0, -100)
    in_completion = packed.segment > 0
    # An image token stands for features of an image. One that was sampled has none.
    ids_BL = packed.ids.masked_fill(in_completion & (packed.ids == stock.config.image_token_id), 0)

    by_parts = {"prompt_tokens": prompt_tokens, "prompt_mask": bool((mask[:, :prompt_tokens] == 0).any())}
    by_parts = by_parts if attention == BY_PARTS else {}

    def select_predictors(_: Any, __: Any, output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[of_row[:, None], packed.predictor]
        return output

    backbone: Any = (stock.get_base_model() if isinstance(stock, PeftModel) else stock).base_model
    handle = backbone.register_forward_hook(select_predictors)
    try:
        output = model(
            input_ids=ids_BL,
            attention_mask=packed.build_mask(block_sparse=block_sparse),
            position_ids=packed.position,
            pixel_values=pixels,
            shift_labels=labels,
            fused_lm_head=True,
            **by_parts,
        )
    finally:
        handle.remove()
    return output.log_probs, output.entropy
