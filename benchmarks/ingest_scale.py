"""Measure `hardcase ingest` against the number of samples and on large images, beside two usual ways to read a folder.

- `hardcase ingest` decodes, checks, hashes and compares every image, and writes a snapshot into a store.
- `imagefolder` is `datasets.load_dataset("imagefolder")`, and every image decoded once.
- `img2dataset` does what that tool does with images that are downloaded: decode, shrink to 256 pixels at most, encode
  as JPEG, append to a tar, in as many processes as there are cores.

Each is a process tree of its own over the same files, in the same run. Measured are its processor seconds (user and
system, of all processes, as wait4(2) counts them), its peak memory (proportional set size of all processes together,
sampled every 0.2 s: pages that processes share count once), and the utilisation of the cores: for how many it had
runnable threads, on average of the samples, whether or not other programs had them. Small images have 64 x 64 pixels,
large ones 1024 x 1024 of filtered noise.

    python benchmarks/ingest_scale.py [--full]    without --full small sizes, and nothing is written

A temporary folder of some 10 GB is used with --full.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import psutil
from PIL import Image
from result import write_result
from scipy.ndimage import gaussian_filter

from hardcase.task.sample import ASPECTS

CORES: Final = os.cpu_count() or 1
SIZES: Final = {True: ((2_000, 8_000, 32_000, 128_000), 100), False: ((100, 400), 4)}  # small samples; large ones
BESIDE: Final = 32_000  # samples up to which the other ways are measured too
IMAGES: Final = 5  # of a sample
INGEST: Final = str(Path(sys.executable).with_name("hardcase"))


class Cost(NamedTuple):
    """What a process tree took."""

    cpu: float  # seconds
    wall: float  # seconds
    peak: float  # MiB
    utilisation: float  # share of the cores that it had runnable threads for


def write_images(folder: Path, samples: int, side: int, suffix: str) -> None:
    """Write different images into folders, of a thousand small ones or fifty large ones, and a manifest."""
    rng = np.random.default_rng(side)
    fields = [gaussian_filter(rng.standard_normal((side, side, 3)), (s, s, 0), mode="wrap") * s for s in (1, 4, 32)]
    rows = []
    for number in range(samples):
        place = Path("images", f"{number // (200 if side <= 64 else 10):04}")
        (folder / place).mkdir(parents=True, exist_ok=True)
        paths = [(place / f"{number:06}-{image}{suffix}").as_posix() for image in range(IMAGES)]
        for path in paths:
            if side <= 64:
                pixels = rng.integers(0, 256, (8, 8, 3), np.uint8).repeat(side // 8, 0).repeat(side // 8, 1)
            else:
                noise = sum(np.roll(field, rng.integers(0, side, 2), (0, 1)) for field in fields)
                pixels = np.clip(noise * 60 + 128, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / path, quality=90)
        row = {"id": str(number), "aspect": ASPECTS[number % 4], "answer": sorted("ABCD"[: number % 5])}
        rows.append(row | {"original": paths[0], "candidates": paths[1:]})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def link_part(whole: Path, part: Path, samples: int) -> None:
    """Make a folder of the first samples, of links to the same files."""
    lines = list(islice((whole / "manifest.jsonl").open(encoding="utf-8"), samples))
    for row in map(json.loads, lines):
        for path in (row["original"], *row["candidates"]):
            (part / path).parent.mkdir(parents=True, exist_ok=True)
            os.link(whole / path, part / path)
    (part / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")


def measure(command: Sequence[str], **environment: str) -> Cost:
    """Run a command and return what it and its children took."""
    log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the process
    began = time.monotonic()
    process = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
    samples, ended = list[tuple[float, int]](), threading.Event()
    watch = threading.Thread(target=_watch, args=(psutil.Process(process.pid), samples, ended))
    watch.start()
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - began
    ended.set()
    watch.join()
    if status:
        log.seek(0)
        raise SystemExit(f"{' '.join(command)} failed: {log.read().decode()[-2000:]}")
    peak = max((memory for memory, _ in samples), default=0.0)
    runnable = sum(min(count, CORES) for _, count in samples) / CORES / max(len(samples), 1)
    return Cost(usage.ru_utime + usage.ru_stime, wall, peak, runnable)


def _watch(root: psutil.Process, samples: list[tuple[float, int]], ended: threading.Event) -> None:
    """Sample the memory of a process tree, in MiB, and the number of its runnable threads."""
    while not ended.wait(0.2):
        memory = runnable = 0
        try:
            for process in (root, *root.children(recursive=True)):
                folder = Path(f"/proc/{process.pid}")
                rollup = (folder / "smaps_rollup").read_text(encoding="utf-8").splitlines()
                memory += next(int(line.split()[1]) for line in rollup if line.startswith("Pss:"))
                states = (path.read_text(encoding="utf-8").rpartition(") ")[2] for path in folder.glob("task/*/stat"))
                runnable += sum(state[0] == "R" for state in states)
        except (psutil.NoSuchProcess, OSError, StopIteration):  # one has just ended
            continue
        samples.append((memory / 1024, runnable))


def read_imagefolder(folder: Path) -> None:
    """Load a folder with `datasets`, and decode every image."""
    from datasets import load_dataset

    with tempfile.TemporaryDirectory() as cache:
        loaded = load_dataset("imagefolder", data_dir=str(folder / "images"), drop_labels=True, cache_dir=cache)
        for row in loaded["train"]:
            row["image"].load()


def convert(folder: Path) -> None:
    """Decode, shrink and encode every image into tars, in all cores."""
    with tempfile.TemporaryDirectory() as out, ProcessPoolExecutor(CORES) as pool:
        list(pool.map(_convert_folder, sorted(folder.glob("images/*")), [out] * len(list(folder.glob("images/*")))))


def _convert_folder(folder: Path, out: str) -> None:
    with tarfile.open(Path(out, f"{folder.name}.tar"), "w") as tar:
        for path in sorted(folder.iterdir()):
            image = Image.open(path).convert("RGB")
            image.thumbnail((256, 256), Image.Resampling.LANCZOS)
            image.save(buffer := io.BytesIO(), "jpeg", quality=95)
            entry = tarfile.TarInfo(f"{path.stem}.jpg")
            entry.size = buffer.tell()
            buffer.seek(0)
            tar.addfile(entry, buffer)


WAYS: Final = {"imagefolder": read_imagefolder, "img2dataset": convert}


def compare(folder: Path, samples: int) -> dict[str, Any]:
    """Return what each way took for a folder: seconds for 1,000 samples, MiB, and utilisation."""
    home = folder.with_name(f"{folder.name}.home")
    ways = {"ingest": measure([INGEST, "ingest", "--source", str(folder), "--json"], HARDCASE_HOME=str(home))}
    for way in WAYS if samples <= BESIDE else ():
        ways[way] = measure([sys.executable, __file__, "--way", way, str(folder)])
    shutil.rmtree(home)
    result: dict[str, Any] = {
        way: {
            "seconds": cost.cpu / samples * 1000,
            "wall": round(cost.wall, 1),
            "MiB": round(cost.peak),
            "utilisation": round(cost.utilisation, 2),
        }
        for way, cost in ways.items()
    }
    sys.stdout.write(f"{folder.name}: {json.dumps(result)}\n")
    sys.stdout.flush()
    return result


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="2,000 to 128,000 samples; writes benchmarks/results/")
    parser.add_argument("--way", nargs=2, metavar=("WAY", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        WAYS[options.way[0]](Path(options.way[1]))
        return
    small, large = SIZES[options.full]
    with tempfile.TemporaryDirectory() as temporary:
        folder, results = Path(temporary), dict[str, Any]()
        write_images(whole := folder / f"small-{small[-1]}", small[-1], 64, ".jpg")
        for samples in small[:-1]:
            link_part(whole, folder / f"small-{samples}", samples)
        for samples in small:
            results[f"{samples}"] = compare(folder / f"small-{samples}", samples)
            shutil.rmtree(folder / f"small-{samples}")
        for suffix in (".jpg", ".png"):
            write_images(folder / f"large{suffix}", large, 1024, suffix)
            results[suffix] = compare(folder / f"large{suffix}", large)
    if options.full:
        record(results, small)


def record(results: dict[str, Any], small: Sequence[int]) -> None:
    """Write the results."""
    unit = "processor seconds for 1,000 samples of 5 images; baseline: imagefolder and decoding; less is better"
    by_size = {str(size): results[str(size)] for size in small}
    for name, ways, more in (
        ("small", results[str(BESIDE)], {"by_samples": by_size}),
        ("jpeg", results[".jpg"], {"ways": results[".jpg"]}),
        ("png", results[".png"], {"ways": results[".png"]}),
    ):
        value, baseline = ways["ingest"]["seconds"], ways["imagefolder"]["seconds"]
        write_result(
            f"ingest_scale_{name}", value=value, baseline=baseline, unit=unit, command="ingest_scale.py --full", **more
        )
    memory = [results[str(size)]["ingest"]["MiB"] for size in small]
    write_result(
        "ingest_scale_memory",
        value=memory[-1],
        baseline=memory[1],
        unit=f"MiB at {small[-1]} samples; baseline: at {small[1]}; less is better",
        command="ingest_scale.py --full",
        by_samples=dict(zip(map(str, small), memory, strict=True)),
    )


if __name__ == "__main__":
    main()
