"""A configuration that cannot work is refused before anything starts, in the words of the profile."""

import json
from pathlib import Path
from typing import Any

import pytest

from hardcase.config import load_profile
from hardcase.errors import InputError
from hardcase.runtime import devices
from hardcase.steps.configure import check_model

LORA = {"sft.warm_up": None, "sft.reading": None}
INFINITE = float("inf")

# Settings of the profile `smoke`, where the message says the fault is, and its other words. Each of them ended in an
# error of TRL, peft or torch with exit code 1, in a step after ingest; `rounds` mined for nothing.
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"grpo.batch_size": 6}, "grpo", "batch_size × accumulation = 6 × 1 = 6 is no multiple of generations = 4"),
    ({"grpo.batch_size": 2, "grpo.accumulation": 3}, "grpo", "2 × 3 = 6 is no multiple of generations = 4"),
    ({"grpo.batch_size": 2, "grpo.processes": 2}, "grpo", "2 × 1 = 2 is no multiple of generations = 4"),
    ({"grpo.rounds": 7}, "grpo", "rounds 7 are more than steps / updates = 6"),
    ({"grpo.rounds": 4, "grpo.updates": 2}, "grpo", "rounds 4 are more than steps / updates = 3"),
    ({"sft.lora": {"targets": "[a"}, **LORA}, "sft.lora.targets", "'[a' is no regular expression"),
    ({"grpo.lora": {"targets": ""}}, "grpo.lora.targets", "at least 1 character"),
    ({"model.tiny.image_size": 40}, "model.tiny", "image_size 40 is no multiple of 16, twice patch_size"),
    ({"model.tiny.image_size": 50}, "model.tiny", "image_size 50 is no multiple of 16"),
    ({"model.tiny.image_size": 0}, "model.tiny.image_size", "greater than or equal to 1"),
    ({"model.tiny.patch_size": 0}, "model.tiny.patch_size", "greater than or equal to 1"),
    ({"model.tiny.heads": 0}, "model.tiny.heads", "greater than or equal to 1"),
    ({"model.tiny.heads": 3}, "model.tiny", "text_hidden 32 is no multiple of 6, twice heads"),
    ({"model.tiny.text_hidden": 30}, "model.tiny", "text_hidden 30 is no multiple of 4"),
    ({"model.tiny.vision_hidden": 100}, "model.tiny", "vision_hidden 100 is no multiple of 3"),
    ({"model.tiny.vision_hidden": 0}, "model.tiny.vision_hidden", "greater than or equal to 1"),
    ({"mine.max_new_tokens": 2029}, "mine.max_new_tokens is 2029", "context of 2048 tokens has room for 2028"),
    ({"grpo.max_new_tokens": 4000}, "grpo.max_new_tokens is 4000", "lower it"),
    ({"evaluate.max_new_tokens": 4000}, "evaluate.max_new_tokens is 4000", "lower it"),
    ({"model.tiny.image_size": 512}, "mine.max_new_tokens", "has room for 0 beside five images of 1024"),
    ({"sft.stepz": 3}, "sft.stepz", "no such key"),
    ({"seed": 2**32}, "seed", "less than 2147483648"),
    ({"sft.threads": 100_000}, "sft.threads", "less than or equal to 1024"),
    ({"grpo.workers": 100_000}, "grpo.workers", "less than or equal to 1024"),
    ({"sft.learning_rate": INFINITE}, "sft.learning_rate", "finite"),
    ({"grpo.beta": INFINITE}, "grpo.beta", "finite"),
    ({"mine.temperature": 1e-320}, "mine.temperature", "greater than or equal to 0.01"),
    ({"evaluate.resamples": 10**12}, "evaluate.resamples", "less than or equal to 1000000"),
    ({"register.retention_days": 10**9}, "register.retention_days", "less than or equal to 36500"),
    ({"cluster.rollout_shards": 257}, "cluster.rollout_shards", "less than or equal to 256"),
    ({"validate.min_letter_share": 0.95}, "validate", "min_letter_share 0.95 is above max_letter_share 0.9"),
    ({"validate.min_aspect_share": 0.3}, "validate", "set min_aspect_share to at most 0.25"),
    ({"validate.max_aspect_share": 0.2}, "validate", "max_aspect_share to at least 0.25"),
]


@pytest.mark.parametrize(("settings", "where", "words"), REFUSED, ids=[json.dumps(row[0]) for row in REFUSED])
def test_configuration_that_cannot_work_is_refused_in_one_line(
    settings: dict[str, Any], where: str, words: str
) -> None:
    with pytest.raises(InputError) as refusal:
        load_profile("smoke", settings)
    message = str(refusal.value)
    assert f"smoke.yaml: {where}" in message
    assert words in message
    assert "Value error" not in message and "\n" not in message
    assert message.endswith("fix this key in the file or by --set")


@pytest.mark.parametrize(
    "settings",
    [
        {"grpo.batch_size": 2, "grpo.accumulation": 2},
        {"grpo.rounds": 6},
        {"sft.processes": 64, **LORA},
        {"sft.warmup_steps": 50, "sft.save_steps": 1000},
        {"mine.max_new_tokens": 2028},
        {"model.tiny.image_size": 16, "model.tiny.text_hidden": 4, "model.tiny.heads": 1},
        {"cluster.rollout_shards": 256},
    ],
    ids=json.dumps,
)
def test_configuration_at_the_limits_is_taken(settings: dict[str, Any]) -> None:
    load_profile("smoke", settings)


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("q_proj", "matches no layer that takes an adapter; match whole names such as 'model."),
        (".*language_model", "matches 'model.language_model', which does not take an adapter"),
    ],
)
@pytest.mark.parametrize("step", ["sft", "grpo"])
def test_adapters_that_fit_no_layer_are_refused_before_there_is_a_model(step: str, targets: str, words: str) -> None:
    profile = load_profile("smoke", {f"{step}.lora": {"targets": targets}, **LORA})
    with pytest.raises(InputError) as refusal:
        check_model(profile)
    assert str(refusal.value).startswith(f"{step}.lora.targets {targets!r} {words}")


@pytest.mark.parametrize("targets", [r".*language_model.*_proj", "all-linear", r".*\.q_proj"])
def test_adapters_that_fit_are_taken(targets: str) -> None:
    check_model(load_profile("smoke", {"sft.lora": {"targets": targets}, **LORA}))


def test_missing_folder_of_a_checkpoint_is_refused(tmp_path: Path) -> None:
    profile = load_profile("internvl3-2b", {"model.checkpoint": str(tmp_path / "gone")})
    with pytest.raises(InputError, match=r"model\.checkpoint .*gone: no such folder"):
        check_model(profile)


def test_completions_beyond_the_context_of_a_checkpoint_are_refused(tmp_path: Path) -> None:
    sizes = {"image_seq_length": 256, "text_config": {"max_position_embeddings": 1500}}
    (tmp_path / "config.json").write_text(json.dumps(sizes))
    lengths = {f"{step}.max_new_tokens": 220 for step in ("mine", "grpo", "evaluate")}
    settings = {"model.checkpoint": str(tmp_path), **lengths}
    check_model(load_profile("internvl3-2b", settings))
    with pytest.raises(InputError, match=r"grpo\.max_new_tokens is 221, .* of 1500 tokens has room for 220"):
        check_model(load_profile("internvl3-2b", {**settings, "grpo.max_new_tokens": 221}))


@pytest.mark.parametrize(
    ("settings", "gpus", "words"),
    [
        ({"mine.engine": "vllm"}, 0, "mine.engine is vllm, which needs a GPU"),
        ({"evaluate.engine": "vllm"}, 1, "evaluate.engine is vllm, which is not installed"),
        ({"sft.processes": 3, **LORA}, 2, "sft.processes is 3, one for each GPU, and this machine has 2"),
        ({"grpo.processes": 2}, 1, "grpo.processes is 2"),
        ({"grpo.nodes": 2}, 0, "grpo.nodes is 2, and this is one machine"),
        ({"grpo.processes": 2}, 0, ""),
        ({"grpo.processes": 2}, 2, ""),
        ({"mine.engine": "vllm", "cluster.gpu_memory": "80gb", "grpo.nodes": 2}, 0, ""),
    ],
)
def test_profile_without_its_devices_is_refused(
    settings: dict[str, Any], gpus: int, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "count_gpus", lambda: gpus)
    profile = load_profile("smoke", settings)
    if not words:
        devices.require_devices(profile)
        return
    with pytest.raises(InputError) as refusal:
        devices.require_devices(profile)
    assert str(refusal.value).startswith(words)
