"""Membership changes (paper, section 6; thesis, chapter 4) as pure functions from one `ConfState` to the next.

A change of one step may go the simple way, because majorities of the two memberships always overlap. Larger ones go
through a joint membership, in which elections and commitment need majorities of both the old and the new voters.
"""

from octopii.raft.messages import ChangeOperation, ConfState, MembershipChange, MembershipStep, Transition


class InvalidChange(ValueError):
    """A change that makes no sense for the membership that it is to change."""


def is_joint(conf: ConfState) -> bool:
    """Whether the membership is a joint one."""
    return bool(conf.voters_outgoing)


def members_of(conf: ConfState) -> set[int]:
    """Everybody that a leader replicates to."""
    return {*conf.voters, *conf.voters_outgoing, *conf.learners, *conf.learners_next}


def learners_of(conf: ConfState) -> set[int]:
    """Members that count in no quorum at present."""
    return set(conf.learners)


def leaves_joint(change: MembershipChange) -> bool:
    """Whether the change asks to leave a joint membership."""
    return not change.steps and change.transition is Transition.AUTO


def goes_joint(change: MembershipChange) -> bool:
    """Whether the change takes the joint way."""
    return change.transition is not Transition.AUTO or len(change.steps) > 1


def apply_change(conf: ConfState, change: MembershipChange) -> ConfState:
    """The membership that a committed change leads to; raises `InvalidChange`."""
    if leaves_joint(change):
        return _leave(conf)
    if is_joint(conf):
        raise InvalidChange("the membership is joint: it has to be left before another change")
    if not conf.voters and not change.steps:
        raise InvalidChange("there is no voter to change")
    if goes_joint(change):
        return _enter(conf, change)
    changed = _with_steps(conf, change.steps, outgoing=[])
    if len(set(conf.voters) ^ set(changed.voters)) > 1:
        raise InvalidChange("more than one voter changes without going through a joint membership")
    return changed


def _enter(conf: ConfState, change: MembershipChange) -> ConfState:
    if not conf.voters:
        raise InvalidChange("a membership without voters cannot become joint")
    joint = _with_steps(conf, change.steps, outgoing=list(conf.voters))
    joint.auto_leave = change.transition is not Transition.EXPLICIT
    return joint


def _leave(conf: ConfState) -> ConfState:
    if not is_joint(conf):
        raise InvalidChange("the membership is not joint: there is nothing to leave")
    return ConfState(voters=list(conf.voters), learners=sorted({*conf.learners, *conf.learners_next}))


def _with_steps(conf: ConfState, steps: list[MembershipStep], *, outgoing: list[int]) -> ConfState:
    """Carry out the steps; who votes in `outgoing` cannot be a learner before that set is gone."""
    voters, learners, learners_next = set(conf.voters), set(conf.learners), set(conf.learners_next)
    for step in steps:
        node_id = step.node_id
        if node_id <= 0:
            raise InvalidChange(f"a node id is a positive number, not {node_id}")
        voters.discard(node_id)
        learners.discard(node_id)
        learners_next.discard(node_id)
        if step.operation is ChangeOperation.ADD_VOTER:
            voters.add(node_id)
        elif step.operation is ChangeOperation.ADD_LEARNER:
            (learners_next if node_id in outgoing else learners).add(node_id)
    if not voters:
        raise InvalidChange("the change would remove the last voter")
    return ConfState(
        voters=sorted(voters),
        learners=sorted(learners),
        voters_outgoing=outgoing,
        learners_next=sorted(learners_next),
    )
