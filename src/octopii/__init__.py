"""Octopii: replicate your own deterministic state machine over a cluster, from Python.

    StateMachine, TypedStateMachine, command, query      what you write
    OctopiiNode, Config                                  a member of the cluster inside an asyncio program
    OctopiiRuntime, BlockingNode                         the same for programs without asyncio
    Client, BlockingClient                               calls from other processes
    OctopiiError and below                               what can go wrong, sorted by what it means for the call

`octopii.walrus` is the write-ahead log by itself, `octopii.raft` the consensus core, `octopii.machines` ready-made
machines, `octopii.testing` checks your machine for determinism.
"""

from octopii.client import BlockingClient, Client
from octopii.config import Config
from octopii.durability import FsyncSchedule, Milliseconds, NoFsync, SyncEach
from octopii.errors import (
    ApplyFailed,
    BadCertificate,
    CallTimeout,
    CommandError,
    ConfigError,
    ConnectionLost,
    CorruptLogError,
    DiskFull,
    EntryTooLarge,
    InvalidTopic,
    LogClosed,
    LogInUse,
    LogPoisoned,
    NoLeader,
    NotApplied,
    OctopiiError,
    OffsetTrimmedError,
    OutcomeUnknown,
    Overloaded,
    QueryNotSupported,
    RefusedError,
    Rejected,
    RemovedNode,
    SessionExpired,
    ShuttingDown,
    TooLarge,
    VersionNotActive,
    WalrusError,
    WipedNode,
    WrongCluster,
)
from octopii.node import BlockingNode, OctopiiNode, OctopiiRuntime, add_learner, promote_learner, remove_node
from octopii.state_machine import StateMachine
from octopii.typed import TypedStateMachine, command, query

__all__ = [
    "ApplyFailed",
    "BadCertificate",
    "BlockingClient",
    "BlockingNode",
    "CallTimeout",
    "Client",
    "CommandError",
    "Config",
    "ConfigError",
    "ConnectionLost",
    "CorruptLogError",
    "DiskFull",
    "EntryTooLarge",
    "FsyncSchedule",
    "InvalidTopic",
    "LogClosed",
    "LogInUse",
    "LogPoisoned",
    "Milliseconds",
    "NoFsync",
    "NoLeader",
    "NotApplied",
    "OctopiiError",
    "OctopiiNode",
    "OctopiiRuntime",
    "OffsetTrimmedError",
    "OutcomeUnknown",
    "Overloaded",
    "QueryNotSupported",
    "RefusedError",
    "Rejected",
    "RemovedNode",
    "SessionExpired",
    "ShuttingDown",
    "StateMachine",
    "SyncEach",
    "TooLarge",
    "TypedStateMachine",
    "VersionNotActive",
    "WalrusError",
    "WipedNode",
    "WrongCluster",
    "add_learner",
    "command",
    "promote_learner",
    "query",
    "remove_node",
]
