"""docs/reference/api.md names the public Python API: each name exists, and its docstring is complete."""

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import hardcase

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "reference" / "api.md").read_text(encoding="utf-8")
NAMES = re.findall(r"^\| `(hardcase\.[\w.]+)` \|", PAGE, re.MULTILINE)


def resolve(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    return getattr(import_module(module), attribute)


@pytest.mark.parametrize("name", NAMES)
def test_public_name_imports_and_documents_its_parameters_and_result(name: str) -> None:
    value = resolve(name)
    if not callable(value):
        assert isinstance(value, str)
        return
    text = inspect.getdoc(value) or ""
    assert text
    if not inspect.isfunction(value):
        return
    signature = inspect.signature(value)
    if len(signature.parameters) > 2:
        undocumented = [parameter for parameter in signature.parameters if f"{parameter}: " not in text]
        assert undocumented == []
        assert "Args:" in text
    if signature.return_annotation not in (None, "None"):
        assert re.search(r"\bReturns?\b|^(Open|Read|Audit|Compare|Write)\b", text), "it does not say what it returns"


def test_page_names_the_names_that_are_promised() -> None:
    promised = {
        "hardcase.task.answer.parse_answer",
        "hardcase.task.reward.dpa_reward",
        "hardcase.model.trainer.HCMGRPOTrainer",
    }
    assert promised <= set(NAMES)
    assert len(NAMES) == len(set(NAMES)) > 20
    assert (Path(hardcase.__file__).parent / "py.typed").is_file()


def test_examples_import_what_exists() -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(blocks) == 2
    for block in blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    assert hasattr(import_module(str(node.module)), alias.name), (node.module, alias.name)
