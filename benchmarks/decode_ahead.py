"""Measure what decoding ahead of the engine is worth: wall time of answers by an engine as slow as decoding.

The baseline decodes each batch in one thread, right before the engine answers it, as hardcase did earlier. The engine
sleeps as long as that takes, as a GPU would be busy. Images are JPEG of 1,024 pixels a side.

    python benchmarks/decode_ahead.py
"""

import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image
from result import write_result

from hardcase.data.completions import Completion
from hardcase.data.images import decode_image
from hardcase.data.scenes import encode_image
from hardcase.task.sample import Sample

BATCHES, BATCH, SIDE = 12, 8, 1024


def main() -> None:
    """Measure and write the result."""
    from hardcase.config import TinyModelConfig
    from hardcase.model.engine import generate_answers
    from hardcase.model.internvl import build_tiny
    from hardcase.model.rollout import render_prompts

    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    images = tuple(encode_image(Image.fromarray(pixels).resize((SIDE, SIDE)), ".jpg") for pixels in coarse)
    sizes = ((SIDE, SIDE),) * len(images)
    samples = [
        Sample(str(index), "physical_shadow", frozenset(), None, "", images, sizes) for index in range(BATCHES * BATCH)
    ]

    def decode(batch: Sequence[Sample]) -> float:
        start = time.perf_counter()
        for sample in batch:
            for data in sample.images:
                decode_image(data)
        return time.perf_counter() - start

    decode(samples[:BATCH])
    start = time.perf_counter()
    for at in range(0, len(samples), BATCH):
        time.sleep(decode(samples[at : at + BATCH]))
    baseline = time.perf_counter() - start
    seconds = baseline / 2 / BATCHES

    class Engine:
        """Answer after as many seconds as decoding takes."""

        processor = build_tiny(TinyModelConfig(), [], 0)[1]

        def prepare(self, batch: Sequence[Sample]) -> Any:
            return render_prompts(self.processor, batch)

        def complete(self, prompts: Any, *_: Any) -> list[list[Completion]]:
            time.sleep(seconds)
            return [[Completion("")]] * len(prompts[0])

    engine, start = Engine(), time.perf_counter()
    generate_answers(
        engine,
        samples,
        copies=1,
        batch_size=BATCH,
        max_new_tokens=1,
        temperature=0,
        seed=0,
        what="measuring",
    )
    value = time.perf_counter() - start
    result = write_result(
        "decode_ahead",
        value=value,
        baseline=baseline,
        ratio=baseline / value,
        unit=f"seconds for {len(samples)} samples with an engine as slow as decoding; baseline: decoding in one thread "
        "before each batch, ratio: baseline / value",
        command="decode_ahead.py",
        decoding_ms_per_sample=1000 * seconds / BATCH,
    )
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
