"""When followers hear of a commit: with the next entries, after a moment, or at once when they wait for it."""

from octopii.raft import Entry, EntryKind, Message, MessageType
from octopii.replica.commit_news import CommitNews, eager_seconds, hold_seconds
from octopii.replica.work import Outbox
from tests.replica.clusters import Cluster


def _append(*, commit: int, entries: int = 0, to: int = 2) -> Message:
    made = [Entry(term=1, index=10 + number, kind=EntryKind.NORMAL, data=b"x") for number in range(entries)]
    return Message(type=MessageType.APPEND, sender=1, to=to, term=1, index=9, log_term=1, commit=commit, entries=made)


def _sent(outbox: Outbox) -> list[tuple[int, int]]:
    """Peer and commit index of each append that went out."""
    found = []
    for peer, outputs in outbox.take(None).messages.items():
        for output in outputs:
            assert isinstance(output, Message)
            found.append((peer, output.commit))
    return found


def test_news_wait_for_a_moment_and_only_the_newest_is_told() -> None:
    """An append without entries is held for `hold_seconds`; a later one takes its place, and not its time."""
    outbox = Outbox()
    news = CommitNews(outbox)
    news.take(_append(commit=5), 1.0)
    news.take(_append(commit=6), 1.0 + hold_seconds / 2)
    news.take(_append(commit=5, to=3), 1.0 + hold_seconds / 2)
    assert news.wake_at == 1.0 + hold_seconds
    news.tell_due(1.0 + hold_seconds * 0.9)
    assert _sent(outbox) == []
    news.tell_due(1.0 + hold_seconds)
    assert _sent(outbox) == [(2, 6), (3, 5)]
    assert news.wake_at is None


def test_entries_bring_the_news_along() -> None:
    """When entries go to a follower what was held for it is dropped, and what is held for others is not."""
    outbox = Outbox()
    news = CommitNews(outbox)
    news.take(_append(commit=5), 1.0)
    news.take(_append(commit=5, to=3), 1.0)
    news.take(_append(commit=6, entries=1), 1.001)
    assert _sent(outbox) == [(2, 6)]
    news.tell_due(2.0)
    assert _sent(outbox) == [(3, 5)]


def test_a_follower_that_has_forwarded_calls_hears_at_once() -> None:
    """Its callers wait for the commit: what is held goes out, and so does what comes within `eager_seconds`."""
    outbox = Outbox()
    news = CommitNews(outbox)
    news.take(_append(commit=5), 1.0)
    news.follower_waits(2, 1.001)
    assert _sent(outbox) == [(2, 5)]
    news.take(_append(commit=6), 1.0 + eager_seconds)
    assert _sent(outbox) == [(2, 6)]
    news.take(_append(commit=7), 1.01 + eager_seconds)
    assert _sent(outbox) == []


def test_a_change_of_leadership_drops_what_is_held() -> None:
    """News of an old term are told to nobody."""
    outbox = Outbox()
    news = CommitNews(outbox)
    news.take(_append(commit=5), 1.0)
    news.forget()
    news.tell_due(2.0)
    assert _sent(outbox) == []
    assert news.wake_at is None


def test_followers_apply_within_a_moment_when_nothing_else_happens() -> None:
    """A single call on the leader is applied by all followers long before the next heartbeat."""
    cluster = Cluster(1, heartbeat_interval=2.0, election_timeout=20.0)
    leader = cluster.wait_for_leader()
    call = cluster.client(at=leader.id).propose(cluster.name())
    cluster.world.run_until(lambda: call.done, what="the call is answered")
    index = leader.replica.applying.applied_index
    cluster.world.run(hold_seconds + 0.02)
    assert [node.replica.applying.applied_index for node in cluster.followers] == [index, index]
