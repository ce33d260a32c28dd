"""The service registry."""

import json

import pytest

from octopii.errors import CommandError
from octopii.machines import RegistryStateMachine
from octopii.machines.registry import EXPIRY_SECONDS


def test_registration_lookup_and_removal() -> None:
    """A service is found under its last registration until it is removed."""
    machine = RegistryStateMachine()
    assert machine.query(b"LOOKUP web") == machine.query(b"DESCRIBE web") == b"NOT_FOUND"
    assert machine.apply(b"REGISTER web 10.0.0.1 80") == b"REGISTERED"
    assert machine.apply(b"REGISTER web 10.0.0.2 81 zone=a=b tier=") == b"REGISTERED"
    assert machine.apply(b"LOOKUP web") == machine.query(b"LOOKUP web") == b"10.0.0.2:81"
    assert json.loads(machine.query(b"DESCRIBE web")) == {
        "name": "web",
        "address": "10.0.0.2",
        "port": 81,
        "metadata": {"zone": "a=b", "tier": ""},
        "last_heartbeat": 0,
    }
    assert machine.apply(b"DEREGISTER web") == b"OK"
    assert machine.apply(b"DEREGISTER web") == machine.apply(b"HEARTBEAT web") == b"NOT_REGISTERED"


def test_services_without_a_heartbeat_expire_by_replicated_time() -> None:
    """Compaction drops a service an hour after its last heartbeat or registration, not before."""
    machine = RegistryStateMachine()
    machine.clock.set(1_700_000_000.0)
    machine.apply(b"REGISTER silent 10.0.0.1 80")
    machine.apply(b"REGISTER alive 10.0.0.2 80")
    machine.clock.advance(EXPIRY_SECONDS)
    assert machine.apply(b"HEARTBEAT alive") == b"OK"
    machine.compact()
    assert machine.query(b"LOOKUP silent") == b"10.0.0.1:80"
    machine.clock.advance(1)
    machine.compact()
    assert machine.query(b"LOOKUP silent") == b"NOT_FOUND"
    assert machine.query(b"LOOKUP alive") == b"10.0.0.2:80"


@pytest.mark.parametrize(
    "command",
    [
        b"",
        b"REGISTER web 10.0.0.1",
        b"REGISTER web 10.0.0.1 65536",
        b"REGISTER web 10.0.0.1 -1",
        b"LOOKUP",
        b"LOOKUP a b",
    ]
    + [b"REGISTER web h 80 zone", b"REGISTER web h 80 =a", b"REGISTER web h 80 a=1 a=2", b"REGISTER \xff h 80"]
    + [b"REGISTER web h 80 " + b" ".join(b"k%d=v" % n for n in range(65)), b"HEARTBEAT", b"lookup web"],
)
def test_wrong_commands_are_refused(command: bytes) -> None:
    """Whatever does not fit raises CommandError and registers nothing."""
    machine = RegistryStateMachine()
    with pytest.raises(CommandError):
        machine.apply(command)
    assert machine.query(b"LOOKUP web") == b"NOT_FOUND"
