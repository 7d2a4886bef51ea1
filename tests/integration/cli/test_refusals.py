"""What a user did wrong is said in one line, with the exit code for it, and nothing is lost."""

import json
import re

import pyarrow.parquet as pq
import pytest
from PIL import Image


def _source(folder):
    folder.mkdir()
    rows = [{"id": str(number), "aspect": "physical_shadow", "answer": ["A"]} for number in range(5)]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def _one_line(stderr):
    return [line for line in stderr.splitlines() if line.startswith("error:")]


def test_source_with_too_many_bad_rows_stops_the_run_and_keeps_the_quarantine(machine, tmp_path):
    done = machine.call("run", "--profile", "smoke", "--source", str(_source(tmp_path / "bad")))
    assert done.returncode == 2
    assert len(_one_line(done.stderr)) == 1
    assert "Traceback" not in done.stderr
    assert pq.read_table(machine.home / "latest" / "quarantine.parquet").num_rows == 5
    summary = machine.summary()
    assert summary["steps"]["ingest"]["status"] == "failed"
    assert summary["steps"]["validate"]["status"] == "not reached"
    assert summary["scores"] is None


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["run", "--profile", "nosuch"], "nosuch"),
        (["run", "--profile", "smoke", "--set", "sft.stepz=3"], "stepz"),
        (["run", "--profile", "smoke", "--set", "sft.steps"], "sft.steps"),
        (["run", "--profile", "smoke", "--set", "seed.x=3"], "seed"),
        (["run", "--profile", "smoke", "--set", "grpo.batch_size=6"], "grpo: batch_size × accumulation = 6 × 1 = 6"),
        (["run", "--profile", "smoke", "--set", "grpo.lora.targets=q_proj"], "grpo.lora.targets 'q_proj' matches no"),
        (["run", "--profile", "smoke", "--set", "grpo.nodes=2"], "grpo.nodes is 2, and this is one machine"),
        (["ingest", "--source", "/no/such/folder"], "/no/such/folder"),
        (["ingest", "--source", "snapshot:abc"], "snapshot:abc: no such snapshot"),
        (["audit", "image-screener"], "not registered"),
        (["audit", "image-screener", "--store", "s3://bucket/../other"], "s3://bucket/../other"),
        (["audit", "image-screener", "--key", "/no/such.pub"], "/no/such.pub"),
        (["rollback", "image-screener"], "nothing to roll back to"),
        (["report", "yesterday"], "yesterday"),
        (["screen", "--model", ".", "original.jpg"], "1 images"),
    ],
)
def test_mistake_is_named_in_one_line(machine, arguments, named):
    done = machine.call(*arguments)
    assert done.returncode == 2, done.stderr
    (line,) = _one_line(done.stderr)
    assert named in line
    assert "Traceback" not in done.stderr


def test_ingest_takes_the_key_that_its_error_advises_to_raise(machine, tmp_path):
    source = _source(tmp_path / "bad")
    for letter in ("original", *"abcd"):
        Image.new("RGB", (32, 32), (ord(letter[0]), 0, 0)).save(source / f"{letter}.png")
    row = {"id": "good", "aspect": "physical_shadow", "answer": ["A"], "original": "original.png"}
    row["candidates"] = [f"{letter}.png" for letter in "abcd"]
    with (source / "manifest.jsonl").open("a") as manifest:
        manifest.write(json.dumps(row) + "\n")
    refused = machine.call("ingest", "--source", str(source))
    assert refused.returncode == 2
    assert "ingest.max_bad_share" in refused.stderr
    done = machine.call("ingest", "--source", str(source), "--set", "ingest.max_bad_share=0.9", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["accepted"] == 1


def test_ingest_tells_groups_and_splits(machine):
    done = machine.call("ingest", "--source", "procedural://?samples=40&seed=1")
    assert re.search(
        r"accepted 40 rows: \d+ for evaluation, \d+ for training\ngroups: 40; .* largest: 1\n", done.stdout
    )
    told = json.loads(machine.call("ingest", "--source", "procedural://?samples=40&seed=1", "--json").stdout)
    assert sum(told["splits"].values()) == told["accepted"] == 40
    assert (told["groups"], told["largest_group"]) == (40, 1)
    again = json.loads(machine.call("ingest", "--source", f"snapshot:{told['snapshot']}", "--json").stdout)
    assert {**again, "quarantine": ""} == {**told, "quarantine": ""}


def _unreadable(folder, what):
    """A file that cannot be screened; root may read any file, but not the memory of a process from its start."""
    path = folder / f"{what}.png"
    if what == "folder":
        path.mkdir()
    elif what == "loop":
        path.symlink_to(path)
    elif what == "cut":
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:-100])
    elif what == "text":
        path.write_text("no image")
    elif what == "memory":
        path.symlink_to("/proc/self/mem")
    return path


@pytest.mark.parametrize("what", ["folder", "loop", "missing", "cut", "text", "memory"])
def test_image_that_cannot_be_read_is_named_in_one_line(machine, tmp_path, what):
    whole = tmp_path / "whole.png"
    Image.new("RGB", (32, 32)).save(whole)
    bad = _unreadable(tmp_path, what)
    done = machine.call("screen", "--model", ".", *[str(path) for path in (whole, whole, bad, whole, whole)])
    assert done.returncode == 2, done.stderr
    (line,) = _one_line(done.stderr)
    assert str(bad) in line
    assert "Traceback" not in done.stderr


def test_what_this_machine_cannot_run_is_refused_before_the_data_are_read(machine, tmp_path):
    done = machine.call(
        "run", "--profile", "smoke", "--set", "mine.engine=vllm", "--source", str(_source(tmp_path / "s"))
    )
    assert done.returncode == 2
    (line,) = _one_line(done.stderr)
    assert "mine.engine is vllm" in line
    assert machine.summary()["steps"]["ingest"]["status"] == "not reached"


def test_json_says_the_error_too(machine):
    done = machine.call("ingest", "--source", "/no/such/folder", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["exit_code"] == 2
