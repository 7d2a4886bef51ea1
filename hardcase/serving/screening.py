"""Screen sets of one original and four candidates in every aspect, with confidence and abstention."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hardcase.config import EvaluateConfig
from hardcase.model.engine import open_engine
from hardcase.model.internvl import set_up_torch
from hardcase.stats.calibration import judge
from hardcase.task.answer import THINK, THINK_END, format_answer, parse_answer
from hardcase.task.order import turn_sample
from hardcase.task.sample import ASPECTS, Sample


@dataclass(frozen=True)
class Verdict:
    """What a model says of four candidates in one aspect.

    Attributes:
        answer: flagged letters, such as `AC`, or `none`; None when the text is invalid.
        confidence: calibrated probability that the answer is exactly right.
        abstained: whether the answer misses the promised precision and a person should look.
        scores: calibrated probability of a flaw, by letter.
        reasoning: the model's chain of thought; empty when the text is invalid.
        text: everything that the model wrote.

    `confidence`, `abstained` and `scores` are None for a model without a calibration.
    """

    answer: str | None
    confidence: float | None
    abstained: bool | None
    scores: dict[str, float] | None
    reasoning: str
    text: str


class Screener:
    """A loaded model that screens sets.

    Args:
        model: folder of the model.
        config: engine and limits, as recorded with the model.
        calibration: as the step `evaluate` writes it, or None: then each question is asked in one order.
    """

    def __init__(self, model: Path, config: EvaluateConfig, calibration: Mapping[str, Any] | None = None) -> None:
        set_up_torch(0, config.threads)
        self._engine, self._config, self._calibration = open_engine(config, model, seed=0), config, calibration
        self._orders = range(calibration["orders"] if calibration else 1)

    def screen(self, sets: Sequence[Sequence[bytes]]) -> list[dict[str, Verdict]]:
        """Return the verdicts by aspect of each set: five encoded, valid images, the original first.

        The result of a set does not depend on the others that are screened with it, up to rounding.
        """
        samples = [
            Sample(aspect, aspect, truth=frozenset(), reasoning=None, group="", images=tuple(images))
            for images in sets
            for aspect in ASPECTS
        ]
        questions = [turn_sample(sample, order) for sample in samples for order in self._orders]
        prompts = self._engine.prepare(questions)
        completions = self._engine.complete(prompts, 1, self._config.max_new_tokens, temperature=0, seed=0)
        texts = iter(text for ((text, _),) in completions)
        verdicts = [self._judge(sample.aspect, [next(texts) for _ in self._orders]) for sample in samples]
        starts = range(0, len(verdicts), len(ASPECTS))
        return [dict(zip(ASPECTS, verdicts[start : start + len(ASPECTS)], strict=True)) for start in starts]

    def _judge(self, aspect: str, texts: Sequence[str]) -> Verdict:
        judged = judge(self._calibration, aspect, [parse_answer(text) for text in texts])
        answer = None if judged.answer is None else format_answer(judged.answer)
        reasoning = "" if answer is None else texts[0].partition(THINK)[2].partition(THINK_END)[0].strip()
        return Verdict(answer, judged.confidence, judged.abstained, judged.scores, reasoning, texts[0])
