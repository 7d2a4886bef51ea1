"""Screen one original and four candidates in every aspect."""

from collections.abc import Sequence
from pathlib import Path

from hardcase.config import EvaluateConfig
from hardcase.model.engine import generate_answers, open_engine
from hardcase.model.internvl import set_up_torch
from hardcase.task.answer import format_answer, parse_answer
from hardcase.task.sample import ASPECTS, Sample


def screen_images(model: Path, images: Sequence[bytes], config: EvaluateConfig) -> dict[str, dict[str, str | None]]:
    """Ask the model in a folder about every aspect of five encoded, valid images, the original first.

    The result is by aspect the `answer` ("AC", "none", or None when the text is invalid) and the `text`.
    """
    set_up_torch(0, config.threads)
    samples = [
        Sample(aspect, aspect, truth=frozenset(), reasoning=None, group="", images=tuple(images)) for aspect in ASPECTS
    ]
    completions = generate_answers(
        open_engine(config, model, seed=0),
        samples,
        copies=1,
        batch_size=len(samples),
        max_new_tokens=config.max_new_tokens,
        temperature=0,
        seed=0,
        what="screening",
    )
    return {
        aspect: {"answer": None if (answer := parse_answer(text)) is None else format_answer(answer), "text": text}
        for aspect, ((text, _),) in zip(ASPECTS, completions, strict=True)
    }
