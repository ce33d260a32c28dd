"""What a leader knows of one member: the window of appends, and the three states of sending."""

from __future__ import annotations

from collections import deque

from hypothesis import given
from hypothesis import strategies as st

from octopii.raft.progress import Inflights, Progress, ProgressState

NO_LIMIT = (1 << 63) - 1


def progress(*, match: int = 0, next_index: int = 1, max_messages: int = 4, max_bytes: int = NO_LIMIT) -> Progress:
    """A member in PROBE."""
    inflights = Inflights(max_messages=max_messages, max_bytes=max_bytes)
    return Progress(match=match, next_index=next_index, is_learner=False, inflights=inflights)


def replicating(*, match: int = 5, max_messages: int = 4, max_bytes: int = NO_LIMIT) -> Progress:
    """A member that is being streamed to."""
    member = progress(match=match, next_index=match + 1, max_messages=max_messages, max_bytes=max_bytes)
    member.become_replicate()
    return member


# --- the window


@given(
    st.integers(1, 5),
    st.integers(1, 300),
    st.lists(st.one_of(st.integers(0, 120), st.integers(-6, -1)), max_size=40),
)
def test_window_counts_what_is_under_way(max_messages: int, max_bytes: int, acts: list[int]) -> None:
    """The window holds exactly what was sent and not answered, in messages and bytes, against a plain list."""
    window = Inflights(max_messages=max_messages, max_bytes=max_bytes)
    model: deque[tuple[int, int]] = deque()
    last = 0
    for act in acts:
        if act >= 0 and not window.full:
            last += 2
            window.add(last, act)
            model.append((last, act))
        elif act < 0 and model:
            answered = model[0][0] - act - 2  # the first message, some of them, or between two
            window.free_to(answered)
            model = deque(sent for sent in model if sent[0] > answered)
        assert len(window) == len(model)
        assert window.bytes == sum(size for _, size in model)
        assert window.full is (len(model) >= max_messages or window.bytes >= max_bytes)
    window.clear()
    assert (len(window), window.bytes, window.full) == (0, 0, False)


def test_window_takes_one_message_larger_than_its_bytes() -> None:
    """A limit on bytes never stops all progress: one message of any size may be under way."""
    window = Inflights(max_messages=10, max_bytes=100)
    window.add(7, 5000)
    assert window.full
    window.free_to(7)
    assert not window.full


# --- probing


def test_probe_waits_for_the_answer_to_its_message() -> None:
    """In PROBE one message with entries goes out, then nothing before an answer."""
    member = progress(next_index=6)
    assert not member.is_paused
    member.sent(3, 30)
    assert member.is_paused
    assert member.next == 6, "what is sent in PROBE is a guess, and sent again"


def test_rejection_moves_a_probe_back_to_the_hint() -> None:
    """A rejection sends the next probe behind the hint, at least one entry further back, never below the match."""
    member = progress(match=2, next_index=10)
    member.sent(1, 1)
    assert member.maybe_decrease(9, 5)
    assert (member.next, member.is_paused) == (6, False)
    assert member.maybe_decrease(5, 100), "a hint beyond what was rejected is no progress"
    assert member.next == 5
    assert member.maybe_decrease(4, 0)
    assert member.next == 3, "what matches is never probed again"


def test_stale_rejection_of_a_probe_changes_nothing() -> None:
    """A rejection of something other than the last probe is an old one."""
    member = progress(match=0, next_index=10)
    member.sent(1, 1)
    assert not member.maybe_decrease(7, 3)
    assert (member.next, member.is_paused) == (10, True)


# --- streaming


def test_streaming_runs_ahead_of_answers() -> None:
    """In REPLICATE `next` moves on with each message, up to the window."""
    member = replicating(match=5, max_messages=2)
    member.sent(3, 30)
    assert (member.next, member.is_paused) == (9, False)
    member.sent(1, 10)
    assert (member.next, member.is_paused) == (10, True)
    member.inflights.free_to(8)
    assert member.maybe_update(8)
    assert not member.is_paused


def test_empty_append_with_a_full_window_pauses_again() -> None:
    """After a sign of life one empty append may go out although the window is full; then the flow stops again."""
    member = replicating(match=5, max_messages=1)
    member.sent(1, 1)
    member.paused = False
    member.sent(0, 0)
    assert member.is_paused
    assert len(member.inflights) == 1


def test_rejection_while_streaming_goes_back_to_the_match() -> None:
    """Entries under way were lost: probing begins behind what is known to match."""
    member = replicating(match=5)
    member.sent(4, 40)
    assert member.maybe_decrease(7, 6)
    assert member.next == 6
    member.become_probe()
    assert (member.next, len(member.inflights), member.is_paused) == (6, 0, False)


def test_stale_rejection_while_streaming_changes_nothing() -> None:
    """A rejection at or below the match was overtaken by the answer that moved it (bug class: stale reject)."""
    member = replicating(match=5)
    member.sent(4, 40)
    for rejected in (5, 3, 0):
        assert not member.maybe_decrease(rejected, 2)
    assert (member.match, member.next) == (5, 10)


def test_stale_acknowledgement_moves_nothing_back() -> None:
    """An acknowledgement at or below the match tells nothing new."""
    member = replicating(match=5)
    member.sent(4, 40)
    assert not member.maybe_update(5)
    assert not member.maybe_update(3)
    assert (member.match, member.next) == (5, 10)


# --- snapshots


def test_snapshot_stops_everything_else() -> None:
    """While a snapshot is on its way nothing is sent, whatever arrives."""
    member = progress(match=3, next_index=4)
    member.become_snapshot(50)
    assert (member.state, member.pending_snapshot, member.next) == (ProgressState.SNAPSHOT, 50, 51)
    member.paused = False
    assert member.is_paused
    assert not member.maybe_decrease(50, 3), "nothing is being probed"


def test_probing_goes_on_behind_a_snapshot() -> None:
    """After a snapshot was reported sent the next probe is behind its end."""
    member = progress(match=3, next_index=4)
    member.become_snapshot(50)
    member.become_probe()
    assert (member.state, member.next, member.pending_snapshot) == (ProgressState.PROBE, 51, 0)


def test_probing_goes_on_behind_the_match_after_a_failed_snapshot() -> None:
    """After a snapshot failed the probe starts again from what is known."""
    member = progress(match=3, next_index=4)
    member.become_snapshot(50)
    member.pending_snapshot = 0
    member.become_probe()
    assert member.next == 4


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("ack"), st.integers(0, 40)),
            st.tuples(st.just("reject"), st.integers(0, 40)),
            st.tuples(st.just("send"), st.integers(0, 5)),
            st.tuples(st.sampled_from(["probe", "replicate", "alive"]), st.just(0)),
            st.tuples(st.just("snapshot"), st.integers(0, 40)),
        ),
        max_size=60,
    )
)
def test_match_stays_below_next_and_never_falls(acts: list[tuple[str, int]]) -> None:
    """Whatever happens, match < next, and match only grows."""
    member = progress(next_index=8, max_messages=2)
    for act, number in acts:
        before = member.match
        if act == "ack" and number < member.next:  # nobody acknowledges what was not sent
            if member.maybe_update(number):
                member.inflights.free_to(number)
        elif act == "reject":
            member.maybe_decrease(number, number - 2)
        elif act == "send" and not member.is_paused:
            member.sent(0 if member.inflights.full else number, number)
        elif act == "probe":
            member.become_probe()
        elif act == "replicate":
            member.become_replicate()
        elif act == "alive":
            member.paused = False
        elif act == "snapshot" and number > member.match:
            member.become_snapshot(number)
        assert before <= member.match < member.next
