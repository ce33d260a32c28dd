"""Importing what somebody names on the command line: a class of their own, as "package.module:Class"."""

import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar, cast

from octopii.errors import ConfigError

T = TypeVar("T")


def load_class(name: str, *, option: str, base: Callable[..., T]) -> type[T]:
    """Import a subclass of `base`; raises `ConfigError` that says what is wrong with the option."""
    assert isinstance(base, type)  # typed as what makes one, because an abstract class is none that could be called
    field = option.removeprefix("--")
    module_name, colon, class_name = name.partition(":")
    if not colon or not module_name or not class_name:
        raise ConfigError(f'{option} is "package.module:Class", not {name!r}', field=field)
    if "" not in sys.path:
        sys.path.insert(0, "")  # a module beside the place where the command is run
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        text = f"the module {module_name} of {option} cannot be imported: {type(error).__name__}: {error}"
        if isinstance(error, ModuleNotFoundError) and error.name == module_name.partition(".")[0]:
            text += "; it is looked for among the installed packages and in the folder where the command is run"
        else:
            text += _place_in_it(error)
        raise ConfigError(text, field=field) from error
    found = getattr(module, class_name, None)
    if found is None:
        raise ConfigError(f"the module {module_name} of {option} has no {class_name}", field=field)
    if not isinstance(found, type) or not issubclass(found, base):
        raise ConfigError(f"{name} is no subclass of octopii.{base.__name__}, as {option} has to be", field=field)
    return cast(type[T], found)


def _place_in_it(error: BaseException) -> str:
    """Where a module failed: the innermost line that is not of this package, or nothing where none was run."""
    ours = ("<frozen", importlib.__file__, str(Path(__file__).parents[1]))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(ours)]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
