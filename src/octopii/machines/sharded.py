"""One machine cut into shards by key: each shard stays small, and so does every single step over it.

Commands come one at a time, so shards are not about locks here. They keep pauses short: a dict of a tenth of the size
grows in a tenth of the time. Any machine whose commands name their key as the second word can be cut; which shard a key
belongs to is fixed by its XXH3 hash, never by `hash()`, which differs between processes.
"""

from collections.abc import Callable

import xxhash

from octopii.errors import CommandError
from octopii.machines.kv import KvStateMachine
from octopii.machines.nested import NestedSnapshot, digest_of, nested_snapshot, read_nested, restore_into
from octopii.state_machine import Buffer, Clock, StateMachine

DEFAULT_SHARDS = 16
MAX_SHARDS = 4096


def second_word(command: bytes) -> bytes:
    """Return what stands between the first and the second space; raises `CommandError` when there is nothing."""
    parts = command.split(b" ", 2)
    if len(parts) < 2 or not parts[1]:
        raise CommandError("the command names no key")
    return parts[1]


class ShardedStateMachine(StateMachine):
    """Routes each command by its key to one of `shards` machines; key-value stores unless told otherwise.

    `shards`, `factory` and `key_of` belong to the replicated logic: the same on every node. A snapshot is read only
    with the number of shards that it was written with.
    """

    def __init__(
        self,
        *,
        shards: int = DEFAULT_SHARDS,
        factory: Callable[[], StateMachine] = KvStateMachine,
        key_of: Callable[[bytes], bytes] = second_word,
    ) -> None:
        if not 1 <= shards <= MAX_SHARDS:
            raise ValueError(f"shards has to be from 1 to {MAX_SHARDS}, not {shards!r}")
        self._count = shards
        self._factory = factory
        self._key_of = key_of
        self._shards = self._new_shards()
        self.command_version = self._shards[0].command_version

    def _new_shards(self) -> list[StateMachine]:
        shards = [self._factory() for _ in range(self._count)]
        for shard in shards:
            shard.use_clock(self.clock)
        return shards

    def shard_of(self, key: bytes) -> int:
        """Return the number of the shard that holds `key`, from 0."""
        return xxhash.xxh3_64_intdigest(key) % self._count

    def digest(self) -> Buffer | None:
        """The digests of all shards, if they have one."""
        return digest_of(self._shards)

    def use_clock(self, clock: Clock) -> None:
        """Follow `clock`, shards included."""
        super().use_clock(clock)
        for shard in self._shards:
            shard.use_clock(clock)

    def apply(self, command: bytes) -> bytes:
        """Pass the command to its key's shard; raises `CommandError` when it names no key, or what the shard does."""
        return self._shards[self.shard_of(self._key_of(command))].apply(command)

    def query(self, command: bytes) -> bytes:
        """Pass the query to its key's shard; raises as `apply` does."""
        return self._shards[self.shard_of(self._key_of(command))].query(command)

    def compact(self) -> None:
        """Compact every shard."""
        for shard in self._shards:
            shard.compact()

    def snapshot(self) -> NestedSnapshot:
        """Take the snapshots of all shards at one index."""
        return nested_snapshot({str(number): shard for number, shard in enumerate(self._shards)})

    def restore(self, data: memoryview) -> None:
        """Replace all shards or, raising `ValueError` or what one of them raises, none."""
        parts = read_nested(data)
        if len(parts) != self._count:
            raise ValueError(f"the snapshot has {len(parts)} shards, this machine {self._count}")
        shards = self._new_shards()
        restore_into({str(number): shard for number, shard in enumerate(shards)}, parts)
        self._shards = shards
