"""What programs may import is there, documented, and nothing else."""

import importlib
import importlib.resources
import inspect
import pkgutil

import pytest

import octopii

ERRORS = """
    OctopiiError
    NotApplied NoLeader Overloaded TooLarge DiskFull ShuttingDown VersionNotActive
    OutcomeUnknown CallTimeout ConnectionLost SessionExpired
    Rejected CommandError ApplyFailed QueryNotSupported
    ConfigError
    RefusedError WrongCluster WipedNode RemovedNode BadCertificate
    WalrusError CorruptLogError LogInUse LogPoisoned LogClosed EntryTooLarge InvalidTopic OffsetTrimmedError
"""

# The names that users rely on: taking one away breaks somebody's program.
PROMISED = {
    "octopii.errors": ERRORS,
    "octopii.raft": "RawNode Ready RaftConfig Message MemoryStorage",
    "octopii.walrus": "Walrus Entry StrictlyAtOnce AtLeastOnce SyncEach Milliseconds NoFsync",
}


@pytest.mark.parametrize("module", sorted(PROMISED))
def test_promised_names_are_there(module: str) -> None:
    """Every name that the manual promises can be imported from where the manual says."""
    loaded = importlib.import_module(module)
    missing = [name for name in PROMISED[module].split() if not hasattr(loaded, name)]
    assert missing == []


def packages() -> list[str]:
    """All importable modules of the package that say what they offer."""
    found = ["octopii"]
    for module in pkgutil.walk_packages(octopii.__path__, "octopii."):
        if not module.name.endswith("__main__"):
            found.append(module.name)
    return found


@pytest.mark.parametrize("name", packages())
def test_everything_in_all_exists_and_is_documented(name: str) -> None:
    """Each module can be imported; what its `__all__` lists is there, and each class and function explains itself."""
    module = importlib.import_module(name)
    for exported in getattr(module, "__all__", ()):
        value = getattr(module, exported)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), f"{name}.{exported} has no docstring"


def test_errors_have_one_root() -> None:
    """A program that catches `OctopiiError` catches everything that this package raises on purpose."""
    errors = importlib.import_module("octopii.errors")
    for name in ERRORS.split():
        assert issubclass(getattr(errors, name), errors.OctopiiError)
    classes = [value for value in vars(errors).values() if inspect.isclass(value)]
    defined = {value.__name__ for value in classes if value.__module__ == errors.__name__}
    assert set(ERRORS.split()) <= defined
    assert all(issubclass(getattr(errors, name), errors.OctopiiError) for name in defined)


def test_timeouts_are_also_the_language_s_own() -> None:
    """`except TimeoutError` works on our calls as on any others."""
    errors = importlib.import_module("octopii.errors")
    assert issubclass(errors.CallTimeout, TimeoutError)


def test_the_package_is_marked_as_typed() -> None:
    """Type checkers read our annotations, also when the package was installed by pip."""
    assert importlib.resources.files("octopii").joinpath("py.typed").is_file()
