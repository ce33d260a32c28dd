"""State machines that come with Octopii, to use as they are or to read as patterns."""

from octopii.machines.kv import KvStateMachine

__all__ = ["KvStateMachine"]
