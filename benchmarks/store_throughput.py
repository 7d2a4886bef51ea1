"""Measure what verifying every byte costs: the store against `cp` on local files, and against plain boto3 on S3.

`Store.put_folder` (sha256, put if absent, four at once) and `Store.get_folder` (sha256 verified, each file complete or
absent) are measured beside `cp -r` there and back, or beside boto3's `put_object` and `get_object` on one thread. All
read and write the same files. The two alternate, and so does which of them begins. Results are medians of the turns,
without the near cache. The store fsyncs files that it fetches, not objects that it puts; `cp` and the boto3 loop never
fsync. `synced` has a `sync` of the whole disk inside the time of both. S3 is a moto server in a process of its own on
loopback, in Python: its figures show what the store adds, not what S3 gives.

    python benchmarks/store_throughput.py [NAME …]
"""

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import boto3
from result import write_result

from hardcase.store.store import open_store

SIZES = {"small": (500, 20_000), "large": (6, 64 * 2**20)}  # files, bytes of each
NAMES = [f"store_{way}_{size}_{place}" for place in ("files", "s3") for size in SIZES for way in ("put", "get")]
TURNS = 5
BUCKET = "benchmark"
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "not-a-secret", "AWS_DEFAULT_REGION": "us-east-1"}
SERVER = """
import logging
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
server._thread.join()
"""
Turn = dict[tuple[str, str, bool], float]  # seconds by way, kind, and whether synced


def files_turn(source: Path, scratch: Path, kinds: list[str]) -> Turn:
    """Time one put and one get of a folder on local files, by each kind, without and with a sync."""
    spent: Turn = {}
    for synced in (False, True):
        for kind in kinds:
            place, back = scratch / kind, scratch / f"{kind}-back"
            if kind == "store":
                store, addresses = open_store(str(place)), []
                put: Callable[[], Any] = lambda: addresses.append(store.put_folder(source))  # noqa: B023, E731
                get: Callable[[], Any] = lambda: store.get_folder(addresses[0], back)  # noqa: B023, E731
            else:
                put, get = copy_folder(source, place), copy_folder(place, back)
            for way, work in (("put", put), ("get", get)):
                os.sync()  # what the turn before left must not count
                spent[way, kind, synced] = time_call(work, synced=synced)
            shutil.rmtree(place)
            shutil.rmtree(back)
    return spent


def copy_folder(source: Path, dest: Path) -> Callable[[], Any]:
    """Return a call that runs `cp -r`."""
    return lambda: subprocess.run(["cp", "-r", source, dest], check=True)


def s3_turn(source: Path, scratch: Path, kinds: list[str]) -> Turn:
    """Time one put and one get of a folder on S3, by each kind."""
    spent: Turn = {}
    for kind in kinds:
        reset_server()
        back = scratch / f"{kind}-back"
        if kind == "store":
            store, addresses = open_store(f"s3://{BUCKET}/hardcase", cached=False), []
            put: Callable[[], Any] = lambda: addresses.append(store.put_folder(source))  # noqa: B023, E731
            get: Callable[[], Any] = lambda: store.get_folder(addresses[0], back)  # noqa: B023, E731
        else:
            put, get = boto3_loop(source, back)
        for way, work in (("put", put), ("get", get)):
            os.sync()
            spent[way, kind, False] = time_call(work)
        shutil.rmtree(back)
    reset_server()
    return spent


def boto3_loop(source: Path, back: Path) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Return calls that put and get one object after the other."""
    client: Any = boto3.client("s3")
    names = sorted(path.name for path in source.iterdir())

    def put() -> None:
        for name in names:
            client.put_object(Bucket=BUCKET, Key=f"plain/{name}", Body=(source / name).read_bytes())

    def get() -> None:
        back.mkdir()
        for name in names:
            (back / name).write_bytes(client.get_object(Bucket=BUCKET, Key=f"plain/{name}")["Body"].read())

    return put, get


def reset_server() -> None:
    """Forget all objects: the server keeps them in memory and on the scratch disk."""
    request = urllib.request.Request(f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset", method="POST")  # noqa: S310
    urllib.request.urlopen(request).close()  # noqa: S310
    boto3.client("s3").create_bucket(Bucket=BUCKET)


@contextmanager
def moto_server() -> Iterator[None]:
    """Start a server in a process of its own that the AWS chain finds, and nothing of the machine's own."""
    with subprocess.Popen([sys.executable, "-c", SERVER], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        endpoint = f"http://127.0.0.1:{int(server.stdout.readline())}"
        own = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
        try:
            with patch.dict(os.environ, {**own, **KEYS, "AWS_ENDPOINT_URL": endpoint}, clear=True):
                yield
        finally:
            server.kill()


def time_call(work: Callable[[], Any], *, synced: bool = False) -> float:
    """Return the seconds that a call takes by the wall clock, since most of it is waiting."""
    start = time.perf_counter()
    work()
    if synced:
        os.sync()
    return time.perf_counter() - start


def measure(place: str, size: str) -> list[Turn]:
    """Time all turns of one place and size, on files of random bytes."""
    turn = {"files": files_turn, "s3": s3_turn}[place]
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source"
        source.mkdir()
        for number in range(SIZES[size][0]):
            (source / f"{number:04}").write_bytes(rng.randbytes(SIZES[size][1]))
        kinds = ["store", "plain"]
        return [turn(source, Path(folder), kinds[:: 1 - 2 * (number % 2)]) for number in range(TURNS)]


def record(name: str, turns: list[Turn]) -> dict[str, Any]:
    """Write and return the result of one name."""
    _, way, size, place = name.split("_")
    files, bytes_each = SIZES[size]
    megabytes = files * bytes_each / 1e6
    amount, unit = (files, "objects/s") if size == "small" else (megabytes, "MB/s")

    def rates(synced: bool) -> dict[str, float]:
        ours, plain = (amount / median(turn[way, kind, synced] for turn in turns) for kind in ("store", "plain"))
        return {"value": ours, "baseline": plain, "ratio": ours / plain}

    baseline = "cp -r" if place == "files" else f"boto3 {way}_object, one thread"
    by_turn = {kind: [amount / turn[way, kind, False] for turn in turns] for kind in ("store", "plain")}
    more: dict[str, Any] = {"synced": rates(True)} if place == "files" else {}
    more["MB/s"] = {name: rates(False)[name] * megabytes / amount for name in ("value", "baseline")}
    return write_result(
        name,
        **rates(False),
        unit=f"{unit}, {files} files of {bytes_each} bytes; baseline: {baseline}; more is better",
        command=f"store_throughput.py {name}",
        on=f", shared; medians of {TURNS} turns",
        turns={"value": by_turn["store"], "baseline": by_turn["plain"]},
        **more,
    )


def main() -> None:
    """Measure every name; those of one place and size in the same turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; all by default")
    names = parser.parse_args().names or NAMES
    if unknown := set(names) - set(NAMES):
        parser.error(f"{', '.join(sorted(unknown))}: not measured here; name some of {', '.join(NAMES)}")
    with moto_server():
        for place, size in product(("files", "s3"), SIZES):
            chosen = [name for name in names if name.endswith(f"_{size}_{place}")]
            turns = measure(place, size) if chosen else []
            for name in chosen:
                result = record(name, turns)
                rates = f"{result['baseline']:8.1f} → {result['value']:8.1f}"
                print(f"{name:22} {rates}   {result['ratio']:.2f}×", flush=True)


if __name__ == "__main__":
    main()
