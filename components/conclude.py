"""The KFP component of conclude, the exit handler."""

from kfp import dsl
from kfp.dsl import HTML, Markdown, Output, PipelineTaskFinalStatus

from hardcase.runtime.running import LIGHT_IMAGE


@dsl.component(base_image=LIGHT_IMAGE, install_kfp_package=False)
def conclude(
    profile: str,
    source: str,
    seed: int,
    steps: list[str],
    status: PipelineTaskFinalStatus,
    report: Output[HTML],
    summary: Output[Markdown],
) -> None:
    """Write the report and the record of the run however it ended, and notify people of a run that failed."""
    import os
    from pathlib import Path

    from hardcase.report.conclusion import conclude as conclude_run
    from hardcase.report.notify import notify
    from hardcase.report.summary import show_summary
    from hardcase.runtime.materials import keyring
    from hardcase.runtime.running import namespace_of, noted, place_of
    from hardcase.store.store import open_store

    with noted("conclude"):
        store, tracking_uri, _ = place_of()
        run, ui = os.environ["HARDCASE_RUN"], os.environ.get("HARDCASE_UI", "").rstrip("/")
        ended = conclude_run(
            open_store(store),
            keyring(),
            run,
            status.state,
            steps,
            {"profile": profile, "source": source, "seed": int(seed)},
            Path(report.path),
            f"{ui}/#/runs/details/{run}" if ui else "",
            namespace_of(),
        )
        Path(summary.path).write_text(ended.markdown, encoding="utf-8")
        show_summary(ended.summary, tracking_uri)
        if ended.state == "FAILED":
            notify(ended, os.environ)
