"""`cryoscale run`: do what is due, and nothing twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click


def execution_options(command: Any) -> Any:
    """Add the options that say where and how, shared by `run` and the verbs of single stages."""
    for option in (
        click.option("--executor", type=click.Choice(["auto", "serial", "dask", "ray"]), default="auto",
                     show_default=True, help="auto: Dask for CPU stages, Ray for model stages."),
        click.option("--dask", metavar="ADDRESS", help="A running Dask scheduler, tcp://… or tls://…"),
        click.option("--ray", metavar="ADDRESS", help="A running Ray cluster."),
        click.option("--secrets", metavar="FOLDER", envvar="CRYOSCALE_SECRETS",
                     help="Certificates and token of those clusters (`cryoscale engine secrets`)."),
        click.option("--metrics", metavar="[HOST:]PORT",
                     help="Let Prometheus ask how the run goes; loopback without a host."),
        click.option("--wait-for-driver", "wait_for_driver_s", metavar="SECONDS", type=float, default=0.0,
                     help="Wait so long for another driver of the run to end."),
        click.option("--retry-quarantined", is_flag=True, help="Try given-up blocks again."),
        click.option("--quiet", is_flag=True, help="No progress display."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.command("run")
@click.argument("run")
@execution_options
@click.option("--until", metavar="STAGE", help="Stop after this stage.")
@click.option("--accept-suggestions", is_flag=True, help="Take the suggested selection of clusters.")
@click.option("--refit", multiple=True, metavar="FIT", help="Renew a fit: train_encoder, cluster, …")
@click.option("--dry-run", is_flag=True, help="Print blocks, memory and disk; do nothing.")
@click.option("--watch", metavar="FOLDER", help="Take files as they arrive in a folder, until interrupted.")
@click.option("--watch-once", is_flag=True, hidden=True, help="With --watch: end when nothing is due.")
def run_command(run: str, **words: Any) -> int:
    """Take every tomogram of RUN through every stage that is due."""
    if words.pop("dry_run"):
        from cryoscale.pipeline.engines import EngineChoice
        from cryoscale.pipeline.preview import preview

        choice = EngineChoice(words["executor"], words["dask"], words["ray"])
        click.echo(preview(run, until=words["until"], choice=choice))
        return 0
    watch, once = words.pop("watch"), words.pop("watch_once")
    if watch:
        from cryoscale.pipeline.watch import watch_folder

        return watch_folder(run, watch, lambda: _watched(run, words), once=once)
    return drive(run, **words)


def _watched(run: str, words: dict[str, Any]) -> int:
    """Drive once more; what is to be renewed is renewed by the first drive alone, not for each new file."""
    refit, words["refit"] = words["refit"], ()
    return drive(run, **{**words, "refit": refit})


def drive(
    place: str,
    *,
    quiet: bool = False,
    until: str | None = None,
    accept_suggestions: bool = False,
    refit: tuple[str, ...] = (),
    executor: str = "auto",
    dask: str | None = None,
    ray: str | None = None,
    secrets: str | None = None,
    metrics: str | None = None,
    wait_for_driver_s: float = 0.0,
    retry_quarantined: bool = False,
) -> int:
    """Run the pipeline with a progress display and say how it ended."""
    import contextlib

    from cryoscale.data.run import Run
    from cryoscale.pipeline.driver import Options, run_pipeline
    from cryoscale.runtime.progress import ProgressDisplay

    run = Run.open(place)
    options = Options(
        executor=executor, dask=dask, ray=ray, until=until, retry_quarantined=retry_quarantined,
        accept_suggestions=accept_suggestions, refit=refit, secrets=Path(secrets) if secrets else None,
        metrics=metrics, wait_for_driver_s=wait_for_driver_s,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:
        listeners = () if quiet else (stack.enter_context(ProgressDisplay()),)
        result = run_pipeline(run, options, listeners=listeners)
    for failure in result.failures:
        where = " ".join(str(failure[key]) for key in ("stage", "tomogram", "block") if failure[key] != "")
        click.echo(f"failed: {where}: {failure['reason']}", err=True)
    if result.failures:
        click.echo(f"{len(result.failures)} failures, listed in {run.folder.path('failures.csv')}", err=True)
    if result.problem:
        click.echo(f"cryoscale: {result.problem}", err=True)
    elif result.waiting:
        click.echo(_what_next(place))
    elif not result.failures and until is None:
        click.echo(f"all done. Next: cryoscale report {place}")
    return result.exit_code


def _what_next(place: str) -> str:
    return (
        f"clusters are ready to be chosen. Look at them: cryoscale review {place}\n"
        f"(it makes the page, and clusters/selection.toml to be edited), then give: cryoscale run {place}\n"
        f"Or take the suggestion: cryoscale run {place} --accept-suggestions"
    )
