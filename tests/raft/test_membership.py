"""The rules of membership changes against definitions by brute force, 1 to 9 voters."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from octopii.raft import (
    ChangeOperation,
    ConfState,
    InvalidChange,
    MembershipChange,
    MembershipStep,
    Transition,
    apply_change,
    decode_membership_change,
    encode_membership_change,
)
from octopii.raft.membership import is_joint, learners_of, members_of

ADD_VOTER, ADD_LEARNER, REMOVE = ChangeOperation
ids = st.integers(1, 11)
steps = st.lists(st.builds(MembershipStep, st.sampled_from(ChangeOperation), ids), min_size=1, max_size=5)
leave = MembershipChange()


@st.composite
def settled(draw: st.DrawFn) -> ConfState:
    """A membership that is not joint, of 1 to 9 voters."""
    voters = draw(st.sets(ids, min_size=1, max_size=9))
    learners = draw(st.sets(ids, max_size=3)) - voters
    return ConfState(voters=sorted(voters), learners=sorted(learners))


@st.composite
def joint(draw: st.DrawFn) -> ConfState:
    """A joint membership, reached by a change."""
    while True:
        change = MembershipChange(transition=Transition.EXPLICIT, steps=draw(steps))
        try:
            return apply_change(draw(settled()), change)
        except InvalidChange:
            continue


def majorities(voters: list[int]) -> list[set[int]]:
    """The smallest majorities; every larger one contains one of them."""
    return [set(some) for some in combinations(voters, len(voters) // 2 + 1)]


def last_word(conf: ConfState, operations: list[MembershipStep]) -> dict[int, ChangeOperation]:
    """What each node is to be: the last step that speaks of it wins, else what it was."""
    wanted = dict.fromkeys(conf.learners, ADD_LEARNER) | dict.fromkeys(conf.voters, ADD_VOTER)
    return wanted | {step.node_id: step.operation for step in operations}


@given(settled(), steps)
def test_joint_membership_has_the_new_voters_and_the_old(conf: ConfState, operations: list[MembershipStep]) -> None:
    """Entering makes the old voters the outgoing half; a voter that is to learn waits in `learners_next`."""
    wanted = last_word(conf, operations)
    voters = sorted(node for node, operation in wanted.items() if operation is ADD_VOTER)
    learning = {node for node, operation in wanted.items() if operation is ADD_LEARNER}
    change = MembershipChange(transition=Transition.EXPLICIT, steps=operations)
    if not voters:
        with pytest.raises(InvalidChange):
            apply_change(conf, change)
        return
    entered = apply_change(conf, change)
    assert entered == ConfState(
        voters=voters,
        voters_outgoing=conf.voters,
        learners=sorted(learning - set(conf.voters)),
        learners_next=sorted(learning & set(conf.voters)),
        auto_leave=False,
    )


@given(settled(), steps)
def test_leaving_gives_everybody_what_was_asked_for(conf: ConfState, operations: list[MembershipStep]) -> None:
    """A joint membership that was entered and left is as if each node's last step alone had been carried out."""
    wanted = last_word(conf, operations)
    voters = sorted(node for node, operation in wanted.items() if operation is ADD_VOTER)
    if voters:
        left = apply_change(apply_change(conf, MembershipChange(Transition.EXPLICIT, operations)), leave)
        learners = sorted(node for node, operation in wanted.items() if operation is ADD_LEARNER)
        assert left == ConfState(voters=voters, learners=learners)


@given(settled(), st.sampled_from(Transition), steps)
def test_every_change_keeps_quorums_overlapping(
    conf: ConfState, transition: Transition, operations: list[MembershipStep]
) -> None:
    """Any quorum of a membership and any quorum of the next one share a voter, so no two can decide apart (6)."""
    try:
        changed = apply_change(conf, MembershipChange(transition, operations))
    except InvalidChange:
        return
    # A quorum of a joint membership contains a majority of its outgoing half, and that is enough to overlap.
    for old in majorities(conf.voters):
        assert all(old & new for new in majorities(changed.voters_outgoing or changed.voters))


@given(joint())
def test_leaving_keeps_quorums_overlapping(conf: ConfState) -> None:
    """A quorum of the membership left for contains a majority of the joint one's incoming half, and overlaps it."""
    left = apply_change(conf, leave)
    assert left.voters == conf.voters
    assert not is_joint(left)
    assert not left.auto_leave


@given(settled(), steps)
def test_sets_stay_apart(conf: ConfState, operations: list[MembershipStep]) -> None:
    """Nobody is voter and learner at once, in no half, and only outgoing voters wait in `learners_next`."""
    for transition in Transition:
        try:
            changed = apply_change(conf, MembershipChange(transition, operations))
        except InvalidChange:
            continue
        voting = {*changed.voters, *changed.voters_outgoing}
        assert not voting & learners_of(changed)
        assert set(changed.learners_next) <= set(changed.voters_outgoing) - set(changed.voters)
        assert members_of(changed) == voting | set(changed.learners)
        for nodes in (changed.voters, changed.learners, changed.voters_outgoing, changed.learners_next):
            assert nodes == sorted(set(nodes))


@given(settled(), steps)
def test_one_step_goes_the_simple_way_and_more_go_joint(conf: ConfState, operations: list[MembershipStep]) -> None:
    """AUTO takes the simple way exactly for one step, and leaves a joint membership by itself."""
    try:
        changed = apply_change(conf, MembershipChange(Transition.AUTO, operations))
    except InvalidChange:
        return
    assert is_joint(changed) is (len(operations) > 1)
    assert changed.auto_leave is (len(operations) > 1)
    if not is_joint(changed):
        assert len(set(conf.voters) ^ set(changed.voters)) <= 1


@given(settled(), steps)
def test_implicit_and_explicit_are_always_joint(conf: ConfState, operations: list[MembershipStep]) -> None:
    """IMPLICIT and EXPLICIT go through a joint membership even for one step; only EXPLICIT has to be left by hand."""
    for transition, leaves_alone in ((Transition.IMPLICIT, True), (Transition.EXPLICIT, False)):
        try:
            changed = apply_change(conf, MembershipChange(transition, operations))
        except InvalidChange:
            continue
        assert is_joint(changed)
        assert changed.auto_leave is leaves_alone


@given(joint(), st.sampled_from(Transition), steps)
def test_joint_membership_takes_no_change_but_leaving(
    conf: ConfState, transition: Transition, operations: list[MembershipStep]
) -> None:
    """One change at a time: a joint membership has to be left first (6)."""
    with pytest.raises(InvalidChange):
        apply_change(conf, MembershipChange(transition, operations))


@given(settled())
def test_nothing_to_leave(conf: ConfState) -> None:
    """Leaving a membership that is not joint is refused."""
    with pytest.raises(InvalidChange):
        apply_change(conf, leave)


@given(settled(), st.sampled_from(Transition), steps)
def test_a_change_leaves_its_input_alone(
    conf: ConfState, transition: Transition, operations: list[MembershipStep]
) -> None:
    """A change is a pure function: the membership it starts from is not touched, and equal input gives equal output."""
    before = ConfState(voters=list(conf.voters), learners=list(conf.learners))
    try:
        first = apply_change(conf, MembershipChange(transition, operations))
    except InvalidChange:
        assert conf == before
        return
    assert conf == before
    assert apply_change(before, MembershipChange(transition, operations)) == first
    first.voters.append(99)
    assert conf == before


@pytest.mark.parametrize("transition", Transition)
def test_the_last_voter_cannot_be_removed(transition: Transition) -> None:
    """A membership without voters could decide nothing any more."""
    for operation in (REMOVE, ADD_LEARNER):
        with pytest.raises(InvalidChange, match="last voter"):
            apply_change(ConfState(voters=[1]), MembershipChange(transition, [MembershipStep(operation, 1)]))


@pytest.mark.parametrize("node_id", [0, -1])
def test_node_ids_are_positive(node_id: int) -> None:
    """0 stands for nobody, and is refused as a member."""
    with pytest.raises(InvalidChange, match="positive"):
        apply_change(ConfState(voters=[1]), MembershipChange(steps=[MembershipStep(ADD_VOTER, node_id)]))


@given(st.builds(MembershipChange, st.sampled_from(Transition), steps, st.binary(max_size=20)))
def test_a_change_survives_its_entry(change: MembershipChange) -> None:
    """What is put into a membership entry comes out of it; an empty entry is the change that leaves."""
    assert decode_membership_change(encode_membership_change(change)) == change
    assert decode_membership_change(b"") == leave
