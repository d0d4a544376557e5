"""The command line: ``fedsim run scenario.yaml key=value``.

Heavy libraries are imported inside commands, so that ``--help`` answers at once. Exit codes:
0 done, 1 bug, 2 the user's file or option, 3 the run could not finish.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import click
import typer

if TYPE_CHECKING:
    from fedsim.errors import FedsimError
    from fedsim.progress import Reporter

app = typer.Typer(
    help="Simulate federated fine-tuning: accuracy against bytes, time and energy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    suggest_commands=False,  # click suggests already
)
new = typer.Typer(
    help="Write a working plug-in to start from.", no_args_is_help=True, suggest_commands=False
)
app.add_typer(new, name="new")

ScenarioArgument = Annotated[
    str, typer.Argument(help="A YAML file, or a shipped scenario by name (see `fedsim list`).")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Changes to the scenario, such as `strategy.server_momentum=0.5`."),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
Runs = Annotated[
    list[str], typer.Argument(help="Run folders, folders that contain some, or patterns.")
]


@app.command()
def run(
    scenario: ScenarioArgument,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Parent of run folders.")] = Path("runs"),
    json: Json = False,
) -> None:
    """Run a scenario and write a run folder with a report."""
    from fedsim import commands

    commands.run(scenario, overrides or [], out, partial(_reporter, json), json)


@app.command()
def resume(
    run: Annotated[Path, typer.Argument(help="The folder of a run that did not finish.")],
    json: Json = False,
) -> None:
    """Continue an interrupted run from its last checkpoint, to the same bits."""
    from fedsim import commands

    commands.resume(run, partial(_reporter, json), json)


@app.command()
def sweep(
    scenario: ScenarioArgument,
    overrides: Overrides = None,
    out: Annotated[Path, typer.Option(help="Parent of the folder `sweeps`.")] = Path("runs"),
    json: Json = False,
) -> None:
    """Run a scenario with all values of its section `sweep`; started again, it goes on."""
    from fedsim import commands

    commands.sweep(scenario, overrides or [], out, partial(_reporter, json), json)


@app.command()
def validate(scenario: ScenarioArgument, overrides: Overrides = None) -> None:
    """Check a scenario, its files, its split and its model, without training."""
    from fedsim import commands

    commands.validate(scenario, overrides or [])


@app.command()
def plan(scenario: ScenarioArgument, overrides: Overrides = None, json: Json = False) -> None:
    """Predict bytes, FLOPs, memory, virtual time, energy and wall time, from a short probe."""
    from fedsim import commands

    commands.plan(scenario, overrides or [], json)


@app.command("list")
def list_(
    kind: Annotated[str | None, typer.Argument(help="One kind only, such as `strategies`.")] = None,
    json: Json = False,
) -> None:
    """List what can be named in a scenario."""
    from fedsim import listing

    listing.print_list(kind, json)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="`fedavgm`, `peft:LORA`, `partitioner:dirichlet`...")],
) -> None:
    """Show what a plug-in, adapter, partitioner or scenario is; `schema` is for editors."""
    from fedsim import listing

    listing.show(name)


@app.command()
def compare(
    runs: Runs,
    json: Json = False,
    csv: Annotated[bool, typer.Option("--csv", help="CSV with exact numbers.")] = False,
) -> None:
    """Compare runs in a table: scores, bytes, time, energy, memory, differing options."""
    from fedsim import compare as comparing
    from fedsim.results import find_runs

    table = comparing.table(find_runs(runs))
    if json:
        print(comparing.to_json(table))
    elif csv:
        print(comparing.to_csv(table), end="")
    else:
        comparing.print_table(table)


@app.command()
def report(
    runs: Runs,
    output: Annotated[Path, typer.Option("--output", "-o", help="The page.")] = Path("report.html"),
) -> None:
    """Write one self-contained page about runs; it opens from disk without a network."""
    from fedsim.dashboards.page import write_page
    from fedsim.errors import OutputError
    from fedsim.results import find_runs

    if output.is_dir():
        raise OutputError("is a folder", where=f"{output}", hint="Name the page: -o report.html")
    write_page(find_runs(runs), output.resolve() if output.is_symlink() else output)
    print(output)


@app.command()
def dashboard(
    runs: Annotated[
        list[str] | None,
        typer.Argument(help="Run folders, folders that contain some, or patterns. [default: runs]"),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="On the loopback interface.")] = 8501,
    headless: Annotated[bool, typer.Option("--headless", help="Open no browser.")] = False,
) -> None:
    """Compare runs in a live app on this machine; runs in progress are followed."""
    from fedsim.dashboards import serve

    serve.serve(runs or ["runs"], port, headless)


@app.command()
def export(
    runs: Runs,
    to: Annotated[
        str,
        typer.Option(
            help="`parquet`, `tensorboard`, `wandb`, `mlflow` or `trackio`; with options: "
            "`{name: wandb, project: x}`."
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder for what is written.")] = None,
) -> None:
    """Write runs as Parquet, or send them to an experiment tracker."""
    from fedsim import exporting

    exporting.export(runs, to, out)


@app.command("convert-trace")
def convert_trace(
    source: Annotated[Path, typer.Argument(help="A pickle of FedScale: availability or capacity.")],
    target: Annotated[Path, typer.Argument(help="The JSON file to write.")],
) -> None:
    """Turn a pickled device trace into JSON, without running what is in the pickle."""
    from fedsim.devices import traces

    print(f"{target}: {traces.convert(source, target)} devices")


@new.command()
def strategy(
    name: Annotated[str, typer.Argument(help="A Python module name, such as `my_avg`.")],
) -> None:
    """Write a strategy of about 25 lines and a test for it into the current folder."""
    from fedsim import templates

    templates.write_strategy(name, Path())


def _reporter(json: bool, seed: int) -> Reporter:
    from rich.console import Console

    from fedsim import progress

    if json:
        return progress.JsonLines(seed)
    console = Console()
    return progress.Bars(console) if console.is_terminal else progress.Lines()


def main() -> None:
    """Entry point: run a command and turn what a user can cause into one paragraph.

    The command is invoked without Typer's own handling of errors, which has other exit codes. A bug
    ends in a traceback.
    """
    _quiet_libraries()
    sys.path.insert(0, str(Path.cwd()))
    from fedsim.errors import FedsimError

    try:
        with typer.main.get_command(app).make_context("fedsim", sys.argv[1:]) as context:
            context.command.invoke(context)
        sys.stdout.flush()
    except click.exceptions.Exit as done:  # --help
        sys.exit(done.exit_code)
    except click.exceptions.NoArgsIsHelpError:  # the help was printed
        sys.exit(2)
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "fedsim"
        _end(FedsimError(error.format_message(), hint=f"See `{command} --help`"), 2)
    except FedsimError as error:
        _end(error, error.exit_code)
    except KeyboardInterrupt:
        _end(FedsimError("interrupted", hint="Finished rounds are in the run folder"), 3)
    except BrokenPipeError:  # as in `fedsim list | head`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(3)
    except SystemExit as end:  # rich's own answer to that
        sys.exit(3 if isinstance(end.__context__, BrokenPipeError) else end.code)


def _end(error: FedsimError, exit_code: int) -> NoReturn:
    print(f"fedsim: {error}", file=sys.stderr, flush=True)
    launch = sys.modules.get("fedsim.engine.launch")
    if launch and launch.ends_unwanted():  # nothing has begun, so nobody need wait for seconds
        sys.stdout.flush()
        os._exit(exit_code)
    sys.exit(exit_code)


def _quiet_libraries() -> None:
    """No telemetry, no update checks, no surprise downloads by tokenizer threads."""
    for name, value in {
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)


if __name__ == "__main__":
    main()
