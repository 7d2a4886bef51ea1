"""validate: a Great Expectations suite over the snapshot's table, and its Data Docs.

Ingest refuses single rows; the suite judges the set: too few rows, skewed aspects or answers, blank images, copies,
leaks between the splits. It repeats the rules of rows too: they cost little and guard the later steps. Both outputs
depend on the snapshot and the bounds alone.
"""

import json
import math
import shutil
from collections.abc import Mapping
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from hardcase.config import ValidateConfig
from hardcase.data.images import MAX_PIXELS, MAX_RATIO, MAX_SIDE, MIN_SIDE
from hardcase.data.snapshot import FIELDS, SPLITS, Snapshot
from hardcase.data.source import MAX_REASONING
from hardcase.errors import InputError
from hardcase.report.validation import page
from hardcase.runtime.running import running
from hardcase.store.digest import canonical_json
from hardcase.store.store import write_atomically
from hardcase.task.sample import ASPECTS, LETTERS

if TYPE_CHECKING:
    import pandas as pd

ANSWERS: Final = ["none"] + ["".join(letters) for n in (1, 2, 3, 4) for letters in combinations(LETTERS, n)]
BLANK_STD: Final = 2.0  # of luminance, 0..255: a plain surface with the noise of its JPEG
EXAMPLES: Final = 5


def execute(plan: Mapping[str, Any], snapshot: str) -> str:
    """Validate the snapshot of an attestation, and return the sha256 of the step's own."""
    with running("validate", plan, {"snapshot": snapshot}) as work:
        config, folder = ValidateConfig.model_validate(work.config), work.outputs
        run(work.input("snapshot"), plan["store"], config, folder / "validation", folder / "validation_docs")
    return work.attestation


def run(snapshot: Path, store: str, config: ValidateConfig, result: Path, docs: Path) -> None:
    """Validate a snapshot, and raise an `InputError` if an expectation is not met; both outputs are always written.

    `result` is JSON: `{"success", "rows", "expectations": [{"type", "column", "success", "observed", "bounds"}]}`.
    `docs` is the folder of the Data Docs, with `index.html`.
    """
    opened = Snapshot.open(snapshot, store)
    table = opened.read_table()
    checked = _validate(flatten(table), config)
    expectations = [_expectation(result) for result in checked.results]
    failures = [
        _failure(expectation, result.expectation_config.meta["fix"])
        for expectation, result in zip(expectations, checked.results, strict=True)
        if not result.success
    ]
    content = {"success": not failures, "rows": table.num_rows, "expectations": expectations}
    write_atomically(result, canonical_json(content))
    shutil.rmtree(docs, ignore_errors=True)
    docs.mkdir(parents=True)
    write_atomically(docs / "index.html", page(checked, opened.id, table.num_rows, failures).encode())
    if failures:
        listed = "\n".join(f"- {failure}" for failure in failures)
        raise InputError(
            f"snapshot {opened.id[:12]}: {len(failures)} of {len(expectations)} expectations over its {table.num_rows} "
            f"rows failed:\n{listed}"
        )


def flatten(table: pa.Table) -> "pd.DataFrame":
    """Return a table with one row for each sample, and one column for each subject of an expectation.

    Shares are means of columns of 0 and 1. A `leaking_…` or `repeated_…` column names the fault, null without one. The
    input has the columns of `hardcase.data.snapshot.TABLE`.
    """
    rows: pd.DataFrame = table.drop_columns(["images", "answer"]).to_pandas()
    answers = [answer or [] for answer in table["answer"].to_pylist()]
    rows["answer"] = ["".join(sorted(answer)) or "none" for answer in answers]
    rows["answer"] = rows["answer"].where(pc.is_valid(table["answer"]).to_numpy(), None)
    rows["answer_size"] = [len(answer) for answer in answers]
    rows["reasoning_length"] = rows["reasoning"].str.len()
    for letter in LETTERS:
        rows[f"flaw_{letter}"] = [int(letter in answer) for answer in answers]
    rows["flaw_none"] = (rows["answer_size"] == 0).astype(int)
    for aspect in ASPECTS:
        rows[f"aspect_{aspect}"] = (rows["aspect"] == aspect).astype(int)
    for split in SPLITS:
        rows[f"rows_{split}"] = (rows["split"] == split).astype(int)

    lists = table["images"].combine_chunks()
    images = pa.Table.from_struct_array(pc.list_flatten(lists)).to_pandas()
    images["sample"] = pc.list_parent_indices(lists).to_numpy()
    images["position"] = images.groupby("sample").cumcount()
    sides = images[["width", "height"]]
    images["shortest"], images["longest"] = sides.min(axis=1), sides.max(axis=1)
    images["pixels"] = images["width"].astype("int64") * images["height"]
    images["ratio"] = images["longest"] / images["shortest"]
    images["blank"] = images["std"] < BLANK_STD
    of_sample = images.groupby("sample")
    rows["pictures"] = of_sample.size().reindex(rows.index, fill_value=0)
    rows["side_min"], rows["side_max"] = of_sample["shortest"].min(), of_sample["longest"].max()
    rows["pixels_max"], rows["ratio_max"] = of_sample["pixels"].max(), of_sample["ratio"].max()
    for statistic in ("mean", "std"):
        rows[f"luminance_{statistic}_min"] = of_sample[statistic].min()
        rows[f"luminance_{statistic}_max"] = of_sample[statistic].max()
    rows["blank_share"] = of_sample["blank"].mean()
    originals = images[images["position"] == 0].set_index("sample")
    rows["original_sha256"], rows["original_phash"] = originals["sha256"], originals["phash"]

    for name, column in (("group", "group"), ("original", "original_sha256")):
        leaks = rows.groupby(column)["split"].transform("nunique") > 1
        rows[f"leaking_{name}"] = rows[column].astype(object).where(leaks, None)
    candidates = images[images["position"] > 0]
    copied = candidates.loc[candidates.duplicated(["sample", "sha256"]), "sample"]
    rows["repeated_candidate"] = rows["id"].where(rows.index.isin(copied), None)
    rows["digests"] = of_sample["sha256"].agg(" ".join)
    rows["repeated_sample"] = rows["id"].where(rows.duplicated(["digests", "aspect"], keep=False), None)
    return rows.drop(columns="digests")


def _suite(config: ValidateConfig) -> list[Any]:
    from great_expectations import expectations

    gx: Any = expectations
    rows: dict[str, Any] = {"meta": {"fix": "fix these rows in the source and ingest again"}}

    def between(column: str, low: float | None, high: float | None) -> Any:
        return gx.ExpectColumnValuesToBeBetween(column=column, min_value=low, max_value=high, **rows)

    def share(column: str, kind: str) -> Any:
        low, high = f"min_{kind}_share", f"max_{kind}_share"
        bounds = {"min_value": getattr(config, low), "max_value": getattr(config, high)}
        meta = {"fix": f"balance the source, or set validate.{low} and validate.{high}"}
        return gx.ExpectColumnMeanToBeBetween(column=column, **bounds, meta=meta)

    def none_of(column: str, fix: str) -> Any:
        return gx.ExpectColumnValuesToBeNull(column=column, meta={"fix": fix})

    fields = [name for name, _ in FIELDS]
    named = "the first are named here"
    return [
        *(gx.ExpectColumnToExist(column=column, **rows) for column in fields),
        *(gx.ExpectColumnValuesToNotBeNull(column=column, **rows) for column in fields if column != "reasoning"),
        *(gx.ExpectColumnValuesToBeOfType(column=column, type_="str", **rows) for column in ("id", "group")),
        gx.ExpectColumnValuesToBeOfType(column="row", type_="int64", **rows),
        gx.ExpectColumnValueLengthsToBeBetween(column="id", min_value=1, max_value=256, **rows),
        gx.ExpectColumnValuesToBeInSet(column="aspect", value_set=list(ASPECTS), **rows),
        gx.ExpectColumnValuesToBeInSet(column="split", value_set=list(SPLITS), **rows),
        gx.ExpectColumnValuesToBeInSet(column="answer", value_set=ANSWERS, **rows),
        gx.ExpectColumnValuesToMatchRegex(column="original_sha256", regex="^[0-9a-f]{64}$", **rows),
        gx.ExpectColumnValuesToMatchRegex(column="original_phash", regex="^[0-9a-f]{16}$", **rows),
        gx.ExpectColumnValuesToBeUnique(column="id", **rows),
        between("row", 1, None),
        between("reasoning_length", None, MAX_REASONING),
        between("pictures", 5, 5),
        between("side_min", MIN_SIDE, None),
        between("side_max", None, MAX_SIDE),
        between("pixels_max", None, MAX_PIXELS),
        between("ratio_max", None, MAX_RATIO),
        *(between(f"luminance_{name}", 0, 255) for name in ("mean_min", "mean_max", "std_min", "std_max")),
        *(
            gx.ExpectColumnSumToBeBetween(
                column=f"rows_{split}",
                min_value=getattr(config, f"min_{split}_rows"),
                meta={"fix": f"hand in more {split} rows, or set validate.min_{split}_rows"},
            )
            for split in SPLITS
        ),
        *(share(f"aspect_{aspect}", "aspect") for aspect in ASPECTS),
        *(share(f"flaw_{letter}", "letter") for letter in LETTERS),
        share("flaw_none", "none"),
        gx.ExpectColumnMeanToBeBetween(
            column="blank_share",
            max_value=config.max_blank_share,
            meta={"fix": "replace blank images in the source, or set validate.max_blank_share"},
        ),
        none_of("leaking_group", f"give every row of a group one split in the source ({named})"),
        none_of("leaking_original", f"give rows of one original image one group and split in the source ({named})"),
        none_of("repeated_candidate", f"replace candidates that are one file twice in the source (ids: {named})"),
        none_of("repeated_sample", f"keep one of the rows with the same images and aspect (ids: {named})"),
    ]


def _validate(rows: "pd.DataFrame", config: ValidateConfig) -> Any:
    """Return the suite's result, its expectations in the order of the suite, its values plain."""
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.enable_analytics(False)
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    asset = context.data_sources.add_pandas("snapshot").add_dataframe_asset("samples")
    batch = asset.add_batch_definition_whole_dataframe("all").get_batch({"dataframe": rows})
    expectations = _suite(config)
    order = {(one.expectation_type, getattr(one, "column", None)): n for n, one in enumerate(expectations)}
    checked: Any = batch.validate(
        gx.ExpectationSuite(name="snapshot", expectations=expectations),
        result_format={"result_format": "SUMMARY", "partial_unexpected_count": EXAMPLES},
    )
    checked.results.sort(
        key=lambda result: order[result.expectation_config.type, result.expectation_config.kwargs.get("column")]
    )
    for result in checked.results:
        # The renderers of GX 1.24 stumble over the numbers of NumPy 2.
        result.result = json.loads(json.dumps(result.to_json_dict()["result"]))
    return checked


def _expectation(checked: Any) -> dict[str, Any]:
    config, result = checked.expectation_config, checked.result
    observed = result.get("observed_value")
    if "unexpected_count" in result:
        examples = ", ".join(dict.fromkeys(_shorten(str(value)) for value in result["partial_unexpected_list"]))
        observed = f"{result['unexpected_count']} of {result['element_count']} unexpected"
        observed += f": {examples}" if examples else ""
    elif isinstance(observed, float):
        observed = round(observed, 6) if math.isfinite(observed) else None
    bounds = {
        key: int(value) if isinstance(value, float) and value.is_integer() else value
        for key, value in config.kwargs.items()
        if key not in {"column", "batch_id"} and value is not None
    }
    return {
        "type": config.type,
        "column": config.kwargs.get("column"),
        "success": bool(checked.success),
        "observed": observed,
        "bounds": bounds or None,
    }


def _shorten(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"


def _failure(failed: dict[str, Any], fix: str) -> str:
    bounds = ", ".join(f"{key} {value}" for key, value in (failed["bounds"] or {}).items())
    asked = f" ({bounds})" if bounds else ""
    return f"{failed['column']}: {failed['type']}{asked}, observed {failed['observed']}; {fix}"
