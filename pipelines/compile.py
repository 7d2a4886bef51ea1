"""Compile the pipelines to `hardcase/compiled/`, or with `--check` compare them: `python -m pipelines.compile`."""

import sys
import tempfile
from pathlib import Path
from typing import Any, Final

from kfp.compiler import Compiler

from hardcase.compiled import FOLDER
from hardcase.config import PROFILES
from pipelines.evaluation import evaluation
from pipelines.retraining import retraining

PIPELINES: Final = {"retraining": retraining, "evaluation": evaluation}


def _explain_parameters(pipeline: Any) -> None:
    """Describe the parameters in a pipeline's description: Kubeflow's form shows no other text of ours."""
    spec = pipeline.pipeline_spec
    parameters = spec.root.input_definitions.parameters
    lines = [f"- **{name}**: {about.description}" for name, about in sorted(parameters.items())]  # shown as Markdown
    spec.pipeline_info.description = "\n".join([spec.pipeline_info.description, "", *lines])


def _offer_choices(pipeline: Any, parameter: str, choices: list[str]) -> None:
    """Offer choices for a parameter in Kubeflow's form, which its server then checks; the SDK cannot."""
    inputs = pipeline.pipeline_spec.root.input_definitions.parameters[parameter]
    for choice in choices:
        inputs.literals.add().string_value = choice


for _pipeline in PIPELINES.values():
    _explain_parameters(_pipeline)
_offer_choices(retraining, "profile", sorted(path.stem for path in PROFILES.glob("*.yaml")))


def compile_pipeline(name: str) -> str:
    """Return a pipeline's YAML."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{name}.yaml"
        Compiler().compile(PIPELINES[name], str(path))
        return path.read_text(encoding="utf-8")


def main(arguments: list[str]) -> str | None:
    """Write the committed YAML, or return what differs from it."""
    for name in PIPELINES:
        path, content = FOLDER / f"{name}.yaml", compile_pipeline(name)
        if "--check" not in arguments:
            path.write_text(content, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != content:
            return f"{path.name}: not what the pipeline's source compiles to; run `make compile`"
    return None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
