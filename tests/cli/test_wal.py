"""`octopii wal` through the real executable: what it shows, that it touches nothing, and how it reports damage."""

import base64
import hashlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from octopii.walrus import SyncEach, Walrus

OCTOPII = Path(sys.executable).with_name("octopii")
LARGE = bytes(range(256)) * 1000  # spans blocks
STEERING = b"\x1b[31mred\x07"


def octopii(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command and wait for it."""
    command = [str(OCTOPII), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def json_lines(text: str) -> list[dict[str, object]]:
    """Each line as an object."""
    return [json.loads(line) for line in text.splitlines()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A closed log: single, batched, spanning, trimmed and truncated entries, a cursor, an awkward topic name."""
    path = tmp_path / "log"
    with Walrus(str(path), fsync_schedule=SyncEach()) as log:
        log.append_for_topic("orders", b"3 apples")
        log.batch_append_for_topic("orders", [b"1 pear", b"7 plums", b"wrong"])
        log.truncate_from("orders", 3)
        log.append_for_topic("orders", STEERING)
        log.read_next("orders", True)
        for number in range(5):
            log.append_for_topic("large\n", b"%d" % number + LARGE)
        log.trim("large\n", 2)
        log.commit("large\n", 3, cursor="report")
    return path


def contents(path: Path) -> dict[str, str]:
    """A digest of every file, and when it was changed last."""
    return {
        str(file): f"{hashlib.sha256(file.read_bytes()).hexdigest()} {file.stat().st_mtime_ns}"
        for file in sorted(path.rglob("*"))
        if file.is_file()
    }


def damage(path: Path, needle: bytes) -> tuple[Path, int]:
    """Flip a bit of the first place that holds `needle`; returns the file and the position of `needle`."""
    for file in sorted(path.rglob("*")):
        data = bytearray(file.read_bytes())
        position = data.find(needle)
        if position >= 0:
            data[position] ^= 1
            file.write_bytes(data)
            return file, position
    raise AssertionError("the log does not hold what was to be damaged")


def test_topics_lists_offsets_and_cursors(folder: Path) -> None:
    """`topics --json` gives each topic's offsets and read positions as the log itself does."""
    ran = octopii("wal", "topics", folder, "--json")
    assert ran.returncode == 0, ran.stderr
    topics = {line["topic"]: line for line in json_lines(ran.stdout)}
    assert topics.keys() == {"orders", "large\n"}
    assert (topics["orders"]["first_offset"], topics["orders"]["next_offset"]) == (0, 4)
    assert (topics["large\n"]["first_offset"], topics["large\n"]["next_offset"]) == (2, 5)
    cursors = topics["large\n"]["cursors"]
    assert isinstance(cursors, dict)
    assert cursors["report"] == 3


def test_topics_for_people_is_one_line_for_each(folder: Path) -> None:
    """Without `--json` there is a heading and a line for each topic, its name made harmless."""
    ran = octopii("wal", "topics", folder)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert len(lines) == 3
    assert any(line.startswith("large\\n") for line in lines)


def test_dump_as_json_is_every_entry(folder: Path) -> None:
    """`dump --json` has each live entry once, in order, byte for byte; no trimmed or truncated one."""
    ran = octopii("wal", "dump", folder, "--json")
    assert ran.returncode == 0, ran.stderr
    entries = {
        topic: [
            (line["offset"], base64.b64decode(str(line["data"])))
            for line in json_lines(ran.stdout)
            if line["topic"] == topic
        ]
        for topic in ("orders", "large\n")
    }
    assert entries["orders"] == list(enumerate([b"3 apples", b"1 pear", b"7 plums", STEERING]))
    assert entries["large\n"] == [(number, b"%d" % number + LARGE) for number in range(2, 5)]


def test_dump_for_people_escapes_what_would_steer_a_terminal(folder: Path) -> None:
    """Control characters of an entry are shown, never sent; a long entry is shown by its beginning and its length."""
    ran = octopii("wal", "dump", folder)
    assert ran.returncode == 0, ran.stderr
    assert "\x1b" not in ran.stdout
    assert "\\x1b[31mred\\x07" in ran.stdout
    assert "(256,001 bytes)" in ran.stdout
    assert len(ran.stdout.splitlines()) == 7


def test_dump_takes_a_part(folder: Path) -> None:
    """`--topic`, `--from` and `--limit` choose what is shown."""
    ran = octopii("wal", "dump", folder, "--topic", "orders", "--from", 1, "--limit", 2)
    assert ran.stdout == "orders  1  1 pear\norders  2  7 plums\n"


def test_tail_shows_the_last_entries(folder: Path) -> None:
    """`tail -n` shows that many entries of each topic that was asked for."""
    ran = octopii("wal", "tail", folder, "--topic", "orders", "-n", 2)
    assert ran.stdout == "orders  2  7 plums\norders  3  \\x1b[31mred\\x07\n"


@pytest.mark.parametrize("command", ["topics", "dump", "verify", "tail"])
def test_nothing_is_written(folder: Path, command: str) -> None:
    """No file of the log changes, appears or goes by looking at it."""
    before = contents(folder)
    assert octopii("wal", command, folder).returncode == 0
    assert contents(folder) == before


@pytest.mark.parametrize("command", ["topics", "dump", "verify", "tail"])
def test_the_owner_may_be_running(folder: Path, command: str) -> None:
    """The log's lock is not taken, what was acknowledged is seen, and the owner goes on as before."""
    with Walrus(str(folder), fsync_schedule=SyncEach()) as log:
        log.append_for_topic("fresh", b"just now")
        ran = octopii("wal", command, folder)
        assert ran.returncode == 0, ran.stderr
        if command != "verify":
            assert "fresh" in ran.stdout
        assert log.append_for_topic("fresh", b"and again") == 1


def test_a_log_whose_owner_was_killed_can_be_read(tmp_path: Path) -> None:
    """After SIGKILL, before anybody opens the log again, every acknowledged entry is shown and nothing is mended."""
    path = tmp_path / "log"
    program = (
        "import os, signal, sys; from octopii.walrus import Walrus; log = Walrus(sys.argv[1])\n"
        "for number in range(10): log.append_for_topic('t', b'%d' % number)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=False, timeout=60)
    before = contents(path)
    ran = octopii("wal", "dump", path)
    assert ran.stdout == "".join(f"t  {number}  {number}\n" for number in range(10))
    assert octopii("wal", "verify", path).returncode == 0
    assert contents(path) == before


def test_verify_says_that_a_log_is_sound(folder: Path) -> None:
    """A sound log gives status 0 and its size, in JSON as well."""
    ran = octopii("wal", "verify", folder)
    assert (ran.returncode, ran.stdout.startswith("sound: 2 topics, 7 entries")) == (0, True), ran.stderr
    assert json_lines(octopii("wal", "verify", folder, "--json").stdout)[-1]["sound"] is True


def test_verify_names_the_place_of_damage(folder: Path) -> None:
    """One flipped bit in a durable entry: status 1, and file, position and topic on standard error."""
    file, position = damage(folder, b"7 plums")
    ran = octopii("wal", "verify", folder)
    assert ran.returncode == 1
    assert ran.stderr.startswith("damaged: ")
    assert str(file) in ran.stderr
    assert "orders" in ran.stderr
    (line,) = [line for line in json_lines(octopii("wal", "verify", folder, "--json").stdout) if "problem" in line]
    named = line["position"]
    assert isinstance(named, int)
    assert named <= position < named + 512  # the fragment's beginning
    assert (line["path"], line["topic"]) == (str(file), "orders")


def test_dump_ends_at_damage(folder: Path) -> None:
    """`dump` shows no wrong entry: it ends with status 1 and the place."""
    damage(folder, b"7 plums")
    ran = octopii("wal", "dump", folder, "--topic", "orders")
    assert ran.returncode == 1
    assert ran.stderr.startswith("damaged: ")
    assert "plums" not in ran.stdout


@pytest.mark.parametrize("command", ["topics", "dump", "verify", "tail"])
def test_a_folder_that_is_not_there_is_one_line(tmp_path: Path, command: str) -> None:
    """A wrong path is status 2 and one line that names it, no traceback."""
    ran = octopii("wal", command, tmp_path / "nowhere")
    assert ran.returncode == 2
    assert ran.stderr.splitlines() == [f"octopii: there is no folder {tmp_path / 'nowhere'}"]


@pytest.mark.parametrize("command", ["topics", "dump", "verify", "tail"])
def test_a_folder_that_is_no_log_is_one_line(tmp_path: Path, command: str) -> None:
    """A folder with something else in it is refused in one line, and left alone."""
    (tmp_path / "letter.txt").write_text("hello")
    ran = octopii("wal", command, tmp_path)
    assert ran.returncode in (1, 2)
    assert len(ran.stderr.splitlines()) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["letter.txt"]


def test_an_unknown_topic_is_named(folder: Path) -> None:
    """A topic that the log does not have is status 2, with the ones that it has."""
    ran = octopii("wal", "dump", folder, "--topic", "order")
    assert ran.returncode == 2
    assert "orders" in ran.stderr


def test_a_reader_that_has_seen_enough_is_no_error(folder: Path) -> None:
    """`octopii wal dump LOG | head -1` ends quietly."""
    with subprocess.Popen(
        [OCTOPII, "wal", "dump", folder, "--full"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as ran:
        assert ran.stdout is not None
        assert ran.stderr is not None
        ran.stdout.close()
        assert ran.stderr.read() == b""


@pytest.fixture
def following(folder: Path) -> Iterator["subprocess.Popen[str]"]:
    """A `tail -f` of the log, running."""
    process = subprocess.Popen(
        [OCTOPII, "wal", "tail", folder, "-f", "-n", "1", "-t", "orders"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def test_tail_follows_a_running_owner(folder: Path, following: "subprocess.Popen[str]") -> None:
    """`tail -f` shows entries as the owner appends them, each once, and ends on Ctrl-C without a traceback."""
    assert following.stdout is not None
    assert following.stdout.readline() == "orders  3  \\x1b[31mred\\x07\n"
    with Walrus(str(folder), fsync_schedule=SyncEach()) as log:
        for number in range(3):
            log.append_for_topic("orders", b"new %d" % number)
            assert following.stdout.readline() == f"orders  {4 + number}  new {number}\n"
    following.send_signal(signal.SIGINT)
    _, errors = following.communicate(timeout=30)
    assert (following.returncode, errors) == (130, "")


def test_progress_is_shown_on_a_terminal(folder: Path) -> None:
    """While standard error is a terminal, `verify` draws a bar there; standard output stays the answer alone."""
    controller, terminal = pty.openpty()
    ran = subprocess.Popen(
        [OCTOPII, "wal", "verify", folder],
        stdout=subprocess.PIPE,
        stderr=terminal,
        env={**os.environ, "TERM": "xterm"},
    )
    os.close(terminal)
    drawn = b""
    while select.select([controller], [], [], 30)[0]:
        try:
            drawn += os.read(controller, 1 << 16)
        except OSError:  # the terminal's other side is closed
            break
    answer, _ = ran.communicate(timeout=30)
    os.close(controller)
    assert answer.startswith(b"sound: ")
    assert b"verifying" in drawn
