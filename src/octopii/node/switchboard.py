"""Who is connected to a node: peers that it dials, peers and clients that dial it, and what is said to them.

The rules of the handshake are `wire.handshake`'s, what a node is asked is the replica's business: this is where the two
meet the connections.
"""

import asyncio
import random
import sys
from collections.abc import Callable

import msgspec

from octopii.config import Config
from octopii.errors import RefusedError
from octopii.node.peers import PeerLinks
from octopii.node.security import client_context, server_context
from octopii.node.server import Server
from octopii.node.transport import Connection
from octopii.replica.founding import facts_of
from octopii.replica.replica import Replica
from octopii.replica.work import PeerOutput
from octopii.wire.frames import WireError
from octopii.wire.handshake import Handshake, Hello, Refusal, Role, judge
from octopii.wire.parts import encode_replies
from octopii.wire.requests import LeaderHint, Reply, Request


class Switchboard:
    """All connections of one node. `wake` asks for a turn; `fail` reports a fault that is this node's own."""

    def __init__(
        self,
        config: Config,
        replica: Replica,
        *,
        rng: random.Random,
        wake: Callable[[], None],
        fail: Callable[[BaseException], None],
    ) -> None:
        self._config = config
        self._replica = replica
        self._wake = wake
        self._fail = fail
        self._loop = asyncio.get_running_loop()
        self._clients: set[Connection] = set()
        self._told_leader = (0, "")
        self._closing = False
        self.address = config.advertised_addr
        self._server = Server(
            config,
            self,
            tls=server_context(config),
            handshake=lambda name: self._handshake(name, Role.NODE, 0, dialer=False),
        )
        self.links = PeerLinks(
            config,
            tls=client_context(config),
            rng=rng,
            handshake=lambda name, role, target: self._handshake(name, role, target, dialer=True),
            address_of=self._address_of,
            link_up=self._link_up,
            link_down=self._link_down,
            refused=self._refused,
            snapshot_link_down=self._snapshot_link_down,
        )

    async def open(self) -> None:
        """Listen, and begin to dial; raises `OSError`."""
        bound = await self._server.listen()
        if self._config.advertised_addr.endswith(":0"):
            self.address = bound
        self.keep_links()

    def shut(self) -> None:
        """The node has failed: whoever waits here for an answer has to turn to another one."""
        self._closing = True
        self.links.close()
        self._server.shut()

    async def close(self) -> None:
        """Close everything."""
        self._closing = True
        self.links.close()
        await self._server.close()

    # --- what goes out ------------------------------------------------------------------------------------------

    def send(self, peer: int, outputs: list[PeerOutput], now: float) -> None:
        """Say something to a peer."""
        self.links.send(peer, outputs, now)

    def reply(self, connection: Connection, replies: list[Reply]) -> None:
        """Answer a client. One that does not take its answers is not read from until it has."""
        connection.write(b"".join(encode_replies(replies)))
        if connection.unsent_bytes > self._config.client_queue_bytes:
            self._loop.call_later(self._config.tick_interval, self._maybe_resume, connection)
        self._server.go_on(connection, sum(not isinstance(reply, LeaderHint) for reply in replies))

    def _maybe_resume(self, connection: Connection) -> None:
        if connection.unsent_bytes <= self._config.client_queue_bytes // 2:
            self._server.go_on(connection)
        elif connection.is_open:
            self._loop.call_later(self._config.tick_interval, self._maybe_resume, connection)

    def tick(self, now: float) -> None:
        """Look after the connections."""
        self.links.tick(now)
        self.keep_links()

    def follow(self) -> bool:
        """Tell clients who leads; True when that has changed."""
        leadership = self._replica.leadership
        leads = (leadership.leader, leadership.leader_address)
        if leads == self._told_leader:
            return False
        self._told_leader = leads
        for connection in self._clients:
            self.reply(connection, [LeaderHint(*leads)])
        return True

    # --- what the server says -----------------------------------------------------------------------------------

    def _tell(self, say: Callable[[], None]) -> None:
        """Have the replica told something. Only a `WireError` is the other side's fault, anything else this node's."""
        try:
            say()
        except WireError:
            raise
        except BaseException as error:  # noqa: BLE001  (a node that goes on after this might harm its data)
            self._fail(error)
        self._wake()

    def peer_said(self, peer: int, outputs: list[PeerOutput]) -> None:
        """Messages of another node."""
        receive = self._replica.receive

        def receive_all() -> None:
            for output in outputs:
                receive(peer, output)

        self._tell(receive_all)

    def peer_arrived(self, hello: Hello) -> None:
        """Another node has connected: it is dialled as well, at the address that it names."""
        self._compare_python(hello)
        self._tell(lambda: self._replica.joining.met(facts_of(hello)))
        self.keep_links()

    def client_arrived(self, connection: Connection) -> None:
        """A client has connected."""
        self._clients.add(connection)
        leadership = self._replica.leadership
        self.reply(connection, [LeaderHint(leadership.leader, leadership.leader_address)])

    def client_asked(self, connection: Connection, requests: list[Request]) -> None:
        """Requests of a client."""

        def ask_all() -> None:
            for request in requests:
                self._replica.request(connection, request)

        self._tell(ask_all)

    def client_left(self, connection: Connection) -> None:
        """A client is gone; what it asked for may still happen."""
        self._clients.discard(connection)

    # --- peers --------------------------------------------------------------------------------------------------

    def _handshake(self, certificate: str | None, role: Role, target: int, *, dialer: bool) -> Handshake:
        def rules(hello: Hello) -> Refusal | None:
            standing = self._replica.standing(secure=self._config.uses_tls)
            return judge(hello, standing, certificate_name=certificate, expected=target)

        hello = self._replica.hello(role, target=target, python_minor=sys.version_info.minor)
        hello = msgspec.structs.replace(hello, address=self.address)
        return Handshake(hello, rules, dialer=dialer, max_frame_bytes=self._config.max_frame_bytes)

    @property
    def _seen_addresses(self) -> dict[int, str]:
        """What the nodes that were here say of where they are."""
        return {peer: facts.address for peer, facts in self._replica.joining.peers.items() if facts.address}

    def _address_of(self, peer: int, attempt: int) -> str:
        """Where to dial a peer: what the log says, what it says itself, and what the settings say, in turn."""
        known = [
            self._replica.peer_addresses.get(peer, ""),
            self._seen_addresses.get(peer, ""),
            self._config.peers.get(peer, ""),
        ]
        addresses = list(dict.fromkeys(address for address in known if address))
        return addresses[(attempt - 1) % len(addresses)] if addresses else ""

    def keep_links(self) -> None:
        """Dial the members, and before there are any the configured peers, and whoever leads and dialled us."""
        if self._closing:
            return
        replica, conf = self._replica, self._replica.conf_state
        peers = set(replica.peer_addresses) | set(replica.raft.peers())
        if replica.identity.empty or self._config.node_id not in {*conf.voters, *conf.learners}:
            peers |= self._seen_addresses.keys()
        self.links.keep(peers - {self._config.node_id})

    def _link_up(self, peer: int, hello: Hello) -> None:
        self._compare_python(hello)
        self._tell(lambda: self._replica.peer_connected(facts_of(hello)))

    def _compare_python(self, hello: Hello) -> None:
        """The same code may do other things under another Python, and replicas have to do the same."""
        ours, theirs, key = sys.version_info.minor, hello.python_minor, f"python-{hello.node_id}"
        if theirs in (0, ours):
            self._replica.warnings.pop(key, None)
        else:
            text = f"node {self._config.node_id} runs Python 3.{ours}, node {hello.node_id} Python 3.{theirs}"
            self._replica.warn(key, f"{text}: run the same on all nodes, or replicas may come to differ")

    def _link_down(self, peer: int) -> None:
        self._tell(lambda: self._replica.peer_disconnected(peer))

    def _snapshot_link_down(self, peer: int) -> None:
        """A snapshot broke off: it is offered again at once, and goes on where it was."""
        if peer in self._replica.connected:
            self._tell(lambda: self._replica.senders.connected(peer))

    def _refused(self, peer: int, error: RefusedError, address: str) -> None:
        self._tell(lambda: self._replica.peer_refused(peer, error, address))
