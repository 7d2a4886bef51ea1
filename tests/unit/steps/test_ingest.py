"""ingest on whole sources: a row is in the snapshot or in the quarantine, and the same source gives the same bytes."""

import io
import json
import os
import shutil
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagehash
import joblib
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from hardcase.config import IngestConfig
from hardcase.data import blocks
from hardcase.data.files import open_source
from hardcase.data.quarantine import Reason
from hardcase.data.snapshot import Snapshot
from hardcase.data.source import Source, split_sources
from hardcase.errors import HardcaseError, InputError
from hardcase.steps import ingest as step

LENIENT = IngestConfig(max_bad_share=1)
Rows = list[dict[str, Any]]


def picture(seed: int, kind: str = "PNG", size: int = 32, **options: Any) -> bytes:
    """Coarse noise: no two are alike, to the eye or to a perceptual hash."""
    coarse = np.random.default_rng(seed).integers(0, 255, (8, 8, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(coarse).resize((size, size), Image.Resampling.BILINEAR).save(buffer, kind, **options)
    return buffer.getvalue()


def samples(folder: Path, count: int) -> Rows:
    """Good rows `0`…, whose five pictures lie in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: Rows = []
    for number in range(count):
        names = [f"{number}-{part}.png" for part in "oabcd"]
        for part, name in enumerate(names):
            (folder / name).write_bytes(picture(5 * number + part))
        aspect = ("physical_shadow", "placement_layout")[number % 2]
        rows.append(
            {"id": str(number), "aspect": aspect, "original": names[0], "candidates": names[1:], "answer": ["B"]}
        )
    return rows


def write(folder: Path, rows: Rows) -> str:
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


class Desk:
    """Where one test's snapshots go."""

    def __init__(self, root: Path) -> None:
        self.root, self.source = root, root / "source"
        self.manifest, self.quarantine = root / "out" / "manifest.json", root / "out" / "quarantine.parquet"
        self.manifest.parent.mkdir()
        (root / "scratch").mkdir()

    def ingest(self, source: str, config: IngestConfig = LENIENT) -> step.IngestResult:
        return step.run(source, str(self.root / "store"), config, self.manifest, self.quarantine, self.root / "scratch")

    def reasons(self) -> dict[int, str]:
        table = pq.read_table(self.quarantine)
        return dict(zip(table["row"].to_pylist(), table["reason"].to_pylist(), strict=True))

    def accepted(self) -> pa.Table:
        return Snapshot.open(self.manifest, str(self.root / "store")).read_table()

    def files(self) -> dict[str, bytes]:
        """Every byte that came out, by name."""
        found = [path for name in ("out", "store") for path in (self.root / name).rglob("*") if path.is_file()]
        return {path.relative_to(self.root).as_posix(): path.read_bytes() for path in found}


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_good_rows_come_back_as_they_were(desk: Desk) -> None:
    rows = samples(desk.source, 12)
    rows[3] |= {"reasoning": "B leans, 影子不对", "answer": []}
    rows[4]["id"] = 4
    result = desk.ingest(write(desk.source, rows), IngestConfig(group_distance=0))
    assert (result.accepted, result.quarantined) == (12, {})
    snapshot = Snapshot.open(desk.manifest, str(desk.root / "store"))
    assert snapshot.id == result.snapshot
    found = {
        sample.id: sample for split in ("train", "eval") for sample in snapshot.open_samples(split, reasoning=True)
    }
    assert snapshot.count("train") > 0 < snapshot.count("eval")
    for row in rows:
        sample = found[str(row["id"])]
        assert (sample.aspect, sorted(sample.truth)) == (row["aspect"], row["answer"])
        assert sample.reasoning == row.get("reasoning")
        assert list(sample.images) == [
            (desk.source / name).read_bytes() for name in (row["original"], *row["candidates"])
        ]


def test_the_facts_of_a_picture_are_those_of_its_upright_pixels(desk: Desk) -> None:
    rows = samples(desk.source, 1)
    exif = Image.Exif()
    exif[0x0112] = 6
    wide = Image.open(io.BytesIO(picture(1))).resize((48, 32))
    wide.save(desk.source / "0-o.jpg", exif=exif)
    rows[0]["original"] = "0-o.jpg"
    desk.ingest(write(desk.source, rows))
    facts = desk.accepted()["images"].to_pylist()[0][0]
    upright = Image.open(desk.source / "0-o.jpg").transpose(Image.Transpose.ROTATE_270)
    light = np.asarray(upright.convert("L"), float)
    assert (facts["width"], facts["height"], facts["format"]) == (32, 48, "JPEG")
    assert facts["phash"] == str(imagehash.phash(upright))
    assert (facts["mean"], facts["std"]) == pytest.approx((light.mean(), light.std()))


def bomb() -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 16_000, 16_000, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(16_001 * 160))) + chunk(b"IEND", b"")


def spoil(folder: Path, rows: Rows) -> dict[int, str]:
    """Break one row for every reason there is, and say what each must be found to be."""
    files: dict[Reason, tuple[str, bytes]] = {
        Reason.UNSUPPORTED_FORMAT: ("x.gif", picture(900, "GIF")),
        Reason.SUFFIX_MISMATCH: ("renamed.jpg", picture(901)),
        Reason.ANIMATED: ("moving.png", picture(902, save_all=True, append_images=[Image.new("RGB", (32, 32))])),
        Reason.TOO_MANY_BYTES: ("heavy.png", picture(903).ljust(33 * 2**20, b"\0")),
        Reason.TOO_MANY_PIXELS: ("bomb.png", bomb()),
        Reason.BAD_SIDE: ("small.png", picture(904, size=8)),
        Reason.CORRUPT: ("cut.png", picture(905)[:-20]),
    }
    thin = io.BytesIO()
    Image.new("RGB", (20, 420)).save(thin, "PNG")
    files[Reason.BAD_RATIO] = ("thin.png", thin.getvalue())
    changes: dict[Reason, dict[str, Any]] = {
        Reason.BAD_ID: {"id": ""},
        Reason.BAD_ASPECT: {"aspect": "shadow"},
        Reason.BAD_PATH: {"original": "../o.png"},
        Reason.OUTSIDE_SOURCE: {"original": "escape.png"},
        Reason.MISSING_FILE: {"candidates": ["absent.png"] * 4},
        Reason.NOT_REGULAR: {"original": "folder.png"},
        Reason.BAD_ANSWER: {"answer": ["b"]},
        Reason.BAD_REASONING: {"reasoning": "<answer>A</answer>"},
        Reason.BAD_SPLIT: {"split": "test"},
        Reason.BAD_GROUP: {"group": 5},
    }
    for reason, (name, data) in files.items():
        (folder / name).write_bytes(data)
        changes[reason] = {"original": name}
    (folder / "folder.png").mkdir()
    (folder.parent / "outside.png").write_bytes(picture(906))
    (folder / "escape.png").symlink_to("../outside.png")
    expected = {}
    for at, (reason, change) in enumerate(changes.items()):
        rows[at] |= change
        expected[at + 1] = str(reason)
    at = len(changes)
    rows[at]["id"] = rows[at + 1]["id"]
    pictures = {key: rows[at + 2][key] for key in ("aspect", "original", "candidates")}
    rows[at + 3] |= {**pictures, "answer": ["A"]}
    pictures = {key: rows[at + 4][key] for key in ("aspect", "original", "candidates")}
    rows[at + 5] |= pictures
    expected |= {at + 1: "duplicate_id", at + 2: "duplicate_id", at + 3: "contradiction", at + 4: "contradiction"}
    expected[at + 6] = "duplicate_sample"
    return expected


def test_every_reason_is_found_and_no_row_is_lost_or_in_both(desk: Desk) -> None:
    rows = samples(desk.source, 30)
    expected = spoil(desk.source, rows)
    write(desk.source, rows)
    with (desk.source / "manifest.jsonl").open("ab") as file:
        file.write(b'{"id": "twice", "id": "twice"}\n\nnonsense\n')
    expected |= {31: "duplicate_key", 33: "bad_row"}
    result = desk.ingest(str(desk.source))
    assert desk.reasons() == expected
    assert set(expected.values()) == {str(reason) for reason in Reason} - {"split_leak"}
    accepted = desk.accepted()["row"].to_pylist()
    assert sorted([*accepted, *expected]) == [*range(1, 32), 33]
    assert (result.accepted, sum(result.quarantined.values())) == (len(accepted), len(expected))
    table = pq.read_table(desk.quarantine)
    assert all(table["detail"].to_pylist())
    assert str(desk.root) not in str(table["detail"].to_pylist())


def test_a_leak_between_named_splits_costs_train_rows_only(desk: Desk) -> None:
    rows = samples(desk.source, 8)
    for row in rows:
        row["split"] = "eval" if int(row["id"]) < 3 else "train"
    rows[5]["original"] = rows[0]["original"]
    (desk.source / "6-o.png").write_bytes(picture(0, size=36))  # the same picture to the eye
    desk.ingest(write(desk.source, rows))
    assert desk.reasons() == {6: "split_leak", 7: "split_leak"}
    splits = dict(zip(desk.accepted()["id"].to_pylist(), desk.accepted()["split"].to_pylist(), strict=True))
    assert splits == {"0": "eval", "1": "eval", "2": "eval", "3": "train", "4": "train", "7": "train"}


@pytest.mark.parametrize("named", [False, True])
def test_originals_alike_to_the_eye_never_part_unless_groups_are_named(desk: Desk, named: bool) -> None:
    rows = samples(desk.source, 20)
    for row in rows[10:]:
        (desk.source / row["original"]).write_bytes(picture(5 * (int(row["id"]) - 10), size=40))
    if named:
        rows[0]["group"] = "kettle"
    desk.ingest(write(desk.source, rows))
    groups = dict(zip(desk.accepted()["id"].to_pylist(), desk.accepted()["group"].to_pylist(), strict=True))
    assert len(set(groups.values())) == (20 if named else 10)
    assert all((groups[str(at)] == groups[str(at + 10)]) is not named for at in range(10))


def test_images_embedded_in_parquet_give_the_snapshot_of_the_files(desk: Desk) -> None:
    rows = samples(desk.source, 12)
    of_files = desk.ingest(write(desk.source, rows))
    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    embedded = [
        {name: {"bytes": (desk.source / name).read_bytes(), "path": f"/tmp/cache/{name}"} for name in names}
        for names in ([row["original"], *row["candidates"]] for row in rows)
    ]
    table = pa.table(
        {
            "id": [row["id"] for row in rows],
            "aspect": [row["aspect"] for row in rows],
            "original": pa.array([next(iter(images.values())) for images in embedded], image),
            "candidates": pa.array([list(images.values())[1:] for images in embedded], pa.list_(image)),
            "answer": [row["answer"] for row in rows],
        }
    )
    (desk.root / "table").mkdir()
    pq.write_table(table, desk.root / "table" / "images.parquet", row_group_size=5)
    assert desk.ingest(str(desk.root / "table" / "images.parquet")) == of_files


def test_too_many_bad_rows_stop_with_the_quarantine_and_nothing_else(desk: Desk) -> None:
    rows = samples(desk.source, 20)
    rows[4]["answer"] = None
    source = write(desk.source, rows)
    assert desk.ingest(source, IngestConfig()).accepted == 19  # exactly the share is not more
    desk.manifest.unlink()
    shutil.rmtree(desk.root / "store")
    rows[5]["answer"] = None
    with pytest.raises(
        InputError,
        match=r"2 of 20 rows are bad \(bad_answer 2\), first row \d+: .*not a list of.*max_bad_share 0.05.*quarantine",
    ):
        desk.ingest(write(desk.source, rows), IngestConfig())
    assert set(desk.files()) == {"out/quarantine.parquet"}
    assert desk.reasons() == {5: "bad_answer", 6: "bad_answer"}


def test_no_row_left_is_an_error_whatever_the_share(desk: Desk) -> None:
    rows = samples(desk.source, 2)
    for row in rows:
        row["answer"] = None
    with pytest.raises(InputError, match="2 of 2 rows are bad"):
        desk.ingest(write(desk.source, rows))


@pytest.mark.parametrize("data", [b"", b"\n\n", b"\xef\xbb\xbf\r\n"])
def test_an_empty_manifest_is_one_clear_error(desk: Desk, data: bytes) -> None:
    desk.source.mkdir()
    (desk.source / "manifest.jsonl").write_bytes(data)
    with pytest.raises(InputError, match="no rows"):
        desk.ingest(str(desk.source))
    assert set(desk.files()) == {"out/quarantine.parquet"}


@pytest.mark.parametrize(
    "source",
    [
        *("s3://bucket/x", "http://host/x", "/absent", "procedural://?samples=0", "procedural://?samples=x"),
        *("procedural://?sample=5", "procedural://host?samples=5", "procedural://?samples=5&views_a_product=0"),
    ],
)
def test_what_is_no_source_is_one_clear_error(desk: Desk, source: str) -> None:
    with pytest.raises(InputError, match="; "):
        desk.ingest(source)
    assert not desk.manifest.exists()


def test_half_characters_and_odd_keys_do_not_break_the_writing(desk: Desk) -> None:
    rows = samples(desk.source, 4)
    rows[0] |= {"\ud800 key": 1, "note": "\udfff"}
    rows[1] |= {"group": "\ud800"}
    rows[2] |= {"group": "日本 🫖\0\n" + "x" * 10**6}
    desk.ingest(write(desk.source, rows))
    assert desk.reasons() == {2: "bad_group"}
    assert json.loads(desk.manifest.read_bytes())["unknown_keys"] == ["note", "\ufffd key"]


def test_parquet_gives_the_same_samples_as_jsonl(desk: Desk) -> None:
    rows = samples(desk.source, 8)
    desk.ingest(write(desk.source, rows))
    before = desk.manifest.read_bytes()
    (desk.source / "manifest.jsonl").unlink()
    pq.write_table(pa.Table.from_pylist(rows), desk.source / "manifest.parquet")
    desk.ingest(str(desk.source / "manifest.parquet"))
    assert desk.manifest.read_bytes() == before


def test_the_same_source_gives_the_same_bytes_whoever_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for turn, workers in enumerate((1, 3)):
        (tmp_path / str(turn)).mkdir()
        desk = Desk(tmp_path / str(turn))
        if turn == 0:
            rows = samples(desk.source, 40)
            expected = spoil(desk.source, rows)
            write(desk.source, rows)
        else:
            desk.source.mkdir()
            first = tmp_path / "0" / "source"
            (tmp_path / "1" / "outside.png").write_bytes(b"")
            for path in sorted(first.iterdir(), reverse=True):  # another order on the disk, other times
                if path.is_dir():
                    (desk.source / path.name).mkdir()
                else:
                    shutil.copyfile(path, desk.source / path.name, follow_symlinks=False)
                    os.utime(desk.source / path.name, (turn, turn), follow_symlinks=False)
        monkeypatch.setattr(joblib, "cpu_count", lambda workers=workers: workers)
        desk.ingest(str(desk.source), IngestConfig(max_bad_share=1, shard_bytes=20_000))
        assert desk.reasons() == expected
        made.append(desk.files())
    assert made[0] == made[1]
    assert len(made[0]) > 4  # several shards


def two_batches(root: Path) -> tuple[Path, Path]:
    """Folders of three rows each, with the same ids; the first row of both is the same sample."""
    march, april = root / "march", root / "april"
    write(march, samples(march, 3))
    rows = samples(april, 3)
    for row, pictures in list(zip(rows, range(3), strict=True))[1:]:
        for name in (row["original"], *row["candidates"]):
            (april / name).write_bytes(picture(1000 + 5 * pictures + "oabcd".index(name[-5])))
    write(april, rows)
    return march, april


def test_several_sources_are_one_snapshot_with_no_row_lost_or_twice(desk: Desk) -> None:
    march, april = two_batches(desk.root)
    result = desk.ingest(f"{march.as_uri()} {april.as_uri()}", IngestConfig(max_bad_share=0))
    assert (result.accepted, result.quarantined) == (5, {"duplicate_sample": 1})
    assert desk.accepted()["id"].to_pylist() == ["1/0", "1/1", "1/2", "2/1", "2/2"], "equal ids stay apart"
    assert desk.reasons() == {4: "duplicate_sample"}, "rows are counted on through the sources"


def test_several_sources_give_the_same_bytes_whoever_reads_them(desk: Desk, tmp_path: Path) -> None:
    march, april = two_batches(desk.root)
    both = f"{march.as_uri()} {april.as_uri()}"
    whole = desk.ingest(both)
    (tmp_path / "other").mkdir()
    other = Desk(tmp_path / "other")
    arguments = (LENIENT, other.manifest, other.quarantine, other.root / "scratch", 2)
    assert step.run(both, str(other.root / "store"), *arguments) == whole


def test_folder_with_spaces_is_one_source_and_a_stored_snapshot_is_not_merged(desk: Desk) -> None:
    folder = desk.root / "two words"
    assert desk.ingest(write(folder, samples(folder, 2))).accepted == 2
    assert split_sources("s3://bucket/two words") == ["s3://bucket/two words"]
    with pytest.raises(InputError, match="a stored snapshot cannot be merged with others; name it alone"):
        desk.ingest(f"{folder.as_uri()} snapshot:{'0' * 64}")


def test_memory_holds_one_shard_not_the_source(desk: Desk) -> None:
    rows = samples(desk.source, 40)
    noise = np.random.default_rng(0)
    for row in rows:
        for name in (row["original"], *row["candidates"]):
            pixels = noise.integers(0, 255, (280, 280, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(desk.source / name, compress_level=0)
    manifest, files = open_source(write(desk.source, rows), desk.root)
    block = Source(manifest).list_blocks()[0]._replace(rows=40)
    for folder in ("first", "second"):  # what is imported on the way is no shard
        (desk.root / folder).mkdir()
        reader = blocks.BlockReader(manifest, files, desk.root / folder, 2**20, "")
        tracemalloc.start()
        table = reader.read(block)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert sum(path.stat().st_size for path in desk.source.iterdir()) > 38 * 2**20
    assert peak < 6 * 2**20
    assert len(blocks.read_details(table).shards) == 40


def _die(*_: object, **__: object) -> None:
    os._exit(9)


def _starve(*_: object, **__: object) -> None:
    raise MemoryError


@pytest.mark.parametrize("end", [_die, _starve])
def test_a_dying_worker_is_one_clear_error(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, end: Callable[..., None]
) -> None:
    source = write(desk.source, samples(desk.source, 3))
    monkeypatch.setattr(blocks, "measure_image", end)
    with pytest.raises(HardcaseError, match="died near row 1, most likely because memory ran out"):
        desk.ingest(source)


def test_procedural_samples_come_in_and_are_the_same_again(desk: Desk) -> None:
    first = desk.ingest("procedural://?samples=16&seed=3")
    assert (first.accepted, first.quarantined) == (16, {})
    (drawn := desk.root / "scratch" / "shard-1-of-1" / "procedural").mkdir(parents=True)
    (drawn / "half-drawn.png").touch()  # of a run that was stopped
    assert desk.ingest("procedural://?samples=16&seed=3") == first
    assert desk.ingest("procedural://?samples=16&seed=4").snapshot != first.snapshot
