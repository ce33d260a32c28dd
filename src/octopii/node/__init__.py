"""A node in production form: threads, sockets and TLS around a `Replica`.

operations   what users can ask, for asyncio and for threads
host         the node's thread; calls go there and answers come back in batches
engine       one turn at a time: replica, connections, calls of this process
workers      the apply thread and the threads that wait for disks
peers        connections dialled to other nodes;  server: connections accepted from nodes and clients
transport    one connection;  security: TLS
node         `OctopiiNode`;  runtime: `BlockingNode`, `OctopiiRuntime`
"""

from octopii.node.node import OctopiiNode
from octopii.node.operations import add_learner, promote_learner, remove_node
from octopii.node.runtime import BlockingNode, OctopiiRuntime

__all__ = ["BlockingNode", "OctopiiNode", "OctopiiRuntime", "add_learner", "promote_learner", "remove_node"]
