"""What is sent: typed parameters, pinned images, and a version that changes only with the content."""

import json

import pytest
import yaml
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st
from kfp.pipeline_spec.pipeline_spec_pb2 import PipelineSpec

from hardcase.cli.package import Package, load_package, parse_parameters, replace_images
from hardcase.errors import InputError
from hardcase.kubeflow.address import Refused

LIGHT, TRAIN = "hardcase/python-light:0.1.0", "hardcase/python-train:0.1.0"
PINNED = "registry.example:5000/light@sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("profile=smoke", "smoke"),
        ("source=s3://bucket/a=b", "s3://bucket/a=b"),
        ("source=", ""),
        ("seed=-3", -3),
        ("share=1e-3", 0.001),
        ("extra=True", True),
        ("extra=false", False),
        ("shards=[1, 2]", [1, 2]),
        ('settings={"a": null}', {"a": None}),
    ],
)
def test_value_has_the_type_that_the_pipeline_defines(little, setting, value):
    name = setting.partition("=")[0]
    assert parse_parameters(load_package(str(little)), [setting]) == {name: value}
    assert type(parse_parameters(load_package(str(little)), [setting])[name]) is type(value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["profil=smoke"], "it takes no profil. It takes extra (true or false, by default false); profile (one of"),
        (["profile=big"], 'profile is "big", not one of tiny, smoke'),
        (["seed=1.5"], 'seed is "1.5", not a whole number'),
        (["share=nan"], 'share is "nan", not a number'),
        (["share=much"], 'share is "much", not a number'),
        (["extra=1"], 'extra is "1", not true or false'),
        (["shards={}"], "shards is {}, not a list in JSON"),
        (["settings=[1]"], "settings is [1], not an object in JSON"),
        (["seed"], "-p seed: not of the form name=value"),
        (["seed=1", "seed=2"], "'seed': given twice"),
    ],
)
def test_wrong_value_is_refused_with_what_there_is(little, settings, said):
    with pytest.raises((InputError, Refused)) as refused:
        parse_parameters(load_package(str(little)), settings)
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def test_missing_parameter_is_named():
    package = Package("p", b"", {"store": {"parameterType": "STRING"}, "seed": {"parameterType": "NUMBER_INTEGER"}}, {})
    with pytest.raises(Refused, match=r"pipeline p: it needs store\. It takes seed .a whole number.; store"):
        parse_parameters(package, ["seed=1"])


@given(st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.none(), st.booleans())))
def test_object_arrives_as_it_was_given(values):
    package = Package("p", b"", {"settings": {"parameterType": "STRUCT"}}, {})
    assert parse_parameters(package, [f"settings={json.dumps(values)}"]) == {"settings": values}


def test_step_in_a_pinned_image_is_told_which_and_the_others_are_left(little):
    before = load_package(str(little))
    package = replace_images(before, [f"{LIGHT}={PINNED}"])
    spec = next(yaml.safe_load_all(package.content))
    containers = {name: each["container"] for name, each in spec["deploymentSpec"]["executors"].items()}
    assert package.images == {"exec-ingest": PINNED, "exec-sft": TRAIN}
    assert containers["exec-ingest"]["env"] == [{"name": "HARDCASE_IMAGE", "value": PINNED}]
    assert containers["exec-sft"]["env"] == [{"name": "LEFT", "value": "alone"}]
    assert (before.loose, package.loose) == ([LIGHT, TRAIN], [TRAIN])
    assert package.version != before.version
    ParseDict(spec, PipelineSpec())


def test_image_pinned_already_is_told_too_once(little, tmp_path):
    path = tmp_path / "pinned.yaml"
    path.write_text(little.read_text().replace(TRAIN, PINNED))
    once = replace_images(load_package(str(path)), [])
    path.write_bytes(once.content)
    assert replace_images(load_package(str(path)), []).content == once.content
    env = next(yaml.safe_load_all(once.content))["deploymentSpec"]["executors"]["exec-sft"]["container"]["env"]
    assert env == [{"name": "LEFT", "value": "alone"}, {"name": "HARDCASE_IMAGE", "value": PINNED}]


def test_without_another_image_the_committed_bytes_are_sent(little):
    assert replace_images(load_package(str(little)), []).content == little.read_bytes()


def test_settings_for_kubernetes_stay_behind_the_spec():
    package = load_package("retraining")
    image = next(iter(package.images.values()))
    before, after = list(yaml.safe_load_all(package.content)), replace_images(package, [f"{image}={PINNED}"])
    assert PINNED in after.images.values()
    assert list(yaml.safe_load_all(after.content))[1:] == before[1:]
    assert after.inputs == package.inputs


@pytest.mark.parametrize(
    ("replacement", "said"),
    [
        (LIGHT, "not of the form"),
        (f"{LIGHT}=two words", "not of the form"),
        (f"{LIGHT}=", "not of the form"),
        (f"{LIGHT}=light@sha256:abc", "not of the form"),
        (f"nosuch={PINNED}", f"has no image 'nosuch'; it has {LIGHT}, {TRAIN}"),
    ],
)
def test_wrong_image_is_refused(little, replacement, said):
    with pytest.raises(InputError, match="--image") as refused:
        replace_images(load_package(str(little)), [replacement])
    assert said in str(refused.value)


def changed(little, change):
    """The bytes of the little pipeline with another document, or another key in its spec."""
    spec = next(yaml.safe_load_all(little.read_bytes()))
    return yaml.safe_dump_all([{**spec, **change}])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("not: [a pipeline", "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        ("", "not a compiled pipeline"),
        ("words", "not a compiled pipeline"),
        ("a: 1", "not a compiled pipeline .it has no pipelineInfo"),
        ("apiVersion: argoproj.io/v1alpha1\nkind: Workflow", "not a compiled pipeline"),
        (lambda little: changed(little, {"steps": 1}), 'not a compiled pipeline .* no field named "steps"'),
        (lambda little: little.read_text() + "---\na: 1\n", "something else than settings for Kubernetes"),
        (lambda little: little.read_text() + "---\nnot: [a\n", "not YAML"),
    ],
)
def test_file_that_is_no_pipeline_is_refused_for_it_would_hang_the_server(little, tmp_path, content, said):
    path = tmp_path / "bad.yaml"
    content = content(little) if callable(content) else content
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=said):
        load_package(str(path))


def test_pipeline_that_is_not_there_is_refused_with_what_there_is():
    with pytest.raises(InputError, match=r"--pipeline nosuch: no such pipeline; there are .*retraining"):
        load_package("nosuch")
