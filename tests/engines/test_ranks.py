"""A run by several processes is the run by one: weights, running statistics, rows, divergence."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from smallbatch.engines.ranks import Ranks, shares
from smallbatch.errors import UserError
from tests.engines.ranked import Case, train_by
from tests.own_model import write_net

FLOAT32: dict[str, Any] = {"dtype": torch.float32}
ADAMW = {"optimizer": "adamw"}
# By two ranks: their shares are equal or not; BN batches are a share's, or span both.
TWO = {
    "none": Case("none", 12),
    "none, uneven": Case("none", 11, more={"optimizer": "momentum"}),
    "group": Case("group", 12, more=ADAMW),
    "ghost": Case("ghost", 12, 3),
    "ghost, uneven": Case("ghost", 12, 4),
    "ghost with a rest": Case("ghost", 11, 4),
    "ghost over both": Case("ghost", 12, 12),
    "batch": Case("batch", 12),
    "batch of an own model": Case("batch", 12, model="nets.mine:Net"),
    "ghosts of an own model": Case("batch", 16, model="nets.odd:Ghosts"),
    "micro-batches": Case("none", 12, micro=4),
    "micro-batches of ghost": Case("ghost", 12, 2, micro=4),
    "streamed": Case("ghost", 12, 3, streamed=True, **FLOAT32),
    "streamed, uneven": Case("group", 11, streamed=True, **FLOAT32),
    "batch in float32": Case("batch", 12, **FLOAT32),
    "ghost in float32": Case("ghost", 12, 3, **FLOAT32),
    "diverges": Case("none", 12, rate=2.0**5, **FLOAT32),
}
# By four: pairs share a BN batch, or each rank has less than an even share.
FOUR = {
    "ghost over pairs": Case("ghost", 12, 6, updates=20),
    "ghost over all": Case("ghost", 12, 12, more=ADAMW, updates=20),
    "one and two examples": Case("none", 5, model="nets.odd:Tied"),
}
REFUSED = {
    "uneven batch": Case("batch", 11),
    "micro-batches of batch": Case("batch", 12, micro=4),
    "two BN batches": Case("batch", 12, model="nets.odd:Mixed"),
    "timm's own": Case("batch", 12, model="efficientnet_b0"),
}
pytestmark = pytest.mark.slow


Found = dict[int, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Found]:
    """What two and four ranks have in the end; the tests run in the folder of the own models."""
    with pytest.MonkeyPatch.context() as patch:
        folder = write_net(tmp_path_factory.mktemp("ranks"))
        patch.chdir(folder)
        yield train_by({2: TWO | REFUSED, 4: FOUR}, folder)


def check(case: Case, found: list[Any]) -> None:
    first, *others = found
    one = case.train()
    assert (first.outcome, first.diverged_at) == (one.outcome, one.diverged_at)
    assert first.weights.keys() == one.weights.keys()
    precise = case.dtype == torch.float64
    rtol, atol = (1e-10, 1e-12) if precise else (2e-5, 2e-6)
    for name, value in one.weights.items():
        torch.testing.assert_close(first.weights[name], value, rtol=rtol, atol=atol, msg=name)
        assert all(torch.equal(first.weights[name], other.weights[name]) for other in others)
    for row, its in zip(one.rows, first.rows, strict=True):
        assert its == pytest.approx(row, rel=1e-9 if precise else 1e-4, nan_ok=True)
    for key, score in one.final.items():
        assert first.final[key] == (score and pytest.approx(score, rel=1e-9 if precise else 1e-4))


@pytest.mark.parametrize("name", TWO)
def test_two_ranks_are_one_process(found: Found, name: str) -> None:
    first, second = (rank[name] for rank in found[2])
    check(TWO[name], [first, second])
    if name == "diverges":
        assert first.outcome == "diverged"
        assert second.diverged_at == first.diverged_at
    else:
        assert first.rows[-1]["updates"] >= TWO[name].updates


@pytest.mark.parametrize("name", FOUR)
def test_four_ranks_are_one_process(found: Found, name: str) -> None:
    check(FOUR[name], [rank[name] for rank in found[4]])


def test_what_cannot_be_divided_is_refused_in_a_line(found: Found) -> None:
    first, second = found[2]
    assert all(first[name] == second[name] for name in REFUSED)
    assert first["uneven batch"] == (
        "compute.ranks: found 2 at batch size 11 with a BN batch of 11, allowed: 1, 11"
    )
    assert "micro_batch: found 4, but the model's batch norm" in first["micro-batches of batch"]
    assert first["two BN batches"] == (
        "compute.ranks: found 2 at batch size 12 with a model that normalises over 4 and over 12 "
        "examples; allowed: ranks that share none of these"
    )
    assert first["timm's own"] == (
        "compute.ranks: timm.layers.norm_act.BatchNormAct2d cannot span ranks, allowed: norm ghost "
        "with a bn_batch_size that fits a rank's share, or ranks 1"
    )


@pytest.mark.parametrize(
    ("m", "together", "sizes", "sharing"),
    [
        (12, 1, [6, 6], 1),
        (11, 1, [5, 6], 1),
        (12, 4, [4, 8], 1),
        (11, 4, [4, 7], 1),
        (12, 12, [6, 6], 2),
        (12, 6, [3, 3, 3, 3], 2),
        (12, 12, [3, 3, 3, 3], 4),
        (7, 1, [1, 2, 2, 2], 1),
        (9, 3, [3, 6], 1),
        (9, 3, [9], 1),
    ],
)
def test_shares_are_consecutive_and_hold_whole_bn_batches_or_equal_parts_of_one(
    m: int, together: int, sizes: list[int], sharing: int
) -> None:
    parts, found = shares(m, together, len(sizes))
    positions = [i for part in parts for i in range(m)[part]]
    assert positions == list(range(m))
    assert [len(range(m)[part]) for part in parts] == sizes
    assert found == sharing
    for part in parts:
        assert part.start % together == 0 or sharing > 1


@pytest.mark.parametrize(
    ("m", "together", "size", "allowed"),
    [
        (3, 1, 4, "found 4 at batch size 3, allowed: 1 to 3"),
        (16, 4, 6, "found 6 at batch size 16 with a BN batch of 4, allowed: 1 to 4, 8, 16"),
        (12, 12, 5, "found 5 at batch size 12 with a BN batch of 12, allowed: 1, 2, 3, 4, 6, 12"),
        (11, 4, 4, "found 4 at batch size 11 with a BN batch of 4, allowed: 1 to 3"),
    ],
)
def test_other_numbers_of_ranks_are_refused(m: int, together: int, size: int, allowed: str) -> None:
    with pytest.raises(UserError) as refused:
        shares(m, together, size)
    assert str(refused.value) == f"compute.ranks: {allowed}"


def test_random_layers_draw_by_seed_update_and_rank() -> None:
    def drawn(rank: int, seed: int, update: int) -> float:
        Ranks(rank, 2).seed(seed, update)
        return float(torch.rand(()))

    with torch.random.fork_rng(devices=[]):
        keys = [(rank, seed, update) for rank in (0, 1) for seed in (0, 1) for update in (0, 1)]
        found = [drawn(*key) for key in keys]
        assert len(set(found)) == len(keys)
        assert [drawn(*key) for key in keys] == found
        torch.manual_seed(5)
        before = torch.get_rng_state()
        Ranks().seed(0, 0)  # a process alone goes on drawing
        assert torch.equal(torch.get_rng_state(), before)
