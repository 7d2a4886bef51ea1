"""What a user did wrong is said in one line, with the exit code for it, and nothing is lost."""

import json

import pyarrow.parquet as pq
import pytest


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


def test_json_says_the_error_too(machine):
    done = machine.call("ingest", "--source", "/no/such/folder", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["exit_code"] == 2
