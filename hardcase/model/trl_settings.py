"""The settings of TRL that a profile passes on: `sft.trl` and `grpo.trl`, by TRL's own names.

What hardcase computes, or what would write or load elsewhere, is refused, and so are unknown names and wrong types.
"""

import re
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Final, Literal, TypeVar, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from trl import GRPOConfig, SFTConfig

from hardcase.errors import InputError

# Values that TRL itself refuses in the first step only.
CHOICES: Final[dict[tuple[type, str], Any]] = {
    (GRPOConfig, "loss_type"): Literal["bnpo", "cispo", "dapo", "dr_grpo", "grpo", "luspo", "sapo", "vespo"],
    (GRPOConfig, "scale_rewards"): Literal["batch", "group", "none"],
    (GRPOConfig, "importance_sampling_level"): Literal["sequence", "token"],
    (GRPOConfig, "multi_objective_aggregation"): Literal["normalize_then_sum", "sum_then_normalize"],
    (SFTConfig, "loss_type"): Literal["chunked_nll", "dft", "nll"],
}
Arguments = TypeVar("Arguments", GRPOConfig, SFTConfig)
# Keys of the profile's section by TRL's names.
KEYS: Final = {
    "max_steps": "steps",
    "per_device_train_batch_size": "batch_size",
    "gradient_accumulation_steps": "accumulation",
    "dataloader_num_workers": "workers",
    "num_generations": "generations",
    "max_completion_length": "max_new_tokens",
    "num_iterations": "updates",
    "use_vllm": "engine",
    "vllm_gpu_memory_utilization": "vllm_memory",
    "vllm_enable_sleep_mode": "vllm_sleep",
    "activation_checkpointing": "gradient_checkpointing",
    "deepspeed": "zero",
    "num_train_epochs": "steps",
    "reward_weights": "rewards",
    **{
        name: name
        for name in ("learning_rate", "warmup_steps", "weight_decay", "bf16", "gradient_checkpointing", "save_steps")
    },
    **{name: name for name in ("temperature", "beta")},
}
# What hardcase sets unless the profile names another value.
DEFAULTS: Final = frozenset({"adam_beta2", "max_grad_norm", "loss_type", "scale_rewards"})
# What the rest of a step counts on: where files are, what is logged and saved, rows and their order, whole groups,
# validation; and whatever executes code of others or sends data away.
REFUSED: Final = re.compile(
    r"output_dir|push_to_hub|hub_.*|.*hub_repo|trackio_.*|trust_remote_code|model_init_kwargs|resume_from_checkpoint"
    r"|fsdp.*|parallelism_config|accelerator_config|do_(train|eval|predict)|local_rank|log_.*|logging_.*|report_to"
    r"|run_name|project|disable_tqdm|save_.*|.*eval.*|load_best_model_at_end|.*_best_model|greater_is_better"
    r"|include_for_metrics|prediction_loss_only|seed|data_seed|use_cpu|fp16.*|full_determinism|ignore_data_skip"
    r"|restore_callback_.*|enable_jit_checkpoint|auto_find_batch_size|remove_unused_columns|label_names"
    r"|length_column_name|train_sampling_strategy|shuffle_dataset|generation_batch_size|steps_per_generation"
    r"|vllm_mode|vllm_server_.*|vllm_group_port|chat_template_path|dataset_.*|max_length|truncation_mode|packing.*"
    r"|padding_free|eos_token|pad_token|num_completions_to_print"
)


def build_arguments(kind: type[Arguments], own: Mapping[str, Any], trl: Mapping[str, Any], section: str) -> Arguments:
    """Build TRL's arguments from what hardcase sets and what section `section` of the profile passes on.

    Raises:
        InputError: a setting that TRL does not know, that hardcase sets, or of the wrong type or value.
    """
    hints = get_type_hints(kind)
    for name, value in trl.items():
        if name not in hints:
            near = "".join(f"; {match!r} is the nearest" for match in get_close_matches(name, hints, 1))
            raise InputError(f"{section}.trl.{name}: TRL's {kind.__name__} has no such setting{near}")
        if key := KEYS.get(name):
            raise InputError(f"{section}.trl.{name}: set `{section}.{key}` instead")
        if REFUSED.fullmatch(name) or (name in own and name not in DEFAULTS):
            raise InputError(f"{section}.trl.{name}: hardcase sets this itself; leave it out")
        try:
            TypeAdapter(
                CHOICES.get((kind, name), hints[name]), config=ConfigDict(arbitrary_types_allowed=True)
            ).validate_python(value, strict=True)
        except ValidationError as error:
            raise InputError(f"{section}.trl.{name} {value!r}: {error.errors()[0]['msg']}; correct it") from error
    try:
        return kind(**{**own, **trl})
    except (ValueError, TypeError) as error:
        raise InputError(f"{section}.trl: {str(error).splitlines()[0]}; correct it") from error
