"""Generate answers to many samples: with our shared-prompt rollouts anywhere, or with vLLM on GPU nodes.

Both engines compute a prompt once for its k completions. Samples are answered in batches of similar length. While the
engine answers one batch, the next is read and decoded. The answers of each batch are written to a file, so that a
stopped run resumes with the batch it was stopped in.
"""

import json
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import torch
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from hardcase.config import EvaluateConfig, MineConfig
from hardcase.data.completions import Completion
from hardcase.model.internvl import load_model
from hardcase.model.rollout import build_prompt_inputs, generate_completions
from hardcase.progress import track
from hardcase.store.store import write_atomically
from hardcase.task.order import turn_sample
from hardcase.task.sample import Sample

# Batches whose samples are ordered by length together. More would leave less padding; shards hold whole windows.
WINDOW: Final = 4
Batch = TypeVar("Batch")


class Engine(Protocol):
    """Answer samples with the model that it holds."""

    processor: ProcessorMixin

    def prepare(self, samples: Sequence[Sample]) -> Any:
        """Return what `complete` takes of these samples; runs beside it in another thread."""

    def complete(
        self, prompts: Any, copies: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[Completion]]:
        """Return `copies` completions of each prompt without special tokens; temperature 0 is greedy."""


class LocalEngine:
    """Run transformers in this process, each prompt computed once (`rollout.generate_completions`)."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin) -> None:
        self.model, self.processor = model, processor

    def prepare(self, samples: Sequence[Sample]) -> Any:
        """Build the model's inputs."""
        return build_prompt_inputs(self.processor, samples, torch.device("cpu"))

    def complete(
        self, prompts: Any, copies: int, max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[Completion]]:
        """Complete with plain sampling."""
        device = self.model.device
        generator = torch.Generator(device).manual_seed(seed)
        inputs = {name: tensor.to(device) for name, tensor in prompts.items()}
        ids = generate_completions(self.model, inputs, copies, max_new_tokens, temperature, generator)
        tokenizer: Any = self.processor.tokenizer
        texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
        ends = torch.as_tensor(self.model.generation_config.eos_token_id, device=device)
        completions = [*map(Completion, texts, (~torch.isin(ids, ends).any(1)).tolist())]
        return [completions[start : start + copies] for start in range(0, len(completions), copies)]


def open_engine(config: MineConfig | EvaluateConfig, model: Path, seed: int) -> Engine:
    """Load the model in a folder into the configured engine."""
    if config.engine == "transformers":
        return LocalEngine(*load_model(model))
    from hardcase.model.vllm import VllmEngine  # it imports TRL

    return VllmEngine(config, model, seed)


def _count_tiles(processor: ProcessorMixin, sample: Sample) -> int:
    """Return the number of tiles of a sample's images, which determine nearly all of its prompt's length."""
    count = getattr(processor.image_processor, "get_number_of_image_patches", None)
    if count is None:
        return 1
    sizes = sample.sizes or [Image.open(BytesIO(data)).size for data in sample.images]
    return sum(count(height, width, {"crop_to_patches": True}) for width, height in sizes)


def _prepare_ahead(prepare: Callable[[Batch], Any], batches: Iterable[Batch]) -> Iterator[tuple[Batch, Any]]:
    """Yield each batch with its result of `prepare`, which a thread computes one batch ahead."""
    # Decoding an image changes the filters of warnings, which are those of all threads.
    with warnings.catch_warnings(), ThreadPoolExecutor(1) as ahead:
        pending = deque[tuple[Batch, Future[Any]]]()
        for batch in batches:
            pending.append((batch, ahead.submit(prepare, batch)))
            if len(pending) > 1:
                first, result = pending.popleft()
                yield first, result.result()
        for last, result in pending:
            yield last, result.result()


def generate_answers(
    engine: Engine,
    samples: Sequence[Sample],
    *,
    copies: int,
    batch_size: int,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    what: str,
    folder: Path | None = None,
    first: int = 0,
    order: int = 0,
) -> list[list[Completion]]:
    """Return `copies` completions of each sample, in the order of the samples.

    Each batch has its own random stream, so a resumed run can start at any batch. `first`, the number of the split's
    samples before these, is part of it: after whole windows of batches, the answers are those of a run on all samples.
    Answers are written to `folder`, which must belong to this work alone. `order` is that of the candidates, of which
    the answers speak (`turn_sample`).
    """
    sequence = list[int]()
    for start in range(0, len(samples), window := WINDOW * batch_size):
        own = range(len(samples))[start : start + window]
        sequence += sorted(own, key=lambda index: _count_tiles(engine.processor, samples[index]))
    answers: list[list[Completion]] = [[]] * len(samples)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)

    def find_file(start: int) -> Path | None:
        return folder / f"{first + start}.json" if folder else None

    def prepare(start: int) -> Any:
        if (file := find_file(start)) and file.exists():
            return None
        return engine.prepare([turn_sample(samples[index], order) for index in sequence[start : start + batch_size]])

    starts = range(0, len(samples), batch_size)
    for start, prompts in track(_prepare_ahead(prepare, starts), what, len(starts)):
        file = find_file(start)
        if file and prompts is None:
            rows = json.loads(file.read_text(encoding="utf-8"))
            completions = [[Completion(*one) for one in row] for row in rows]
        else:
            batch_seed = seed * 1_000_003 + first + start
            completions = engine.complete(prompts, copies, max_new_tokens, temperature, batch_seed)
            if file:
                write_atomically(file, json.dumps(completions).encode())
        for index, row in zip(sequence[start : start + batch_size], completions, strict=True):
            answers[index] = row
    return answers
