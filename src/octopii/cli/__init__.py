"""The `octopii` command: one file for each group of subcommands, put together in `app.py`."""

from octopii.cli.app import main

__all__ = ["main"]
