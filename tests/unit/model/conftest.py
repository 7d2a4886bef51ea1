"""A model of the stock classes small enough for tests, and samples drawn for it."""

from collections.abc import Callable

import pytest
from transformers import PreTrainedModel, ProcessorMixin

from hardcase.config import TinyModelConfig
from hardcase.model.internvl import build_tiny, set_up_torch
from hardcase.model.sft import collect_vocabulary_texts
from hardcase.task.prompt import ASPECT_NAMES
from hardcase.task.sample import Sample
from tests.support.training import draw_samples

SMALL = TinyModelConfig(image_size=32, vision_hidden=32, vision_layers=1, text_hidden=32, text_layers=2, heads=2)


@pytest.fixture(scope="session")
def samples() -> list[Sample]:
    return draw_samples(12)


@pytest.fixture(autouse=True)
def ragged_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prompts of the four aspects happen to be of one length; these are not."""
    monkeypatch.setitem(ASPECT_NAMES, "physical_shadow", "shadow")


@pytest.fixture
def fresh_model(samples: list[Sample]) -> Callable[[], tuple[PreTrainedModel, ProcessorMixin]]:
    """Builds the same random model every time it is called."""

    def build() -> tuple[PreTrainedModel, ProcessorMixin]:
        set_up_torch(0, threads=1)
        return build_tiny(SMALL, collect_vocabulary_texts(samples, warm_up=True), seed=0)

    return build
