"""The command line: reads arguments, calls the functions behind, and turns errors into one message and a status.

Exit status: 0 done, 2 bad input, 3 the run failed, 130 interrupted. torch, ray and matplotlib are imported inside the
commands, so that ``simdist --help`` answers at once.
"""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, cast

import typer

from simdist import __version__
from simdist.errors import InputError, RunError, SimdistError

if TYPE_CHECKING:
    from simdist.scenario import Scenario

F = TypeVar("F", bound=Callable[..., None])

app = typer.Typer(
    name="simdist",
    help="A testbed for distributed training without a cluster: real training, counted bytes, simulated network time.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


#: what the options before the command's name say; set anew by every call
_options = {"debug": False}


def answers(command: F) -> F:
    """Turn what a command raises into one message on stderr and an exit status."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except (KeyboardInterrupt, Exception) as error:
            if isinstance(error, (typer.Exit, typer.Abort, typer.BadParameter)):
                raise
            raise typer.Exit(report_error(error)) from None

    return cast(F, wrapped)


def report_error(error: BaseException) -> int:
    """Print one message on stderr and return the exit status."""
    debug = _options["debug"]
    if debug and not isinstance(error, KeyboardInterrupt):
        traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        text = str(error) or "interrupted"
        typer.echo(f"{text[:1].upper()}{text[1:]}", err=True)
        return 130
    if isinstance(error, SimdistError):
        typer.echo(f"Error: {error}", err=True)
        return error.exit_status
    from pydantic import ValidationError

    if isinstance(error, ValidationError):
        from simdist.explaining import explain

        typer.echo(f"Error: {explain(error)}", err=True)
        return InputError.exit_status
    hint = "" if debug else " Run 'simdist --debug ...' to see where."
    typer.echo(f"Error: simdist itself failed: {type(error).__name__}: {error}.{hint}", err=True)
    return RunError.exit_status


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"simdist {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks (also: SIMDIST_DEBUG=1).")] = False,
) -> None:
    """Run, re-time and compare distributed training without a cluster."""
    _options["debug"] = debug or os.environ.get("SIMDIST_DEBUG", "") not in ("", "0")


SCENARIO = Annotated[
    str, typer.Argument(metavar="SCENARIO", help="A Python file with scenario(), a scenario.yaml, or a run folder.")
]


def _folder(text: str) -> Path:
    """Read the name of a folder; a URL would make a folder of a strange name."""
    from simdist.results.remote import is_url

    if is_url(text):
        raise typer.BadParameter(f"got {text!r}, a URL; expected a folder of this machine")
    return Path(text)


OUT = Annotated[Path | None, typer.Option("--out", metavar="DIR", parser=_folder, help="A new folder for the results.")]
OUT_OR_URL = Annotated[
    str | None,
    typer.Option("--out", metavar="DIR|URL", help="A new folder for the results, or s3://BUCKET/FOLDER etc."),
]
PARALLEL = Annotated[int | None, typer.Option("--parallel", min=1, metavar="N", help="At most N points at a time.")]
SET = Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key; may be repeated.")]
OVER = Annotated[
    list[str] | None, typer.Option("--over", metavar="KEY=V1,V2,...", help="Every one of these values; repeatable.")
]
ENGINE = Annotated[str | None, typer.Option("--engine", metavar="NAME", help="inline, stacked or ray.")]
RAY = Annotated[str | None, typer.Option("--ray-address", metavar="ADDR", help="Attach to this Ray cluster.")]
QUIET = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


def _overrides(changes: list[str] | None, engine: str | None) -> list[str]:
    return [*(changes or []), *([f"engine.name={engine}"] if engine else [])]


def _news(text: str) -> None:
    typer.echo(f"simdist: {text}", err=True)


def _uses_ray(scenario: Scenario, ray_address: str | None) -> None:
    if ray_address is not None and scenario.engine.name != "ray":
        raise InputError(
            f"--ray-address: got {ray_address!r} with engine {scenario.engine.name!r}; "
            f"expected it only with --engine ray"
        )


@app.command()
@answers
def run(
    scenario: SCENARIO,
    out: OUT_OR_URL = None,
    changes: SET = None,
    engine: ENGINE = None,
    ray_address: RAY = None,
    quiet: QUIET = False,
) -> None:
    """Train once: real values, counted bytes, simulated seconds."""
    from simdist.loading import load_scenario

    resolved = load_scenario(scenario, _overrides(changes, engine))
    _uses_ray(resolved, ray_address)
    from simdist import running
    from simdist.results.landing import landing

    with landing(out, "run", _news) as place:
        folder = running.run(
            resolved, out=place.folder, progress=not quiet, ray_address=ray_address, publish=place.publish
        )
    typer.echo(f"Run folder: {place.shown(folder)}")


@app.command()
@answers
def resume(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder or URL of a run that did not get to its end.")],
    changes: SET = None,
    engine: ENGINE = None,
    ray_address: RAY = None,
    quiet: QUIET = False,
) -> None:
    """Go on with a run from its last checkpoint, to the same bits as if it had never stopped."""
    from simdist import resuming
    from simdist.results.landing import fetched

    with fetched(run, _news, checkpoints=True) as place:
        went_on = resuming.resume(
            place.here,
            _overrides(changes, engine),
            progress=not quiet,
            ray_address=ray_address,
            publish=place.publish,
        )
    typer.echo(f"Run folder: {run}" if went_on else f"Finished before, nothing to do: {run}")


@app.command()
@answers
def sweep(
    scenario: SCENARIO,
    over: OVER = None,
    out: OUT_OR_URL = None,
    changes: SET = None,
    engine: ENGINE = None,
    parallel: PARALLEL = None,
    ray_address: RAY = None,
    quiet: QUIET = False,
) -> None:
    """Run every combination of some values; finished points are skipped, so a sweep can be taken up again.

    Points run one after the other, or side by side: with --parallel on this machine, with --ray-address on a cluster.
    """
    from simdist.loading import load, parse_over
    from simdist.scenario import Scenario, Sweep

    found = load(scenario, _overrides(changes, engine), prefer="sweep")
    wanted = Sweep(base=found, name=f"{found.name}-sweep") if isinstance(found, Scenario) else found
    wanted = wanted.model_copy(update={"over": {**wanted.over, **parse_over(over or [])}})
    if not wanted.over:
        raise InputError(f"got the scenario {scenario!r} without --over; expected --over KEY=V1,V2,... or a sweep()")
    from simdist.sweep_command import sweep_command

    sweep_command(wanted, out, parallel=parallel, ray_address=ray_address, progress=not quiet)


@app.command()
@answers
def retime(
    run: Annotated[
        str, typer.Argument(metavar="RUN", help="Folder or URL of a lock-step run, or of a sweep, for all in it.")
    ],
    changes: SET = None,
    over: OVER = None,
    out: OUT = None,
) -> None:
    """Price a recorded run under other networks, without training."""
    from simdist.results.landing import fetched
    from simdist.retiming import retime_command

    with fetched(run, _news) as place:
        retime_command(place.here, changes or [], over or [], out, place.shown)


@app.command()
@answers
def plan(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="A model of `simdist list models`, a scenario, or FILE.py:FUNCTION for an nn.Module."
        ),
    ],
    over: OVER = None,
    out: OUT = None,
    changes: SET = None,
) -> None:
    """Bytes, simulated step time and memory of a model that may fit no machine, from shapes alone."""
    from simdist.plan_command import plan_command

    plan_command(model, changes or [], over or [], out)


@app.command()
@answers
def report(
    paths: Annotated[list[str], typer.Argument(metavar="PATH...", help="Folders or URLs of runs or sweeps.")],
    out: OUT = None,
    changes: SET = None,
) -> None:
    """Draw figures and one self-contained HTML page from run or sweep folders; say which bandwidth the runs need.

    With --set network.KEY=VALUE, overlap.KEY=VALUE or compute.KEY=VALUE the table of bandwidths is for that.
    """
    from simdist.results.landing import all_fetched
    from simdist.utilisation import report_command

    with all_fetched(paths, out, _news) as (folders, shown):
        report_command(folders, out, changes or [], shown)


@app.command()
@answers
def check(scenario: SCENARIO, changes: SET = None, engine: ENGINE = None) -> None:
    """Validate a scenario and print it with every default filled in; nothing is trained."""
    from simdist import listing
    from simdist.loading import load
    from simdist.scenario import Sweep

    found = load(scenario, _overrides(changes, engine))
    if isinstance(found, Sweep):
        typer.echo(listing.check_sweep(found))
    else:
        typer.echo(listing.check_scenario(found))


@app.command("list")
@answers
def list_things(
    what: Annotated[
        str | None,
        typer.Argument(metavar="[WHAT]", help="optimizers, codecs, topologies, workloads, schedules or devices."),
    ] = None,
) -> None:
    """Show what there is, with one line each."""
    from rich.console import Console

    from simdist.listing import tables

    for table in tables(what):
        Console().print(table)


def main() -> None:
    """Entry point of the ``simdist`` command."""
    try:
        app()
        status: Any = 0
    except KeyboardInterrupt as error:
        status = report_error(error)
    except SystemExit as end:
        status = end.code
    if "ray" in sys.modules:
        # Ray's threads can crash the interpreter's clean-up when they are interrupted while starting; all files are
        # closed and Ray is shut down by now, so there is nothing left to clean up
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else int(status is not None))
    sys.exit(status)


if __name__ == "__main__":
    main()
