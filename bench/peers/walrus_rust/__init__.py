"""The Rust crate `walrus-rust`, through a small program of its own beside this file, built where cargo is there."""

import functools
import os
import shutil
import subprocess
from pathlib import Path

from bench import measure

NAME = "walrus-rust 0.2.0"

_home = Path(__file__).resolve().parent
_build_seconds = 600


@functools.cache
def program() -> Path | None:
    """The built harness; None where cargo is missing or can't build it."""
    cargo = shutil.which("cargo")
    if cargo is None:
        return None
    build = [cargo, "build", "--quiet", "--release", "--manifest-path", str(_home / "Cargo.toml")]
    try:
        subprocess.run(build, check=True, capture_output=True, timeout=_build_seconds)
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
        return None
    return _home / "target" / "release" / "walrus-peer"


def append_rate(*, threads: int, count: int, durable: bool, batched: bool = False, entry_bytes: int = 100) -> float:
    """Entries per second in a fresh process and folder; its own start-up is not counted."""
    path = program()
    assert path is not None, "ask program() first"
    with measure.scratch_folder() as folder:
        arguments = ["batch" if batched else "append", "each" if durable else "none"]
        numbers = [str(threads), str(count), str(entry_bytes)]
        environment = {**os.environ, "WALRUS_DATA_DIR": folder, "WALRUS_QUIET": "1"}
        answer = subprocess.run(
            [path, *arguments, *numbers], env=environment, check=True, capture_output=True, text=True
        )
    return float(answer.stdout.split()[-1])
