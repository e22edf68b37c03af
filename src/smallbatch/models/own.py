"""Models of the user's own: classes or functions of a project, found by their names."""

from __future__ import annotations

import importlib
import inspect
import random
import sys
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, redirect_stdout
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from smallbatch import modules
from smallbatch.config.model_files import code_digest
from smallbatch.config.model_names import own_model
from smallbatch.errors import Stopping, UserError, first_line, is_out_of_memory

# By project, name and digest of the source: an edited module is imported again.
_imported: dict[tuple[Path, str, str], Callable[..., Any]] = {}
_trains: set[tuple[Any, ...]] = set()  # factories and images whose models were seen to train


def build_own(
    name: str, side: tuple[int, int], shape: dict[str, Any], project: Path | None = None
) -> nn.Module:
    """Build a model of the user's own and try it on a blank image.

    The caller has seeded torch's generator. The factory is called with ``num_classes`` and
    ``in_chans``, and with ``img_size`` if its signature names that: one number for squares, else
    (height, width).

    Args:
        name: `package.module:factory`.
        side: Height and width of the images.
        shape: ``num_classes`` and ``in_chans``.
        project: The folder of the module; by default the current one. What is not found there may
            be installed.

    Raises:
        UserError: There is no such module or factory; it fails, makes no module of torch, or one
            that does not map such images to logits.
    """
    project = (project or Path.cwd()).resolve()
    # What it prints goes to standard error, as standard output may be JSON.
    with modules.in_front(project), redirect_stdout(sys.stderr):
        factory = _factory(name, project)
        # What the module drew when it was imported is not drawn for the next model.
        torch.default_generator.manual_seed(torch.initial_seed())
        arguments = dict(shape)
        try:
            if "img_size" in inspect.signature(factory).parameters:
                arguments["img_size"] = side[0] if side[0] == side[1] else side
        except (TypeError, ValueError):  # no signature, as of some classes in C
            pass
        called = ", ".join(f"{key}={value}" for key, value in arguments.items())
        try:
            built = factory(**arguments)
        except (Exception, SystemExit) as error:
            raise UserError(f"model: {name}({called}) fails: {_reason(error)}") from error
        if not isinstance(built, nn.Module):
            raise UserError(
                f"model: {name}({called}) returns {type(built).__name__}, allowed: a torch "
                "nn.Module"
            )
        image, classes = (shape["in_chans"], *side), shape["num_classes"]
        _try(built, name, image, classes)
        if (seen := (factory, image, classes)) not in _trains:
            with generators_kept():
                _try_to_train(lambda: factory(**arguments), built, name, image, classes)
            _trains.add(seen)
    return built.train()


def _try(model: nn.Module, name: str, image: tuple[int, int, int], classes: int) -> None:
    found = f"images of {'×'.join(map(str, image))} (channels × height × width)"
    try:
        with torch.no_grad():
            output = model.float().eval()(torch.zeros(2, *image))  # float32, as it is trained
    except (Exception, SystemExit) as error:
        raise UserError(f"model: {name!r} does not take {found}: {_reason(error)}") from error
    _refuse_other_shapes(output, f"{name!r} maps two {found}", classes)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise UserError(f"model: {name!r} has no parameter that is trained")
    for key, value in model.state_dict().items():
        if value.is_complex():
            raise UserError(f"model: {name!r}: {key}: found complex numbers, allowed: real ones")


def _try_to_train(
    build: Callable[[], nn.Module],
    built: nn.Module,
    name: str,
    image: tuple[int, int, int],
    classes: int,
) -> None:
    """Compute a gradient in training mode, where some models return more than logits, or fail.

    That is done with another model: the one that is trained must begin as it was built, and a copy
    of it would share what its hooks refer to.
    """
    try:
        if (twin := build()) is built:
            return
        with torch.enable_grad():
            output = twin.float().train()(torch.zeros(2, *image))
            if isinstance(output, Tensor):
                output.sum().backward()
    except (Exception, SystemExit) as error:
        raise UserError(f"model: {name!r} fails in training: {_reason(error)}") from error
    _refuse_other_shapes(output, f"{name!r} in training maps two images", classes)


@contextmanager
def generators_kept() -> Generator[None, None, None]:
    """Leave the global generators of random numbers as they were."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - that of other code
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def _refuse_other_shapes(output: Any, maps: str, classes: int) -> None:
    if not isinstance(output, Tensor) or output.shape != (2, classes):
        shown = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UserError(f"model: {maps} to {shown}, allowed: logits of shape (2, {classes})")


def _factory(name: str, project: Path) -> Callable[..., Any]:
    if (own := own_model(name)) is None:
        raise ValueError(name)
    module, attribute = own
    key = (project, name, code_digest(module, project))
    if key not in _imported:
        files = modules.of_project(module, project)
        with _only_from(files):
            found: Any = _import(module, project)
            for part in attribute.split("."):
                if not hasattr(found, part):
                    raise UserError(_missing(name, part, found))
                found = getattr(found, part)
        if not callable(found):
            raise UserError(f"model: {name!r} is no class or function")
        _imported[key] = found
    return _imported[key]


def _import(module: str, project: Path) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name and (module == error.name or module.startswith(f"{error.name}.")):
            raise UserError(
                f"model: no module {module!r} in {project}, nor installed{_close(module, project)}"
            ) from None
        raise UserError(f"model: {module!r} cannot be imported: {_reason(error)}") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"model: {module!r} cannot be imported: {_reason(error)}") from error


@contextmanager
def _only_from(files: Iterable[str]) -> Generator[None, None, None]:
    """Import these modules anew, not as they were, perhaps in another folder, and leave those."""
    names = {
        ".".join(name.split(".")[: i + 1]) for name in files for i in range(name.count(".") + 1)
    }
    before = {name: sys.modules.pop(name) for name in names if name in sys.modules}
    try:
        yield
    finally:
        sys.modules.update(before)


def _close(module: str, project: Path) -> str:
    beside = [file.stem for file in (project / module.replace(".", "/")).parent.glob("*.py")]
    parent = module.rpartition(".")[0]
    return _hint(module, [f"{parent}.{name}" if parent else name for name in beside])


def _missing(name: str, part: str, where: Any) -> str:
    known = [it for it in vars(where) if not it.startswith("__")]
    return f"model: {name!r}: there is no {part!r}{_hint(part, known)}"


def _hint(found: str, known: Iterable[str]) -> str:
    matches = get_close_matches(found[:100], list(known), n=1)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


@contextmanager
def its_errors_told(name: str) -> Generator[None, None, None]:
    """Within this block what an own model raises in training is said as such, not as our fault.

    Raises:
        UserError: An error came from a file of the project.
    """
    try:
        yield
    except (UserError, Stopping):
        raise
    except Exception as error:
        if own_model(name) and not is_out_of_memory(error) and (at := _line_of_project(error)):
            raise UserError(f"model: {name!r} fails in training: {_said(error)}{at}") from error
        raise


def _reason(error: BaseException) -> str:
    return f"{_said(error)}{_line_of_project(error)}"


def _said(error: BaseException) -> str:
    line = first_line(error)
    return line if line == type(error).__name__ else f"{type(error).__name__}: {line}"


def _line_of_project(error: BaseException) -> str:
    """The last line of the project's own code that had a part in an error; empty if none had."""
    project, foreign = Path.cwd().resolve(), (sys.prefix, Path(__file__).parents[1])
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        file = Path(frame.filename)
        if file.is_relative_to(project) and not any(map(file.is_relative_to, foreign)):
            return f" ({file.relative_to(project)}, line {frame.lineno})"
    return ""
