"""All subcommands put together, and how the program ends.

Exit status: 0 when all went well; 1 when the command found something wrong, such as damage in a log; 2 when it could
not do its work, with one line on standard error that says why. Standard output carries answers alone.
"""

import sys

import typer

from octopii.cli import demo, wal
from octopii.errors import OctopiiError

_exit_cannot = 2
_exit_interrupted = 130

app = typer.Typer(
    name="octopii",
    help="Replicate your own deterministic state machine over a cluster, on a durable write-ahead log.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(wal.app, name="wal")
app.command("demo")(demo.demo)


@app.callback()
def _root() -> None:
    """Hold the subcommands together, also while there are few."""


def main() -> None:
    """Run the command line; the console script `octopii`. Errors that a user can meet are one line, no traceback."""
    try:
        app()
    except (OctopiiError, OSError) as error:
        if isinstance(error, BrokenPipeError):  # the reader, `head` say, has seen enough
            sys.stderr.close()
            sys.exit(0)
        print(f"octopii: {error}", file=sys.stderr)
        sys.exit(_exit_cannot)
    except KeyboardInterrupt:
        sys.exit(_exit_interrupted)
