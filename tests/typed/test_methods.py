"""Stable names and declared errors of typed machines."""

from typing import Any

import msgspec
import pytest

from octopii.errors import CommandError
from octopii.typed import Method, TypedStateMachine, command, query
from octopii.typed.declared_errors import MAX_ARGUMENTS_BYTES


class Part(msgspec.Struct):
    sku: str
    left: int


class OutOfStock(CommandError):
    def __init__(self, part: Part, *, wanted: int = 1) -> None:
        super().__init__(f"only {part.left} of {part.sku}, not {wanted}")
        self.part = part
        self.wanted = wanted


class Plain(CommandError):
    """An error without an initialiser of its own."""


class Strange(CommandError):
    def __init__(self, thing, /, *, more: int = 1) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
        super().__init__("strange")
        self.thing = thing


class Undeclared(OutOfStock):
    """A subclass that is not declared itself."""


class Store(TypedStateMachine):
    errors = (OutOfStock, Plain, Strange)

    def __init__(self) -> None:
        self.stock: dict[str, int] = {}

    @command(name="add")
    def put(self, sku: str, n: int) -> int:
        self.stock[sku] = self.stock.get(sku, 0) + n
        return self.stock[sku]

    @command(name="reserve/1")
    def take(self, sku: str, n: int) -> int:
        left = self.stock.get(sku, 0)
        if left < n:
            raise OutOfStock(Part(sku, left), wanted=n)
        return left - n

    @command
    def fail(self, how: str) -> None:
        raise {
            "plain": Plain("a", 2, None),
            "strange": Strange([1, {"a": 2}]),
            "cannot travel": Strange(object()),
            "too large": Strange("x" * MAX_ARGUMENTS_BYTES),
            "undeclared": Undeclared(Part("x", 1)),
            "other": CommandError("other"),
        }[how]

    @query(name="n")
    def count(self, sku: str) -> int:
        if sku not in self.stock:
            raise Plain(sku)
        return self.stock[sku]


def refused(method: Method[..., Any], call: bytes) -> CommandError:
    """What a caller gets whose call was refused: text and what was declared have travelled, and nothing else."""
    with pytest.raises(CommandError) as caught:
        (Store().query if method.is_query else Store().apply)(call)
    travelled = CommandError(str(caught.value))
    travelled.declared = caught.value.declared
    return method.error(travelled)


def test_a_stable_name_is_what_stands_in_the_log() -> None:
    """What a method is called in Python, and where it stands, means nothing to entries that are in the log."""
    assert msgspec.msgpack.decode(Store.put.encode("apple", 3)) == ["add", ["apple", 3]]
    machine = Store()
    assert Store.put.decode(machine.apply(msgspec.msgpack.encode(["add", ["apple", 3]]))) == 3
    assert Store.count.decode(machine.query(msgspec.msgpack.encode(["n", ["apple"]]))) == 3
    for name in ("put", "take", "count"):
        with pytest.raises(CommandError, match="there is no command"):
            machine.apply(msgspec.msgpack.encode([name, ["apple", 3]]))


CONTRACT = ["apply", "query", "snapshot", "restore", "compact", "clock", "rng", "migrate", "errors", "snapshot_version"]


@pytest.mark.parametrize("name", CONTRACT)
@pytest.mark.parametrize("decorator", [command, query])
def test_names_of_the_contract_are_refused_when_the_class_is_made(name: str, decorator: Any) -> None:
    """Neither the method nor its stable name may be one that the library uses itself."""

    def method(self: TypedStateMachine) -> None:
        return None

    with pytest.raises(TypeError, match=f"'{name}' is the state machine's own name"):
        type("Machine", (TypedStateMachine,), {name: decorator(method)})
    with pytest.raises(TypeError, match=f"'{name}' is the state machine's own name"):
        type("Machine", (TypedStateMachine,), {"fine": decorator(name=name)(method)})


def test_a_name_is_given_once() -> None:
    """Two methods of one stable name are refused when the class is made, inherited ones included."""
    with pytest.raises(TypeError, match="two methods of the name 'add'"):

        class Doubled(Store):
            @command
            def add(self) -> None:
                return None

    with pytest.raises(TypeError, match="two methods of the name 'n'"):

        class Mixed(TypedStateMachine):
            @command(name="n")
            def one(self) -> None:
                return None

            @query(name="n")
            def other(self) -> None:
                return None


def test_an_override_takes_its_bases_place() -> None:
    """The subclass's method runs, under its name; what is no method any more cannot be called."""

    class Other(Store):
        fail = None  # type: ignore[assignment]

        @command(name="reserve/2")
        def take(self, sku: str, n: int) -> int:
            return -1

    machine = Other()
    assert machine.apply(Other.take.encode("x", 1)) == msgspec.msgpack.encode(-1)
    for name in ("reserve/1", "fail"):
        with pytest.raises(CommandError, match="there is no command"):
            machine.apply(msgspec.msgpack.encode([name, []]))


@pytest.mark.parametrize(("options", "text"), [({"name": ""}, "a name is"), ({"since": 0}, "since is a whole")])
def test_unfit_options_are_refused(options: dict[str, Any], text: str) -> None:
    """A name needs characters, a version is a number from 1 on."""
    with pytest.raises(TypeError, match=text):
        command(**options)(lambda self: None)


def test_a_declared_error_reaches_the_caller_as_itself() -> None:
    """Type, text, arguments (structs and keywords too) and attributes are those that the machine raised."""
    error = refused(Store.take, Store.take.encode("apple", 2))
    assert type(error) is OutOfStock
    assert (error.part, error.wanted, str(error)) == (Part("apple", 0), 2, "only 0 of apple, not 2")
    plain = refused(Store.count, Store.count.encode("pear"))
    assert type(plain) is Plain
    assert plain.args == ("pear",)
    assert refused(Store.fail, Store.fail.encode("plain")).args == ("a", 2, None)
    strange = refused(Store.fail, Store.fail.encode("strange"))
    assert isinstance(strange, Strange)
    assert strange.thing == [1, {"a": 2}]


@pytest.mark.parametrize("how", ["cannot travel", "too large", "undeclared", "other"])
def test_what_cannot_travel_is_a_command_error_with_the_text(how: str) -> None:
    """An argument that no message holds, or a class that is not declared, leaves the text."""
    error = refused(Store.fail, Store.fail.encode(how))
    assert type(error) is CommandError
    assert str(error) in ("strange", "only 1 of x, not 1", "other")


def test_a_caller_that_does_not_know_the_error_gets_its_text() -> None:
    """An older or newer program, whose class has other errors or whose error has another initialiser."""
    error = CommandError("the text")
    for declared in [("Removed", b"\x90"), ("OutOfStock", b"\x90"), ("OutOfStock", b"\xc1"), ("Strange", b"\x00")]:
        error.declared = declared
        assert Store.take.error(error) is error


def test_an_inherited_method_may_raise_what_the_subclass_declares() -> None:
    """Errors are those of the class that the method was taken from."""

    class Late(CommandError):
        pass

    class Strict(Store):
        errors = (*Store.errors, Late)  # type: ignore[assignment]

    error = CommandError("late")
    error.declared = ("Late", b"\x90")
    assert type(Strict.take.error(error)) is Late
    assert type(Store.take.error(error)) is CommandError


def test_unfit_errors_are_refused_when_the_class_is_made() -> None:
    """An error is a subclass of CommandError with a name of its own and arguments that can travel."""

    def declare(*errors: Any) -> None:
        type("Machine", (TypedStateMachine,), {"errors": errors})

    class Many(CommandError):
        def __init__(self, *things: int) -> None:
            super().__init__(*things)

    for unfit in (ValueError, CommandError, "OutOfStock"):
        with pytest.raises(TypeError, match="subclass of CommandError"):
            declare(unfit)
    with pytest.raises(TypeError, match="things cannot be a parameter"):
        declare(Many)
    with pytest.raises(TypeError, match="two classes named Plain"):
        declare(Plain, type("Plain", (CommandError,), {}))
    with pytest.raises(TypeError, match="is a tuple"):
        type("Machine", (TypedStateMachine,), {"errors": [Plain]})


def test_options_are_for_queries_and_calls() -> None:
    """A consistency belongs to a query, a timeout to any call; the method itself stays as it was."""
    stale = Store.count.options(consistency="stale", timeout=2.0)
    assert (stale.consistency, stale.timeout, stale.name) == ("stale", 2.0, "n")
    assert (Store.count.consistency, Store.count.timeout) == ("linearizable", None)
    assert Store.take.options(timeout=1.0).timeout == 1.0
    with pytest.raises(ValueError, match="is a command"):
        Store.take.options(consistency="stale")


# --- arguments that do not fit --------------------------------------------------------------------------------------


class Queue(TypedStateMachine):
    def __init__(self) -> None:
        self.jobs: list[str] = []

    @command
    def submit(self, payload: str) -> int:
        self.jobs.append(payload)
        return len(self.jobs)

    @query
    def waiting(self, timeout: int = 0) -> int:
        return len(self.jobs)


@pytest.mark.parametrize(
    ("args", "kwargs", "text"),
    [
        ((), {}, "Queue.submit(): missing a required argument: 'payload'"),
        (("a", "b"), {}, "Queue.submit(): too many positional arguments"),
        ((1,), {}, "Queue.submit(): Expected `str`, got `int` - at `$[0]`"),
        (("a",), {"colour": 1}, "Queue.submit(): got an unexpected keyword argument 'colour'"),
        (
            ("a",),
            {"timeout": 5},
            "Queue.submit(): got an unexpected keyword argument 'timeout'; "
            "all arguments are the method's own, say Queue.submit.options(timeout=5) instead",
        ),
    ],
)
def test_arguments_that_do_not_fit_name_the_method(args: tuple[Any, ...], kwargs: dict[str, Any], text: str) -> None:
    """And those that `options` takes say how."""
    with pytest.raises(TypeError) as caught:
        Queue.submit.encode(*args, **kwargs)
    assert str(caught.value) == text


def test_options_are_named_only_where_they_are_taken() -> None:
    """A command has no consistency, and a parameter of the method's own is no option."""
    with pytest.raises(TypeError, match=r"'consistency'$"):
        Queue.submit.encode("a", consistency="stale")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"say Queue\.waiting\.options\(consistency='stale'\) instead$"):
        Queue.waiting.encode(timeout=1, consistency="stale")  # type: ignore[call-arg]


def test_what_is_no_typed_call_is_told_where_calls_come_from() -> None:
    """Text typed at a shell is refused with a way out."""
    with pytest.raises(CommandError, match=r"^not a typed call: .* takes calls from programs, by client\.call\("):
        Queue().apply(b"submit x")
    with pytest.raises(CommandError, match="not a typed call: "):
        Queue().query(b"waiting")
