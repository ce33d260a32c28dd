"""All subcommands put together, and how the program ends.

Standard output carries answers alone; what went wrong is one line on standard error. `exits` has the exit codes.
"""

import sys
from typing import Annotated

import typer

from octopii.cli import calls, certs, demo, member, serve, sim, snapshot, status, wal, wal_demo
from octopii.cli.exits import EXIT_INTERRUPTED, EXIT_USAGE
from octopii.errors import OctopiiError
from octopii.version import VERSION

app = typer.Typer(
    name="octopii",
    help="Replicate your own deterministic state machine over a cluster.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.command("serve")(serve.serve)
app.command("status")(status.status)
app.command("propose")(calls.propose)
app.command("query")(calls.query)
app.command("compact")(calls.compact)
app.command("transfer-leader")(calls.transfer_leader)
app.add_typer(member.member, name="member")
app.add_typer(snapshot.snapshot, name="snapshot")
app.add_typer(certs.certs, name="certs")
app.command("sim")(sim.sim)
wal.app.command("demo")(wal_demo.demo)
app.add_typer(wal.app, name="wal")


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"octopii {VERSION}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Hold the subcommands together."""


def main() -> None:
    """Run the command line; the console script `octopii`. Errors that a user can meet are one line, no traceback."""
    try:
        app()
    except (OctopiiError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader, `head` say, has seen enough
            sys.stderr.close()
            sys.exit(0)
        print(f"octopii: {error}", file=sys.stderr)
        sys.exit(EXIT_USAGE)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
