"""HCM-GRPO (arXiv 2511.10055): TRL's GRPOTrainer with hard-case sampling and the prompt computed once for its group.

A narrow subclass. It differs from TRL 1.16 in these hooks:
- `_get_train_sampler` draws prompts by mined weights instead of uniformly;
- `_generate_single_turn` runs each prompt once and samples its G completions side by side in its row;
- `_get_per_token_logps_and_entropies` does the same for the loss, with gradients through the shared prompt;
- `_save_rng_state` and `_load_rng_state` checkpoint unused rollouts, which TRL generates again after a resume;
- `_calculate_rewards` also logs the reward by aspect and the share of hard cases, where the rows carry them.
Rollouts are regrouped by prompt before the loss, because TRL shuffles them.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler
from transformers import ProcessorMixin
from trl import GRPOTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import pad, selective_log_softmax_and_entropy

from hardcase.model.mining import GroupSampler, Weights
from hardcase.model.rollout import generate_completions
from hardcase.model.shared_prefix import compute_cached_logits, compute_packed_logits
from hardcase.model.vllm import use_rollouts

logger = logging.getLogger(__name__)


class _OncePerPrompt:
    """Process each prompt once and repeat the result for its copies, which are adjacent."""

    def __init__(self, processor: ProcessorMixin, copies: int) -> None:
        self._processor, self._copies = processor, copies

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, images: list[Any], text: list[str], **kwargs: Any) -> dict[str, Tensor]:
        inputs = self._processor(images=images[:: self._copies], text=text[:: self._copies], **kwargs)
        tokens = inputs["input_ids"] == self._processor.image_token_id
        tiles = (tokens.sum(1) // self._processor.image_seq_length).tolist()
        images_by_prompt = torch.split(inputs["pixel_values"], tiles)
        repeated = {key: inputs[key].repeat_interleave(self._copies, 0) for key in ("input_ids", "attention_mask")}
        pixels = torch.cat([images_by_prompt[index // self._copies] for index in range(len(text))])
        return {**repeated, "pixel_values": pixels}


class HCMGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """Train as `trl.GRPOTrainer` does, for which it is a drop-in, on prompts with several images.

    Args:
        weights: probability of drawing each training row, or a function that returns the probabilities of a round
            when it begins. None draws uniformly without repeats, as TRL does.
        rounds: number of equal parts of the training, each with its own weights.
        most_draws: most draws of one row, while there are enough others.
        vllm_options: arguments of `vllm.LLM` that TRL leaves open.
        args, kwargs: as for `trl.GRPOTrainer`.
    """

    def __init__(
        self,
        *args: Any,
        weights: Callable[[int], Weights] | Sequence[float] | Weights | None = None,
        rounds: int = 1,
        most_draws: int | None = None,
        vllm_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._weights, self._rounds, self._most_draws = weights, rounds, most_draws
        self._groups: Tensor | None = None
        self.processing_class: Any
        with use_rollouts(vllm_options or {}):
            super().__init__(*args, **kwargs)
        self._shares_prompts = self._can_share("prompts", self._find_prompt_obstacle())
        self._shares_rollouts = self._shares_prompts and self._can_share("rollouts", self._find_rollout_obstacle())

    def _can_share(self, what: str, obstacle: str | None) -> bool:
        if obstacle:
            logger.warning("%s of a group are not shared but left to TRL: %s", what, obstacle)
        return not obstacle

    def _find_prompt_obstacle(self) -> str | None:
        config = self.model.config
        if not hasattr(self.processing_class, "image_seq_length"):
            return f"{type(self.processing_class).__name__} does not count image tokens as InternVL's does"
        if (attention := config._attn_implementation) not in {"sdpa", "eager"}:
            return f"attention {attention!r} takes no mask that separates completions; set 'sdpa'"
        if set(getattr(config.get_text_config(), "layer_types", None) or ()) - {"full_attention"}:
            return "not all of its layers attend to the whole prompt"
        return "tools put images into completions" if self.tools else None

    def _find_rollout_obstacle(self) -> str | None:
        if self.use_vllm or self.use_transformers_continuous_batching:
            return "vLLM and continuous batching share prefixes by themselves"
        options = {"generation_kwargs": None, "top_p": 1.0, "top_k": 0, "min_p": None, "repetition_penalty": 1.0}
        changed = [name for name, default in options.items() if (getattr(self.args, name) or default) != default]
        return f"only plain sampling is supported, without {', '.join(changed)}" if changed else None

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        if self._weights is None:
            return super()._get_train_sampler(dataset)  # type: ignore[no-any-return]
        repeats, weights = self.num_iterations * self.args.steps_per_generation, self._weights
        return GroupSampler(
            weights if callable(weights) else lambda _: np.asarray(weights, dtype=np.float64),
            prompts=self.args.generation_batch_size // self.num_generations,
            generations=self.num_generations,
            batches=-(-self.args.max_steps * self.args.gradient_accumulation_steps // repeats),
            repeats=repeats,
            seed=self.args.seed,
            rounds=self._rounds,
            most_draws=self._most_draws,
        )

    def _count_copies(self) -> int:
        return int(self.num_generations if self.model.training else self.num_generations_eval)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[Any], Any, dict[str, Any]]:
        """Tokenize as TRL does, but each prompt's G adjacent copies once."""
        if not (self._shares_rollouts or (self._shares_prompts and self.use_vllm)):
            return super()._tokenize_prompts(prompts)  # type: ignore[no-any-return]
        copies = self._count_copies()
        ids, images, fields = super()._tokenize_prompts(prompts[::copies])
        order = [index // copies for index in range(len(prompts))]
        return [ids[index] for index in order], images and [images[index] for index in order], fields

    def _generate_single_turn(
        self, prompt_ids: list[Any], images: Any, multimodal_fields: dict[str, Any], num_generations: int, **kwargs: Any
    ) -> tuple[list[list[int]], None]:
        """Generate as TRL does locally: return the token ids of every completion, its end included."""
        if not self._shares_rollouts:
            return super()._generate_single_turn(prompt_ids, images, multimodal_fields, num_generations, **kwargs)  # type: ignore[no-any-return]
        tokens = [torch.as_tensor(ids) for ids in prompt_ids[::num_generations]]
        inputs = {
            "input_ids": pad(tokens, padding_value=self._tokenizer.pad_token_id, padding_side="left"),
            "attention_mask": pad([torch.ones_like(ids) for ids in tokens], padding_value=0, padding_side="left"),
            **multimodal_fields,
        }
        inputs = {key: torch.as_tensor(np.asarray(value)).to(self.accelerator.device) for key, value in inputs.items()}
        with (
            unwrap_model_for_generation(
                self.model_wrapped, self.accelerator, gather_deepspeed3_params=self.args.ds3_gather_for_generation
            ) as model,
            self.accelerator.autocast(),
        ):
            completions = generate_completions(
                model, inputs, num_generations, self.max_completion_length, self.temperature
            )
        ended = torch.isin(completions, torch.as_tensor(self.eos_token_ids, device=completions.device)).int()
        lengths = torch.where(ended.any(1), ended.argmax(1) + 1, completions.size(1))
        return [ids[:length].tolist() for ids, length in zip(completions, lengths, strict=True)], None

    def _calculate_rewards(self, inputs: list[dict[str, Any]], *args: Any, **kwargs: Any) -> Tensor:
        rewards: Tensor = super()._calculate_rewards(inputs, *args, **kwargs)
        metrics = self._metrics["train" if self.model.training else "eval"]
        own = self.accelerator.process_index * len(inputs)  # TRL has gathered them from all processes
        first = rewards[own : own + len(inputs), 0].tolist()
        for name in sorted({row["aspect"] for row in inputs if "aspect" in row}):
            aspect_rewards = [reward for row, reward in zip(inputs, first, strict=True) if row["aspect"] == name]
            metrics[f"reward/{name}"].append(float(np.mean(aspect_rewards)))
        if all("hard" in row for row in inputs):
            metrics["hard_share"].append(float(np.mean([row["hard"] for row in inputs])))
        return rewards

    def _get_rollouts_file(self, checkpoint: str) -> Path:
        return Path(checkpoint) / f"rollouts_{self.accelerator.process_index}.pt"

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        all_used = self._step % (self.args.steps_per_generation * self.num_iterations) == 0
        rollouts = {"step": self._step, "batches": None if all_used else self._buffered_inputs}
        torch.save(rollouts, self._get_rollouts_file(output_dir))

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None and (file := self._get_rollouts_file(checkpoint)).is_file():
            rollouts = torch.load(file, map_location=self.accelerator.device, weights_only=True)
            self._step, self._buffered_inputs = rollouts["step"], rollouts["batches"]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        processor = self.processing_class
        if self._shares_prompts:
            self.processing_class = _OncePerPrompt(processor, self._count_copies())
        try:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        finally:
            self.processing_class = processor
        if self.use_vllm:
            self.vllm_generation.compare(output, self.model.dtype)
        output["group"] = torch.arange(len(inputs), device=self.accelerator.device) // self._count_copies()
        return output

    def _compute_loss(self, model: Any, inputs: dict[str, Any]) -> Tensor:
        # TRL has shuffled the rollouts by now, so the loss needs to know which of them share a prompt.
        self._groups = inputs["group"]
        try:
            return super()._compute_loss(model, inputs)  # type: ignore[no-any-return]
        finally:
            self._groups = None

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return log-probabilities and entropies (B·G, C) of the completions' tokens, as TRL does."""
        others = {key for key, value in kwargs.items() if value is not None and value is not False}
        others -= {"batch_size", "compute_entropy", "pixel_values", "num_images", "num_tiles"}
        if not self._shares_prompts or others:
            return super()._get_per_token_logps_and_entropies(  # type: ignore[no-any-return]
                model, input_ids, attention_mask, logits_to_keep, **kwargs
            )
        width, groups = input_ids.size(1) - logits_to_keep, self._groups
        if groups is None:
            groups = torch.arange(len(input_ids), device=input_ids.device) // self._count_copies()
        _, of_row = torch.unique(groups, return_inverse=True)
        images_by_row = torch.split(kwargs["pixel_values"], kwargs.get("num_tiles") or kwargs["num_images"])
        first = dict(zip(reversed(of_row.tolist()), reversed(images_by_row), strict=True))  # of each prompt's rows
        pixels = torch.cat([first[number] for number in sorted(first)])
        stock = self.accelerator.unwrap_model(model)
        in_one_call = self.accelerator.num_processes > 1 or (stock.is_gradient_checkpointing and stock.training)
        with self.accelerator.autocast():
            logits = (compute_packed_logits if in_one_call else compute_cached_logits)(
                model, input_ids, attention_mask, width, of_row, pixels
            )
        logps, entropies = selective_log_softmax_and_entropy(
            logits.float(), input_ids[:, width:], entropy_requires_grad=False, temperature=self.temperature
        )
        return logps, entropies if kwargs.get("compute_entropy") else None, None
