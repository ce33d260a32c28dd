"""The commands of scenario files and of random schedules: one line of text each, run against a `Cluster`.

    cluster 1 2 3 [learners=4,5] [blank=6] [founded=10] [seed=7] [setting=value ...]   start the nodes
    preload N TERM... [term=T] [vote=V]          start N again with this log on its disk
    campaign N · forget N · tick N|all [COUNT] · tick-others N · clock [TICKS]
    grace                              restarted voters have waited for an election timeout, and may vote
    elect N [VOTER...]                 grace, campaign, and deliver: everything, or between N and these until N leads
    propose N TEXT [TEXT ...]          several texts are one batch
    member N +4 learner:5 -2 [explicit|implicit] · leave-joint N
    read N CONTEXT · lease N|all · transfer N TO · unreachable N PEER · snapshot-sent N PEER ok|failed
    hold N|all STAGE... · release N|all STAGE...      stages: ready, persist, apply
    ready N · persist N · apply N      one held-back step
    turn N|all                         all that is held back, once through
    compact N [KEEP]                   snapshot what N has applied, keep KEEP entries behind it
    crash N [WRITTEN [entries|state]] · restart N|all      WRITTEN Readys, and half of the next, had reached the disk
    deliver [A>B ...] [only=TYPE,...]  what is in flight now, once, on these links or on all
    pass A>B [POSITION] · lose A>B [POSITION] · copy A>B [POSITION]      one message
    lose A>B all · isolate N · cut A B · heal
    step N TYPE field=value ...        a message out of nowhere
    stabilize [A>B ...] [until=TYPE]   deliver until nothing is in flight, or until such a message is
    recover                            heal, restart, and drive until all members agree
    show · status N · log N · flight   print

A command that has nothing to act on (no message at that position, a node that is down) does nothing: so a schedule
stays a schedule when commands are taken out of it.
"""

from __future__ import annotations

from collections.abc import Callable

from octopii.raft import HardState, ProposalDropped, Role
from tests.raft import harness_text as text
from tests.raft.harness import ELECTION_TICKS, STAGES, Cluster, Peer, found_cluster

Run = Callable[[Cluster, list[str]], None]
COMMANDS: dict[str, Run] = {}


class BadCommand(ValueError):
    """The line is no command."""


def command(name: str) -> Callable[[Run], Run]:
    """Register a command under its name."""

    def register(run: Run) -> Run:
        COMMANDS[name] = run
        return run

    return register


def execute(cluster: Cluster, line: str) -> None:
    """Run one line, then let every node do the work that is not held back."""
    words = line.split()
    run = COMMANDS.get(words[0])
    if run is None:
        raise BadCommand(f"no command {words[0]!r}")
    run(cluster, words[1:])


def call(cluster: Cluster, node_id: str, act: Callable[[Peer], object]) -> None:
    """Let a live peer act; a typed refusal is noted, then what changed is checked and its work is done."""
    peer = cluster.peers.get(int(node_id))
    if peer is None or peer.node is None:
        return
    before = cluster.outline(peer)
    try:
        act(peer)
    except ProposalDropped as refusal:
        cluster.note(f"{peer.id} refuses: {type(refusal).__name__}: {refusal}")
    cluster.after(peer, before)


def chosen(cluster: Cluster, word: str) -> list[Peer]:
    """The peers that a word names."""
    return list(cluster.peers.values()) if word == "all" else [cluster.peers[int(word)]]


def way(word: str) -> tuple[int, int]:
    """A link, written as `1>2`."""
    sender, _, receiver = word.partition(">")
    return int(sender), int(receiver)


# --- nodes


@command("cluster")
def _cluster(cluster: Cluster, words: list[str]) -> None:
    found_cluster(cluster, words)


@command("campaign")
def _campaign(cluster: Cluster, words: list[str]) -> None:
    call(cluster, words[0], lambda peer: peer.raw.campaign())


@command("grace")
def _grace(cluster: Cluster, words: list[str]) -> None:
    for peer in cluster.live():
        peer.raw._state.ticks_since_leader += ELECTION_TICKS


@command("elect")
def _elect(cluster: Cluster, words: list[str]) -> None:
    _grace(cluster, [])
    _campaign(cluster, words)
    peer = cluster.peers[int(words[0])]
    if len(words) == 1:
        cluster.stabilize()
    for _ in range(4):
        if peer.role is not Role.LEADER:
            cluster.deliver_round([(peer.id, int(voter)) for voter in words[1:]])
            cluster.deliver_round([(int(voter), peer.id) for voter in words[1:]])


@command("preload")
def _preload(cluster: Cluster, words: list[str]) -> None:
    terms = [int(word) for word in words[1:] if word.isdigit()]
    options = {name: int(value) for name, value in (word.split("=") for word in words if "=" in word)}
    last = max(terms, default=0)
    peer = cluster.peers[int(words[0])]
    peer.preload(terms, HardState(options.get("term", last), options.get("vote", 0)))
    cluster.after(peer, None)


@command("forget")
def _forget(cluster: Cluster, words: list[str]) -> None:
    call(cluster, words[0], lambda peer: peer.raw.forget_leader())


@command("tick")
def _tick(cluster: Cluster, words: list[str]) -> None:
    for _ in range(int(words[1]) if len(words) > 1 else 1):
        if words[0] == "all":
            cluster.advance_clock()
        for peer in chosen(cluster, words[0]):
            call(cluster, str(peer.id), Peer.tick)


@command("tick-others")
def _tick_others(cluster: Cluster, words: list[str]) -> None:
    cluster.advance_clock()
    for peer in cluster.peers.values():
        if peer.id != int(words[0]):
            call(cluster, str(peer.id), Peer.tick)


@command("clock")
def _clock(cluster: Cluster, words: list[str]) -> None:
    cluster.advance_clock(int(words[0]) if words else 1)


@command("propose")
def _propose(cluster: Cluster, words: list[str]) -> None:
    data = [word.encode() for word in words[1:]]
    if len(data) == 1:
        call(cluster, words[0], lambda peer: peer.raw.propose(data[0]))
    else:
        call(cluster, words[0], lambda peer: peer.raw.propose_batch(data))


@command("member")
def _member(cluster: Cluster, words: list[str]) -> None:
    call(cluster, words[0], lambda peer: peer.raw.propose_membership(text.parse_change(words[1:])))


@command("leave-joint")
def _leave_joint(cluster: Cluster, words: list[str]) -> None:
    call(cluster, words[0], lambda peer: peer.raw.propose_membership(text.parse_change([])))


@command("read")
def _read(cluster: Cluster, words: list[str]) -> None:
    def act(peer: Peer) -> None:
        cluster.checker.asked_read(peer, words[1].encode())
        peer.raw.read_index(words[1].encode())

    call(cluster, words[0], act)


@command("lease")
def _lease(cluster: Cluster, words: list[str]) -> None:
    for peer in chosen(cluster, words[0]):
        call(cluster, str(peer.id), Peer.lease_read)


@command("transfer")
def _transfer(cluster: Cluster, words: list[str]) -> None:
    call(cluster, words[0], lambda peer: peer.raw.transfer_leader(int(words[1])))


@command("unreachable")
def _unreachable(cluster: Cluster, words: list[str]) -> None:
    call(cluster, words[0], lambda peer: peer.raw.report_unreachable(int(words[1])))


@command("snapshot-sent")
def _snapshot_sent(cluster: Cluster, words: list[str]) -> None:
    call(cluster, words[0], lambda peer: peer.raw.report_snapshot(int(words[1]), words[2] == "ok"))


# --- disks and state machines


@command("hold")
def _hold(cluster: Cluster, words: list[str]) -> None:
    for peer in chosen(cluster, words[0]):
        peer.held.update(words[1:] or STAGES)


@command("release")
def _release(cluster: Cluster, words: list[str]) -> None:
    for peer in chosen(cluster, words[0]):
        peer.held.difference_update(words[1:] or STAGES)
        call(cluster, str(peer.id), lambda _: None)


@command("ready")
def _ready(cluster: Cluster, words: list[str]) -> None:
    call(cluster, words[0], Peer.take_ready)


@command("persist")
def _persist(cluster: Cluster, words: list[str]) -> None:
    call(cluster, words[0], Peer.persist)


@command("apply")
def _apply(cluster: Cluster, words: list[str]) -> None:
    call(cluster, words[0], Peer.apply)


@command("turn")
def _turn(cluster: Cluster, words: list[str]) -> None:
    for peer in chosen(cluster, words[0]):
        call(cluster, str(peer.id), Peer.turn)


@command("compact")
def _compact(cluster: Cluster, words: list[str]) -> None:
    call(cluster, words[0], lambda peer: peer.compact(int(words[1]) if len(words) > 1 else 0))


@command("crash")
def _crash(cluster: Cluster, words: list[str]) -> None:
    peer = cluster.peers[int(words[0])]
    if peer.node is not None:
        peer.crash(int(words[1]) if len(words) > 1 else 0, words[2] if len(words) > 2 else "")
        cluster.note(f"{peer.id} is down")


@command("restart")
def _restart(cluster: Cluster, words: list[str]) -> None:
    for peer in chosen(cluster, words[0]):
        if peer.node is None:
            peer.start()
            cluster.note(f"{peer.id} is up: {cluster.outline(peer)}")
            cluster.after(peer, cluster.outline(peer))


# --- the network


@command("deliver")
def _deliver(cluster: Cluster, words: list[str]) -> None:
    only = {kind for word in words if word.startswith("only=") for kind in word[5:].split(",")}
    ways = [way(word) for word in words if ">" in word]
    cluster.deliver_round(ways or None, only=only or None)


@command("stabilize")
def _stabilize(cluster: Cluster, words: list[str]) -> None:
    until = next((word[6:] for word in words if word.startswith("until=")), None)
    cluster.stabilize([way(word) for word in words if ">" in word] or None, until=until)


@command("pass")
def _pass(cluster: Cluster, words: list[str]) -> None:
    cluster.deliver(way(words[0]), int(words[1]) if len(words) > 1 else 0)


@command("copy")
def _copy(cluster: Cluster, words: list[str]) -> None:
    cluster.deliver(way(words[0]), int(words[1]) if len(words) > 1 else 0, keep=True)


@command("lose")
def _lose(cluster: Cluster, words: list[str]) -> None:
    link = cluster.links.get(way(words[0]))
    if not link:
        return
    if words[1:] == ["all"]:
        for message in link:
            cluster.note(f"{words[0]} lost: {text.message(message)}")
        link.clear()
        return
    position = int(words[1]) if len(words) > 1 else 0
    if position < len(link):
        cluster.note(f"{words[0]} lost: {text.message(link[position])}")
        del link[position]


@command("isolate")
def _isolate(cluster: Cluster, words: list[str]) -> None:
    one = int(words[0])
    for other in cluster.peers:
        if other != one:
            cluster.cut_links(one, other)


@command("cut")
def _cut(cluster: Cluster, words: list[str]) -> None:
    cluster.cut_links(int(words[0]), int(words[1]))


@command("heal")
def _heal(cluster: Cluster, words: list[str]) -> None:
    cluster.cut.clear()


@command("step")
def _step(cluster: Cluster, words: list[str]) -> None:
    message = text.parse_message(words[1], int(words[0]), words[2:])
    if message.snapshot is not None:
        cluster.checker.believe(message.snapshot.metadata.index)
    cluster.note(f"{message.sender}>{message.to} {text.message(message)}")
    call(cluster, words[0], lambda peer: peer.raw.step(message))


@command("recover")
def _recover(cluster: Cluster, words: list[str]) -> None:
    cluster.recover()


# --- printing


@command("show")
def _show(cluster: Cluster, words: list[str]) -> None:
    for peer in cluster.peers.values():
        cluster.note(f"{peer.id}: {cluster.outline(peer) if peer.node is not None else 'down'}")


@command("log")
def _log(cluster: Cluster, words: list[str]) -> None:
    for peer in chosen(cluster, words[0] if words else "all"):
        if peer.node is not None:
            first, log = peer.log()
            cluster.note(f"{peer.id}: {text.log(first, log)}")


@command("status")
def _status(cluster: Cluster, words: list[str]) -> None:
    for peer in chosen(cluster, words[0]):
        for line in text.progress(peer) if peer.node is not None else []:
            cluster.note(line)


@command("flight")
def _flight(cluster: Cluster, words: list[str]) -> None:
    for (sender, receiver), link in sorted(cluster.links.items()):
        for message in link:
            cluster.note(f"{sender}>{receiver} in flight: {text.message(message)}")
