"""Which models and norms exist and go together; checked without importing torch or timm."""

import re
from collections.abc import Iterable
from difflib import get_close_matches

from smallbatch.errors import UserError

ALIASES = {
    "resnet8": "smallbatch_resnet8",
    "resnet20": "smallbatch_resnet20",
    "resnet32": "smallbatch_resnet32",
    "alexnet": "smallbatch_alexnet",
}
OWN = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)", re.ASCII)
"""The name of a model of the user's own: `package.module:factory`."""
_LONGEST = 100  # characters of a name that are compared with known names
NORMS = ("none", "batch", "batch_conv", "ghost", "group")


def registered_name(model: str) -> str:
    """The timm name of a model; only the paper's four have short names."""
    return ALIASES.get(model, model)


def own_model(model: str) -> tuple[str, str] | None:
    """Module and attribute that a model of the user's own is named by; None for other models."""
    match = OWN.fullmatch(model)
    return (match.group(1), match.group(2)) if match else None


def validate_model(
    model: str,
    norm: str = "none",
    *,
    batch_size: int | None = None,
    bn_batch_size: int | None = None,
) -> None:
    """Check a model and its normalisation by their names and numbers.

    Args:
        model: `resnet8`, `resnet20`, `resnet32`, `alexnet`, the name of a timm model, or
            `module:factory` for one of the user's own, of which only the form is checked.
        norm: One of `NORMS`.
        batch_size: Examples per weight update (m); None skips the checks that need it.
        bn_batch_size: Examples per sub-batch of ghost batch norm.

    Raises:
        UserError: The model or norm is unknown (the message has the closest match), or they do not
            go together. Only for a name outside the paper's four is timm imported.
    """
    _check_name(model)
    validate_norm(model, norm, bn_batch_size)
    if batch_size is not None:
        _check_batch_size(norm, batch_size, bn_batch_size)


def validate_norm(model: str, norm: str, bn_batch_size: int | None) -> None:
    """Check that `norm` exists for `model`, and that it has a sub-batch size if it needs one.

    Raises:
        UserError: One of these is not so, or a sub-batch size is given but not needed.
    """
    if norm not in NORMS:
        raise UserError(f"norm: unknown norm {norm!r}{_hint(norm, NORMS)}; allowed: {_join(NORMS)}")
    if norm == "batch_conv" and registered_name(model) != "smallbatch_alexnet":
        allowed = _join(name for name in NORMS if name != norm)
        raise UserError(
            f"norm: 'batch_conv' (convolutions but not hidden FC layers) exists for alexnet only: "
            f"{model!r} has no hidden FC layer of this package's; allowed: {allowed}"
        )
    if norm == "ghost" and (bn_batch_size is None or bn_batch_size < 2):
        found = "none given" if bn_batch_size is None else f"found {bn_batch_size}"
        raise UserError(f"bn_batch_size: {found}; norm 'ghost' needs a whole number of at least 2")
    if norm != "ghost" and bn_batch_size is not None:
        raise UserError(
            f"bn_batch_size: found {bn_batch_size} with norm {norm!r}; allowed with 'ghost' only"
        )


def _check_name(model: str) -> None:
    """Raise a UserError unless `model` is of the paper's four, of timm's, or of one's own."""
    if model in ALIASES or model in ALIASES.values():
        return
    if re.search(r"\.py:|^[./\\].*:", model):
        raise UserError(
            f"model: found {model!r}; allowed for a model of your own: module:factory, as `import` "
            "names the module, such as 'nets.mine:Net' for the class Net in nets/mine.py"
        )
    if own_model(model):
        return
    import timm

    known = (*ALIASES, *timm.list_models())
    # A name may have a tag, as timm's pages show it: of which weights the model is.
    if model not in known and model not in timm.list_models(pretrained=True):
        raise UserError(
            f"model: unknown model {model!r}{_hint(_architecture(model), known)}; "
            f"allowed: {_join(ALIASES)}, any model of timm.list_models(), or "
            "module:factory of your own"
        )


def _architecture(model: str) -> str:
    """A model's name without the hub it comes from and the weights it would have, as of now."""
    from timm.models import get_deprecated_models

    name = re.split(r"[:/]", model.partition("@")[0].rstrip("/"))[-1]
    return str(get_deprecated_models().get(name, name)).partition(".")[0]


def _check_batch_size(norm: str, batch_size: int, bn_batch_size: int | None) -> None:
    """Raise a UserError if a batch norm would see a single example."""
    if norm in ("batch", "ghost") and batch_size < 2:
        raise UserError(
            f"batch_size: found {batch_size} with norm {norm!r}; allowed: at least 2, "
            f"because the variance over one example is zero or undefined"
        )
    if bn_batch_size is None:
        return
    if bn_batch_size > batch_size:
        raise UserError(
            f"bn_batch_size: found {bn_batch_size} with batch_size {batch_size}; "
            f"allowed: 2 to batch_size"
        )
    if batch_size % bn_batch_size == 1:
        raise UserError(
            f"bn_batch_size: found {bn_batch_size} with batch_size {batch_size}, which leaves a "
            f"last sub-batch of one example; allowed: a size whose remainder is not 1"
        )


def _hint(found: str, known: tuple[str, ...]) -> str:
    """The closest match, to be inserted into an error line."""
    matches = get_close_matches(found[:_LONGEST], known, n=1)  # which takes long for a long name
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def _join(names: Iterable[str]) -> str:
    return ", ".join(names)
