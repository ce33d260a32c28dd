"""Replicated state in a program without asyncio: a node on threads of its own, plain bytes, plain calls."""

from octopii import Config, OctopiiRuntime, OutcomeUnknown
from octopii.machines import KvStateMachine


def main() -> None:
    """Start a node, write, read."""
    config = Config(bind_addr="127.0.0.1:5011", wal_dir="settings-data", is_initial_leader=True)
    with OctopiiRuntime() as runtime, runtime.node(config, KvStateMachine()) as node:
        try:
            print(node.propose(b"SET colour green", timeout=5.0))
        except OutcomeUnknown:
            print("it may count or not: ask before doing it again")
        print(node.query(b"GET colour"))


if __name__ == "__main__":
    main()
