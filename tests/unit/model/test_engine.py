"""Answers to many samples: the same whatever is stopped, whatever their lengths, whichever engine."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from transformers import PreTrainedModel, ProcessorMixin

from hardcase.config import EvaluateConfig
from hardcase.data.completions import Completion
from hardcase.data.images import BadImage, decode_image
from hardcase.data.scenes import encode_image
from hardcase.errors import InputError
from hardcase.model.engine import WINDOW, LocalEngine, generate_answers, open_engine
from hardcase.model.internvl import save_model
from hardcase.task.sample import Sample

Build = Callable[[], tuple[PreTrainedModel, ProcessorMixin]]
OPTIONS: dict[str, Any] = {"copies": 2, "max_new_tokens": 6, "temperature": 1.0, "seed": 3, "what": "test"}


class Watched(LocalEngine):
    """Notes what it is asked, and breaks when told to."""

    asked: list[list[str]]
    breaks_after: int | None = None

    def prepare(self, samples: Sequence[Sample]) -> Any:
        return [sample.id for sample in samples], super().prepare(samples)

    def complete(self, prompts: Any, *args: Any, **kwargs: Any) -> list[list[Completion]]:
        ids, inputs = prompts
        self.asked = [*getattr(self, "asked", []), ids]
        if len(self.asked) == self.breaks_after:
            raise KeyboardInterrupt
        return super().complete(inputs, *args, **kwargs)


def test_work_that_was_stopped_goes_on_with_the_batch_it_was_stopped_in(
    fresh_model: Build, samples: list[Sample], tmp_path: Path
) -> None:
    whole = generate_answers(Watched(*fresh_model()), samples, batch_size=5, **OPTIONS)
    stopped, later = Watched(*fresh_model()), Watched(*fresh_model())
    stopped.breaks_after = 3
    with pytest.raises(KeyboardInterrupt):
        generate_answers(stopped, samples, batch_size=5, folder=tmp_path, **OPTIONS)
    (tmp_path / ".10.json.draft").write_text("[[")
    assert generate_answers(later, samples, batch_size=5, folder=tmp_path, **OPTIONS) == whole
    assert later.asked == stopped.asked[2:]
    assert len(whole) == len(samples)
    assert len({one.text for row in whole for one in row}) > len(samples), "a stream for each batch and completion"


def test_prompts_of_like_length_are_answered_together(fresh_model: Build, samples: list[Sample]) -> None:
    model, processor = fresh_model()
    processor.image_processor.max_patches = 3
    wide = [
        replace(
            sample, images=(encode_image(decode_image(sample.images[0]).resize((64, 32)), ".png"), *sample.images[1:])
        )
        if index % 2
        else sample
        for index, sample in enumerate(samples[:6])
    ]
    engine = Watched(model, processor)
    greedy = {**OPTIONS, "copies": 1, "temperature": 0}
    texts = generate_answers(engine, wide, batch_size=3, **greedy)
    assert engine.asked == [["s0", "s2", "s4"], ["s1", "s3", "s5"]]
    assert texts == [generate_answers(engine, [sample], batch_size=1, **greedy)[0] for sample in wide], (
        "in the order given"
    )


class Paced(LocalEngine):
    """Answers a batch when the next one is decoded, and notes which were decoded before it began."""

    def __init__(self, processor: ProcessorMixin, batches: int) -> None:
        super().__init__(None, processor)  # type: ignore[arg-type]
        self.decoded, self.begun = [Event() for _ in range(batches)], list[list[bool]]()

    def prepare(self, samples: Sequence[Sample]) -> list[Sample]:
        super().prepare(samples)
        self.decoded[int(samples[0].id[1:])].set()
        return list(samples)

    def complete(self, prompts: list[Sample], *args: Any, **kwargs: Any) -> list[list[Completion]]:
        number = int(prompts[0].id[1:])
        if number + 1 < len(self.decoded):
            assert self.decoded[number + 1].wait(30), "the next batch is decoded only when the engine is done"
        self.begun.append([event.is_set() for event in self.decoded])
        return [[Completion(prompts[0].id)]]


def test_next_batch_is_decoded_while_the_engine_works_and_no_more_are_held(
    fresh_model: Build, samples: list[Sample]
) -> None:
    engine = Paced(fresh_model()[1], batches=5)
    answers = generate_answers(engine, samples[:5], batch_size=1, **OPTIONS)
    assert answers == [[Completion(f"s{number}")] for number in range(5)]
    assert engine.begun == [[held <= number + 1 for held in range(5)] for number in range(5)]


def test_image_that_does_not_decode_stops_the_work_with_its_error(fresh_model: Build, samples: list[Sample]) -> None:
    bad = replace(samples[1], images=(b"nothing", *samples[1].images[1:]), sizes=((32, 32),) * 5)
    with pytest.raises(BadImage, match="neither JPEG, PNG nor WebP"):
        generate_answers(LocalEngine(*fresh_model()), [samples[0], bad], batch_size=1, **OPTIONS)


def test_answers_do_not_depend_on_the_number_of_shards(fresh_model: Build, samples: list[Sample]) -> None:
    model, processor = fresh_model()
    processor.image_processor.max_patches = 3
    wide = encode_image(decode_image(samples[0].images[0]).resize((64, 32)), ".png")
    mixed = [
        replace(sample, images=(wide, *sample.images[1:])) if index % 3 else sample
        for index, sample in enumerate(samples[:11])
    ]
    engine, window = LocalEngine(model, processor), WINDOW * 2
    undivided = generate_answers(engine, mixed, batch_size=2, **OPTIONS)
    parts = [generate_answers(engine, mixed[at : at + window], batch_size=2, first=at, **OPTIONS) for at in (0, window)]
    assert [*parts[0], *parts[1]] == undivided


def test_completion_without_an_end_counts_as_cut(fresh_model: Build, samples: list[Sample]) -> None:
    model, processor = fresh_model()
    (drawn,) = generate_answers(LocalEngine(model, processor), samples[:1], batch_size=1, **{**OPTIONS, "copies": 64})
    model.generation_config.eos_token_id = [*range(len(processor.tokenizer))]  # any token ends a completion
    (ended,) = generate_answers(LocalEngine(model, processor), samples[:1], batch_size=1, **OPTIONS)
    assert {one.cut for one in drawn} == {False, True}
    assert not any(one.cut for one in ended)


def test_without_vllm_the_error_says_what_to_do(fresh_model: Build, tmp_path: Path) -> None:
    save_model(*fresh_model(), tmp_path)
    with pytest.raises(InputError, match="vLLM is not installed; use the GPU image, or set `engine: transformers`"):
        open_engine(EvaluateConfig(engine="vllm"), tmp_path, seed=1)
