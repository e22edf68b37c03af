"""Models of the user's own: found in the project, built from the seed, refused in one line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from smallbatch.config.model_names import validate_model
from smallbatch.errors import UserError
from smallbatch.models import build_model
from smallbatch.models.norms import GhostBatchNorm
from tests.own_model import write_net

OWN = "nets.mine:Net"
DOUBLE = """
from torch import nn


class Net(nn.Linear):
    def forward(self, x):
        return super().forward(x.flatten(1).double())


def net(num_classes, in_chans):
    return Net(in_chans * 36, num_classes).double()
"""


MODES = """
import torch
from torch import nn

print("imported")


class Net(nn.Linear):
    def __init__(self, in_chans, num_classes, then):
        super().__init__(in_chans * 36, num_classes)
        self.then = then

    def forward(self, x):
        x = super().forward(nn.functional.dropout(x, 0.5, self.training).flatten(1))
        return self.then(x) if self.training else x


def two(num_classes, in_chans):
    return Net(in_chans, num_classes, lambda x: (x, x))


def fails(num_classes, in_chans):
    return Net(in_chans, num_classes, lambda x: x.view(7, 7))


def no_gradient(num_classes, in_chans):
    return Net(in_chans, num_classes, lambda x: x.detach())


def dropout(num_classes, in_chans):
    print("called")
    return Net(in_chans, num_classes, lambda x: x)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(write_net(tmp_path))
    return tmp_path


def build(model: str = OWN, norm: str = "batch", **changes: Any) -> nn.Module:
    arguments: dict[str, Any] = {"num_classes": 3, "in_chans": 2, "image_size": 6, "seed": 0,
                                 "batch_size": 8}  # fmt: skip
    return build_model(model, norm, **arguments | changes)


@pytest.mark.usefixtures("project")
def test_the_weights_follow_from_the_seed_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = build(), build(), build(seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    states = [model.state_dict() for model in (first, again, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert not torch.equal(states[0]["fc.weight"], states[2]["fc.weight"])
    torch.manual_seed(0)
    conv = nn.Conv2d(2, 6, 3, padding=1)  # the first that is drawn
    assert torch.equal(states[0]["body.0.weight"], conv.weight)
    assert first.training


@pytest.mark.usefixtures("project")
def test_plain_batch_norms_are_replaced() -> None:
    model = build(norm="ghost", bn_batch_size=4)
    assert isinstance(model.get_submodule("body.1"), GhostBatchNorm)
    assert isinstance(build(norm="group").get_submodule("body.1"), nn.GroupNorm)
    layer: Any = build(batch_size=128).get_submodule("body.1")
    assert layer.momentum == pytest.approx(0.1)
    with pytest.raises(UserError, match=r"^norm: 'none' is not possible for 'nets\.mine:Net', "):
        build(norm="none")


@pytest.mark.usefixtures("project")
def test_the_size_of_images_is_given_if_the_signature_takes_it() -> None:
    square: Any = build("nets.mine:sized", "none")
    oblong: Any = build("nets.mine:sized", "none", image_size=(4, 6))
    assert (square.seen, oblong.seen) == (6, (4, 6))


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("model", "line"),
    [
        ("nets.mine:Nett", "model: 'nets.mine:Nett': there is no 'Nett' (did you mean 'Net'?)"),
        ("nets.mien:Net", "nor installed (did you mean 'nets.mine'?)"),
        ("no_such_module:Net", "model: no module 'no_such_module' in "),
        ("nets/mine.py:Net", "allowed for a model of your own: module:factory"),
        ("..nets.mine:Net", "allowed for a model of your own: module:factory"),
        ("nets.mine:", "unknown model 'nets.mine:'"),
        ("nets.mine:nn", "is no class or function"),
        ("nets.mine:fails", "(num_classes=3, in_chans=2) fails: ValueError: bad (nets/mine.py, "),
        ("nets.mine:no_module", "returns int, allowed: a torch nn.Module"),
        ("torch.nn:Identity", "to (2, 2, 6, 6), allowed: logits of shape (2, 3)"),
        ("nets.broken:Net", "model: 'nets.broken' cannot be imported: ModuleNotFoundError"),
        ("nets.ends:Net", "model: 'nets.ends' cannot be imported: SystemExit: 0"),
        ("nets.leaves:net", "nets.leaves:net(num_classes=3, in_chans=2) fails: SystemExit: 0"),
        ("nets.double:net", "model: 'nets.double:net' does not take images of 2×6×6"),
        ("nets.odd:Complex", "'nets.odd:Complex': turn: found complex numbers, allowed: real ones"),
    ],
)
def test_bad_models_are_one_line(model: str, line: str) -> None:
    Path("nets/broken.py").write_text("import not_there_at_all\n")
    Path("nets/ends.py").write_text("raise SystemExit(0)\n")
    Path("nets/leaves.py").write_text("def net(**_):\n    raise SystemExit(0)\n")
    Path("nets/double.py").write_text(DOUBLE)
    with pytest.raises(UserError, match=re.escape(line)) as caught:
        build(model)
    assert "\n" not in str(caught.value)


def test_names_are_checked_without_the_module() -> None:
    validate_model(OWN, "batch")
    with pytest.raises(UserError, match="batch_conv"):
        validate_model(OWN, "batch_conv")


def test_an_edited_module_is_imported_again(project: Path) -> None:
    build()
    layers = project / "nets/layers.py"
    # Of another length: bytecode is told apart by a file's size and the second of its change.
    layers.write_text(layers.read_text().replace("nn.ReLU()", "nn.GELU('none')"))
    assert isinstance(build().get_submodule("body.2"), nn.GELU)


def test_two_folders_have_modules_of_the_same_name(project: Path, tmp_path: Path) -> None:
    build()
    other = write_net(tmp_path / "other")
    mine = other / "nets/mine.py"
    mine.write_text(mine.read_text().replace("block(in_chans, 6)", "block(in_chans, 9)").replace(
        "Linear(6", "Linear(9"))  # fmt: skip
    assert build(project=other).state_dict()["fc.weight"].shape == (3, 9)
    assert build(project=project).state_dict()["fc.weight"].shape == (3, 6)


@pytest.mark.parametrize(
    ("factory", "why"),
    [
        ("two", r"in training maps two images to tuple, allowed: logits of shape \(2, 3\)"),
        ("fails", r"fails in training: RuntimeError: shape '\[7, 7\]' is invalid"),
        ("no_gradient", "fails in training: RuntimeError: element 0 of tensors does not require"),
    ],
)
def test_a_model_that_differs_in_training_is_tried_there(
    project: Path, factory: str, why: str
) -> None:
    (project / "nets/modes.py").write_text(MODES)
    with pytest.raises(UserError, match=f"^model: 'nets.modes:{factory}' {why}"):
        build(f"nets.modes:{factory}", "none")


def test_the_trial_draws_nothing_and_standard_output_stays_free(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "nets/modes.py").write_text(MODES)
    first, second = (build("nets.modes:dropout", "none", seed=1) for _ in range(2))
    torch.manual_seed(1)
    expected = nn.Linear(72, 3)
    for built in (first, second):  # the first is tried in training
        assert torch.equal(built.get_parameter("weight"), expected.weight)
        assert built.get_parameter("weight").grad is None
    assert capsys.readouterr() == ("", "imported\n" + 3 * "called\n")
