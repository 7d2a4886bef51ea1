"""The cache of objects: bounded, shared, never in the way."""

import os
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from hardcase.store.cache import ObjectCache


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.startswith(".")}


def test_a_full_cache_evicts_the_least_recently_used(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path / "cache", limit=30)
    for age, name in enumerate("abc"):
        cache.put(name, bytes(10))
        os.utime(cache.folder / name, (age, age))
    assert cache.get("a") == bytes(10)
    cache.put("d", bytes(10))
    assert names(cache.folder) == {"a", "c", "d"}
    assert cache.get("b") is None


def test_what_is_larger_than_all_is_not_kept(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, limit=5)
    cache.put("a", bytes(6))
    assert names(tmp_path) == set()


def work(folder: Path) -> int:
    cache = ObjectCache(folder, limit=50_000)
    wrong = 0
    for round_ in range(40):
        name = str(round_ % 13)
        cache.put(name, name.encode() * 5000)
        found = cache.get(str((round_ * 7) % 13))
        wrong += found is not None and len(set(found.decode())) > 2
    return wrong


def test_several_processes_share_it(tmp_path: Path) -> None:
    with ProcessPoolExecutor(4) as pool:
        assert sum(pool.map(work, [tmp_path] * 4)) == 0
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 50_000
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".tmp")]


def test_a_full_disk_does_not_fail_a_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    cache = ObjectCache(tmp_path / "file" / "below", limit=100)
    cache.put("a", b"x")
    assert cache.get("a") is None
