"""What all sections of a configuration are made of."""

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

# A source and settings are in every record of a run: a password or a signature in them would be published.
CREDENTIALS: Final = re.compile(r"://[^/?#\s]*@|(?<!\S)(?!procedural:)\S+://\S*\?")
SECRET: Final = re.compile(r"(.*_)?(token|password|secret|(api|access)_key)")


def refuse_credentials(source: str) -> str:
    """Return a source that names no user, password or signature; raise ValueError for another."""
    if CREDENTIALS.search(source):
        raise ValueError(
            "a user, a password or a query in a URI would be in every record; credentials come from the AWS chain"
        )
    return source


Attention = Literal["sdpa", "flex_attention", "flash_attention_2", "eager"]
BoardKind = Literal["tensorboard", "mlflow", "wandb", "none"]
EngineKind = Literal["transformers", "vllm"]
VllmDtype = Annotated[
    Literal["auto", "float32", "bfloat16", "float16"],
    Field(description="Type of vLLM's weights. `auto` is the saved one, with bfloat16 for float32."),
]
Share = Annotated[float, Field(ge=0, le=1)]
SourceUri = Annotated[str, AfterValidator(refuse_credentials)]
Count = Annotated[int, Field(ge=1)]
Threads = Annotated[int, Field(ge=1, le=1024)]
Seed = Annotated[int, Field(ge=0, lt=2**31)]  # each process adds its number, and NumPy takes less than 2**32
Resamples = Annotated[int, Field(ge=100, le=1_000_000)]


class Config(BaseModel):
    """A frozen section that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Destination(Config):
    """Where a training shows live metrics: a kind of board, and what the boards need of the run."""

    kind: BoardKind
    folder: Path
    tracking_uri: str
    run: str
