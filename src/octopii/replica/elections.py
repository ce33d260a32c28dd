"""Says in the log who leads, and why anybody stands for election: one line for each, nothing while all is well."""

import logging

from octopii.raft import Role, SoftState

logger = logging.getLogger("octopii.replica")


class ElectionLog:
    """Follows what one node knows of leadership."""

    def __init__(self, node_id: int) -> None:
        self._node_id = node_id
        self._last = SoftState(leader=0, role=Role.FOLLOWER, term=0)
        self._leader = 0
        """The last leader that was known, 0 before there was one."""
        self._said_why = False

    def observe(self, state: SoftState, *, silent_seconds: float, is_voter: bool) -> None:
        """Take a change. `silent_seconds` is how long no leader was heard, `is_voter` whether this node votes."""
        last, self._last = self._last, state
        if last.role is Role.LEADER and state.role is not Role.LEADER and not state.leader:
            self._say(f"node {self._node_id} no longer leads: {self._why_it_stepped_down(last, state, is_voter)}")
        elif state.role in (Role.PRE_CANDIDATE, Role.CANDIDATE) and not self._said_why:
            self._said_why = True  # an election that nobody wins is repeated: once is enough
            self._say(f"node {self._node_id} stands for election: {self._why_it_stands(last, state, silent_seconds)}")
        if state.leader and (state.leader, state.term) != (last.leader, last.term):
            self._leader, self._said_why = state.leader, False
            if state.leader == self._node_id:
                self._say(f"node {self._node_id} leads in term {state.term}")
            else:
                self._say(f"node {self._node_id} follows node {state.leader}, which leads in term {state.term}")

    def _why_it_stepped_down(self, last: SoftState, state: SoftState, is_voter: bool) -> str:
        if state.term > last.term:
            return f"there is an election in term {state.term}"
        if not is_voter:
            return "it is no voter any more"
        return "it has not heard from a majority for an election timeout"

    def _why_it_stands(self, last: SoftState, state: SoftState, silent_seconds: float) -> str:
        if state.role is Role.CANDIDATE and last.role is Role.FOLLOWER and last.leader:
            return f"node {last.leader}, which leads, hands over to it"  # without the question whether it could win
        if self._leader:
            return f"nothing was heard from a leader for {silent_seconds:.1f} s; the last one was node {self._leader}"
        return "it knows of no leader"

    @staticmethod
    def _say(text: str) -> None:
        logger.info("%s", text)
