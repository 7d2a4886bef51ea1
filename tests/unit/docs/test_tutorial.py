"""The tutorial of Kubeflow names files, targets, variables, secrets and sections that exist; no cluster is needed."""

import re
import shlex
from pathlib import Path

import pytest

from tests.support.pages import lines_of_shell

REPOSITORY = Path(__file__).resolve().parents[3]
PAGE = REPOSITORY / "docs" / "tutorials" / "kubeflow-on-your-laptop.md"
TEXT = PAGE.read_text(encoding="utf-8")
PROGRAMS = ("make", "kubectl apply", "kubectl -n kubeflow create secret")
MAKEFILE = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
COMMANDS = [shlex.split(line, comments=True) for line in lines_of_shell(PAGE) if line.startswith(PROGRAMS)]


def commands_of(program: str) -> list[list[str]]:
    found = [words for words in COMMANDS if words[0] == program]
    assert found, f"no command of {program} was read"
    return found


@pytest.mark.parametrize("words", commands_of("make"), ids=" ".join)
def test_make_has_the_target_and_takes_the_variables(words: list[str]) -> None:
    assert re.search(rf"^{words[1]}:", MAKEFILE, re.MULTILINE), words[1]
    for variable in (word.partition("=")[0] for word in words[2:]):
        asked = re.search(r"^ACCEPTANCE := (.*)$", MAKEFILE, re.MULTILINE)
        assert asked is not None
        known = asked[1].split() if words[1] == "acceptance" else re.findall(r"^([A-Z]+) \?=", MAKEFILE, re.MULTILINE)
        assert variable in known, variable


def test_table_of_options_is_that_of_make() -> None:
    asked = re.search(r"^ACCEPTANCE := (.*)$", MAKEFILE, re.MULTILINE)
    table = "\n".join(re.findall(r"^\| (`[A-Z_`, ]+`) \|", TEXT, re.MULTILINE))
    assert asked is not None and sorted(re.findall("[A-Z_]+", table)) == sorted(asked[1].split())
    read = (REPOSITORY / "tests" / "acceptance" / "installation.py").read_text(encoding="utf-8")
    for name in asked[1].split():
        assert f'option("{name}"' in read, f"{name} is given and never read"


def test_files_and_sections_are_there() -> None:
    text = TEXT.replace("$settings", "infra/kubernetes/components/kubeflow")
    paths = set(re.findall(r"\binfra/[\w./-]*\w", text))
    assert len(paths) >= 4
    assert [path for path in paths if not (REPOSITORY / path).exists()] == []
    links = re.findall(r"\]\((\.\.[^)#]*)(?:#([^)]*))?\)", TEXT)
    assert links
    for path, section in links:
        other = (PAGE.parent / path).read_text(encoding="utf-8")
        titles = {
            re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in re.findall("^#+ (.*)", other, re.M)
        }
        assert not section or section in titles, f"{path}#{section}"


def test_manifests_of_kubeflow_are_those_of_the_other_docs() -> None:
    manifests = [words[-1] for words in commands_of("kubectl") if words[1:3] == ["apply", "-k"]]
    assert len(manifests) == 2
    other = (REPOSITORY / "docs" / "how-to" / "install-on-kubernetes.md").read_text(encoding="utf-8")
    assert [path for path in manifests if path not in other] == []


def test_secrets_are_those_that_steps_mount() -> None:
    compiled = (REPOSITORY / "pipelines" / "retraining.yaml").read_text(encoding="utf-8")
    made = re.findall(r"create secret generic (\S+)", TEXT)
    assert made == ["hardcase-credentials", "hardcase-signing"]
    assert [name for name in made if f"secretName: {name}" not in compiled] == []
