"""Find images that look the same: their perceptual hashes are near, and small copies of them in colour agree.

The hash alone is not enough. It describes the coarse pattern of light and dark, which different products on a white
background share, so that near hashes chain into one large group. Measured: docs/decisions/0014.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

SIDE: Final = 8  # pixels of a thumbnail's side
THUMBNAIL_BYTES: Final = 3 * SIDE**2
AGREEMENT: Final = 0.97  # least correlation of two thumbnails
FLAT: Final = 2.0  # deviation, of 255, up to which a thumbnail has no pattern to compare
CELLS: Final = 2**21  # pairs of hashes compared at a time, and of images held
COMPARED: Final = 2**14  # pairs of thumbnails compared at a time
Pairs = npt.NDArray[np.intp]  # 2 × n


def make_thumbnail(image: Image.Image) -> bytes:
    """Return an image's thumbnail, 8 × 8 pixels of 3 bytes."""
    return image.resize((SIDE, SIDE), Image.Resampling.BOX, reducing_gap=2).convert("RGB").tobytes()


def find_near(hashes: npt.NDArray[np.uint64], thumbnails: npt.NDArray[np.uint8], distance: int) -> Pairs:
    """Return pairs of indices that connect all images that look the same, directly or through others.

    Two images look the same if their hashes differ in at most `distance` bits and the correlation of their thumbnails,
    n × 192, is at least 0.97. Cut into distance + 1 bands, two such hashes agree in at least one band, so only those
    are compared.
    """
    parts = [np.empty((2, 0), dtype=np.intp)]
    for near in _find_near_hashes(hashes, distance):
        for some in np.array_split(near, 1 + near.shape[1] // COMPARED, axis=1):
            # Of two unit vectors, |a - b|² = 2 (1 - correlation). Flat ones are shorter, and equal to each other.
            gaps = np.square(_scale(thumbnails[some[0]]) - _scale(thumbnails[some[1]])).sum(axis=1)
            parts.append(some[:, gaps <= 2 * (1 - AGREEMENT)])
        if sum(part.shape[1] for part in parts[1:]) > CELLS:
            parts = [_reduce(np.concatenate(parts, axis=1), len(hashes))]
    return np.concatenate(parts, axis=1)


def _scale(thumbnails: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Return thumbnails as vectors of mean 0 and length 1."""
    patterns = thumbnails.astype(np.float32)
    patterns -= patterns.mean(axis=1, keepdims=True)
    patterns /= np.maximum(np.linalg.norm(patterns, axis=1, keepdims=True), FLAT * np.sqrt(patterns.shape[1]))
    return patterns


def _find_near_hashes(hashes: npt.NDArray[np.uint64], distance: int) -> Iterator[Pairs]:
    for low, high in pairwise(np.linspace(0, 64, distance + 2).astype(int)):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        starts = np.flatnonzero(band[order][1:] != band[order][:-1]) + 1
        for start_of, end_of in pairwise([0, *starts.tolist(), len(order)]):
            members = order[start_of:end_of]
            rows = max(1, CELLS // 16 // max(1, len(members)))
            for start in range(0, len(members) - 1, rows):
                some, others = members[start : start + rows], members[start:]
                differing: Any = np.bitwise_count(hashes[some][:, None] ^ hashes[others][None])
                first, second = np.nonzero(np.triu(differing <= distance, 1))
                if len(first):
                    yield np.stack([some[first], others[second]])


def _reduce(pairs: Pairs, count: int) -> Pairs:
    """Return as few pairs as connect the same indices."""
    graph = coo_array((np.ones(pairs.shape[1], dtype=bool), tuple(pairs)), shape=(count, count))
    labels = connected_components(graph, directed=False)[1]
    _, first = np.unique(labels, return_index=True)
    return np.stack([first[labels], np.arange(count)])
