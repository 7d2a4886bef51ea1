"""HCM-GRPO (arXiv 2511.10055): TRL's GRPOTrainer with hard-case sampling and the prompt computed once for its group.

A narrow subclass. It differs from TRL 1.16 in these hooks:
- `_get_train_sampler` draws prompts by mined weights instead of uniformly;
- `_generate_single_turn` runs each prompt once and samples its G completions side by side in its row;
- `_tokenize_prompts` processes the images of each prompt once, for rollouts and loss;
- `_get_per_token_logps_and_entropies` computes each prompt once for the loss, with gradients through it, or for as many
  rows at a time as a batch has;
- `_prepare_inputs` leaves completions without an advantage out of the loss, divides the others among the processes, and
  keeps groups together, which TRL scatters by shuffling;
- `_compute_loss` compares the log-probabilities of vLLM with its own, for which TRL makes a pass of its own;
- `_save_rng_state` and `_load_rng_state` checkpoint unused rollouts, which TRL generates again after a resume;
- `_calculate_rewards` also logs the reward by aspect and the share of hard cases, where the rows carry them.
"""

import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import ProcessorMixin
from trl import GRPOTrainer
from trl.models.utils import unwrap_model_for_generation
from trl.trainer.utils import pad

from hardcase.model.groups import Batch, balance, build_idle_batch, deal, select_taught, take
from hardcase.model.mining import GroupSampler, Weights
from hardcase.model.rollout import generate_completions
from hardcase.model.shared_prefix import BY_PARTS, compute_log_probabilities
from hardcase.model.vllm import use_rollouts

logger = logging.getLogger(__name__)
SEPARATING: Final = ("sdpa", "flex_attention", "eager")  # kinds of attention that take any mask


class _Processed:
    """Stand in for the processor after the prompts were processed, so that TRL does not process them again.

    TRL 1.16 renders and processes the prompt of each completion for the loss (trainer/grpo_trainer.py:2520), and the
    images once more where they have several tiles (2545).
    """

    def __init__(self, processor: ProcessorMixin, pixels: Tensor) -> None:
        self._processor, self._pixels = processor, pixels

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, **_: Any) -> dict[str, Tensor]:
        return {"pixel_values": self._pixels}

    def apply_chat_template(self, *_: Any, **__: Any) -> str:
        return ""

    def image_processor(self, images: list[list[Any]], **_: Any) -> dict[str, Tensor]:
        return {"num_patches": torch.ones(sum(map(len, images)), dtype=torch.long)}


class HCMGRPOTrainer(GRPOTrainer):  # type: ignore[misc]
    """Train as `trl.GRPOTrainer` does, for which it is a drop-in, on prompts with several images.

    Args:
        weights: probability of drawing each training row, or a function that returns the probabilities of a round
            when it begins. None draws uniformly without repeats, as TRL does.
        rounds: number of equal parts of the training, each with its own weights.
        most_draws: most draws of one row, while there are enough others.
        oversample: prompts drawn for each prompt of a step. The step learns from those whose completions differ in
            reward, as many as it has prompts (dynamic sampling, arXiv 2503.14476, in one draw).
        vllm_options: arguments of `vllm.LLM` that TRL leaves open.
        args, kwargs: as for `trl.GRPOTrainer`.
    """

    def __init__(
        self,
        *args: Any,
        weights: Callable[[int], Weights] | Sequence[float] | Weights | None = None,
        rounds: int = 1,
        most_draws: int | None = None,
        oversample: int = 1,
        vllm_options: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        self._weights, self._rounds, self._most_draws = weights, rounds, most_draws
        self._oversample = oversample
        self._batch: Batch | None = None  # that the loss is computed of
        self.processing_class: Any
        self._train_batch_size: int
        with use_rollouts(vllm_options or {}):
            super().__init__(*args, **kwargs)
        self._shares_prompts = self._can_share("prompts", self._find_prompt_obstacle())
        # The reference rounds as the model does, or a KL term would train on the difference.
        for model in filter(None, (self.model, self.ref_model)):
            text = self.accelerator.unwrap_model(model).config.get_text_config()
            if self._shares_prompts and text._attn_implementation == "sdpa":
                text._attn_implementation = BY_PARTS
        self._shares_rollouts = self._shares_prompts and self._can_share("rollouts", self._find_rollout_obstacle())
        # Otherwise completions without an advantage have a part in the loss, or its scale depends on their number.
        self._leaves_out = (
            self.loss_type in {"dapo", "cispo", "vespo"}
            and not (self.beta or self._entropy_bonus_enabled or self.aux_loss_enabled)
            and self.top_entropy_quantile == 1
        )
        if oversample > 1 and not (weights is not None and self._shares_prompts and self._leaves_out):
            raise ValueError("`oversample` needs `weights`, shared prompts and a loss that leaves completions out")

    def _can_share(self, what: str, obstacle: str | None) -> bool:
        if obstacle:
            logger.warning("%s of a group are not shared but left to TRL: %s", what, obstacle)
        return not obstacle

    def _find_prompt_obstacle(self) -> str | None:
        config = self.model.config
        if not hasattr(self.processing_class, "image_seq_length"):
            return f"{type(self.processing_class).__name__} does not count image tokens as InternVL's does"
        if (attention := config.get_text_config()._attn_implementation) not in SEPARATING:
            return (
                f"attention {attention!r} takes no mask that separates completions, so the prompt is computed for each "
                f"of them; set one of {', '.join(SEPARATING)}"
            )
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
            prompts=self._oversample * self.args.generation_batch_size // self.num_generations,
            generations=self.num_generations,
            batches=-(-self.args.max_steps * self.args.gradient_accumulation_steps // repeats),
            repeats=repeats,
            seed=self.args.seed,
            rounds=self._rounds,
            most_draws=self._most_draws,
        )

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return TRL's loader, whose batches have the completions of all prompts that are drawn for a step."""
        batch_size: int = self._train_batch_size
        try:
            self._train_batch_size = self._oversample * batch_size
            return super().get_train_dataloader()  # type: ignore[no-any-return]
        finally:
            self._train_batch_size = batch_size

    def _count_copies(self) -> int:
        return int(self.num_generations if self.model.training else self.num_generations_eval)

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[list[Any], Any, dict[str, Any]]:
        """Tokenize as TRL does, but each prompt's G adjacent copies once, with its images once in the fields."""
        if not self._shares_rollouts and not (self._shares_prompts and self.use_vllm):
            return super()._tokenize_prompts(prompts)  # type: ignore[no-any-return]
        copies = self._count_copies()
        ids, images, fields = super()._tokenize_prompts(prompts[::copies])
        order = [index // copies for index in range(len(prompts))]
        self.processing_class = _Processed(self.processing_class, torch.as_tensor(np.asarray(fields["pixel_values"])))
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

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> Batch:
        if not self._shares_prompts:
            return super()._generate_and_score_completions(inputs)  # type: ignore[no-any-return]
        processor, correction = self.processing_class, self.args.vllm_importance_sampling_correction
        # On policy the loss has the log-probabilities that the correction needs.
        self.vllm_importance_sampling_correction = correction and not self._is_on_policy()
        try:
            output: Batch = super()._generate_and_score_completions(inputs)
        finally:
            self.processing_class, self.vllm_importance_sampling_correction = processor, correction
        pixels = self._split_pixels(output["prompt_ids"], output["pixel_values"])
        # TRL counts images and tiles for each row; here each prompt has its own.
        output = {key: value for key, value in output.items() if key not in {"num_images", "num_tiles"}}
        group = torch.arange(len(inputs), device=self.accelerator.device) // self._count_copies()
        return {**output, "group": group, "pixel_values": pixels}

    def _is_on_policy(self) -> bool:
        return bool(self.args.gradient_accumulation_steps % (self.args.steps_per_generation * self.num_iterations) == 0)

    def _split_pixels(self, prompt_ids: Tensor, pixels: Tensor) -> list[Tensor]:
        """Return the tiles of each prompt, whether each prompt has its own in `pixels` or each of its copies has."""
        copies, tokens = self._count_copies(), (prompt_ids == self.processing_class.image_token_id).sum(1)
        tiles = (tokens // self.processing_class.image_seq_length).tolist()
        if len(pixels) == sum(tiles[::copies]):
            return list(torch.split(pixels, tiles[::copies]))
        return list(torch.split(pixels, tiles))[::copies]

    def _prepare_inputs(self, generation_batch: Any) -> Batch:
        if not (self._shares_prompts and self.model.training):
            return super()._prepare_inputs(generation_batch)  # type: ignore[no-any-return]
        parts = self.args.steps_per_generation
        if self._step % (parts * self.num_iterations) == 0 or self._buffered_inputs is None:
            self._buffered_inputs = self._deal(self._generate_and_score_completions(generation_batch), parts)
        return self._buffered_inputs[self._step % parts]  # type: ignore[no-any-return]

    def _deal(self, batch: Batch, parts: int) -> list[Batch]:
        """Deal rollouts into the batches of the loss, as many on each process."""
        batch["num_items_in_batch"] = batch["num_items_in_batch"] / self._oversample
        taught: Batch | None = batch
        if self._leaves_out:
            taught = select_taught(batch)
            if self.accelerator.num_processes > 1:
                taught = balance(taught, self.accelerator, self._tokenizer.pad_token_id)
        rows = self.args.per_device_train_batch_size
        if taught is not None and self._oversample > 1:
            taught = take(taught, (taught["group"] < rows * parts // self.num_generations).nonzero()[:, 0])
        dealt = deal(taught, parts, whole=rows % self.num_generations == 0)
        busy = torch.tensor([[part is not None for part in dealt]], device=self.accelerator.device)
        idle = (~self.accelerator.gather(busy).any(0)).tolist()
        token, tokens = self.processing_class.image_token_id, self.processing_class.image_seq_length
        filled = [build_idle_batch(batch, token, tokens) if part is None else part for part in dealt]
        return [{**part, "idle": flag} for part, flag in zip(filled, idle, strict=True)]

    def _compute_loss(self, model: Any, inputs: Batch) -> Tensor:
        metrics = self._metrics["train" if self.model.training else "eval"]
        before = {name: len(values) for name, values in metrics.items()}
        self._batch = inputs
        gather, pad_rows = self.accelerator.gather, self.accelerator.pad_across_processes
        # TRL gathers a value of each row (trainer/grpo_trainer.py:3280), and processes may have unlike numbers of rows.
        self.accelerator.gather = lambda values: gather(pad_rows(values, pad_index=math.nan))
        try:
            loss: Tensor = super()._compute_loss(model, inputs)
        finally:
            self._batch, self.accelerator.gather = None, gather
        if inputs.get("idle"):  # on all processes; TRL leaves NaN out of its averages (trainer/grpo_trainer.py:3312)
            for name, values in metrics.items():
                values[before.get(name, 0) :] = [math.nan] * (len(values) - before.get(name, 0))
        return loss

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return log-probabilities and entropies (R, C) of the completions' tokens, as TRL does."""
        others = {key for key, value in kwargs.items() if value is not None and value is not False}
        others -= {"batch_size", "compute_entropy", "pixel_values", "num_images", "num_tiles"}
        if not self._shares_prompts or others:
            return super()._get_per_token_logps_and_entropies(  # type: ignore[no-any-return]
                model, input_ids, attention_mask, logits_to_keep, **kwargs
            )
        width = input_ids.size(1) - logits_to_keep
        if self._batch is not None:
            group, pixels = self._batch["group"], kwargs["pixel_values"]
        else:
            group = torch.arange(len(input_ids), device=input_ids.device) // self._count_copies()
            pixels = self._split_pixels(input_ids[:, :width], kwargs["pixel_values"])
        stock = self.accelerator.unwrap_model(model)
        results = []
        for rows in torch.split(torch.arange(len(input_ids)), kwargs.get("batch_size") or len(input_ids)):
            groups, of_row = torch.unique(group[rows], return_inverse=True)
            own = torch.cat([pixels[number] for number in groups.tolist()])
            with self.accelerator.autocast():
                results.append(
                    compute_log_probabilities(model, stock, input_ids[rows], attention_mask[rows], width, of_row, own)
                )
        logps = torch.cat([logps for logps, _ in results])
        entropies = torch.cat([own for _, own in results if own is not None]) if kwargs.get("compute_entropy") else None
        if self._batch is not None and "sampling_per_token_logps" in self._batch:
            self._compare_with_vllm(logps.detach(), self._batch)
        return logps, entropies, None

    def _compare_with_vllm(self, logps: Tensor, batch: Batch) -> None:
        """Log how far vLLM's log-probabilities are from the model's, and add the ratio that corrects for it.

        TRL 1.16 does it with log-probabilities computed for that alone (trainer/grpo_trainer.py:2660).
        """
        sampled = batch["sampling_per_token_logps"]
        known = batch["completion_mask"].bool() & ~sampled.isnan()
        if known.any():
            self.vllm_generation.compare({**batch, "old_per_token_logps": logps}, self.model.dtype)
        difference = (logps - sampled).masked_fill(~known, 0)
        metrics = self._metrics["train" if self.model.training else "eval"]
        mean, largest = map(self.accelerator.gather, (difference.abs()[known].mean(), difference.abs().max()))
        metrics["sampling/sampling_logp_difference/mean"].append(mean.nanmean().item())
        metrics["sampling/sampling_logp_difference/max"].append(largest.max().item())
        if not self.vllm_importance_sampling_correction or "importance_sampling_ratio" in batch:
            return
        over, how = self.vllm_importance_sampling_mode.split("_")
        ratio = torch.exp(difference.sum(-1, keepdim=True) if over == "sequence" else difference)
        low, high = self.vllm_importance_sampling_clip_min, self.vllm_importance_sampling_clip_max
        if how == "truncate":
            ratio = ratio.clamp(low, high)
        else:
            outside = (ratio < (-math.inf if low is None else low)) | (ratio > (math.inf if high is None else high))
            ratio = ratio.masked_fill(outside, 0)
        batch["importance_sampling_ratio"] = ratio
        metrics["sampling/importance_sampling_ratio/mean"].append(self.accelerator.gather(ratio.mean()).mean().item())
