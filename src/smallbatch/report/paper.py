"""What the paper concludes from each of its figures (Masters & Luschi 2018, arXiv 1804.07612).

The paper gives its accuracies in plots only. The one accuracy in its text is the 76 % below; no
other number may be quoted as the paper's.
"""

from __future__ import annotations

from dataclasses import dataclass

TITLE = "Masters & Luschi, “Revisiting Small Batch Training for Deep Neural Networks”"
REFERENCE = f"{TITLE}, arXiv 1804.07612, 2018"


@dataclass(frozen=True)
class PaperFigure:
    """One figure of the paper: the runs that it shows, and what the text concludes from it."""

    label: str
    study: str
    conclusion: str


_BN_CIFAR10 = "ResNet-32 with BN, CIFAR-10, augmentation"
_GHOST = "x: BN batch size, one curve per SGD batch size, each at its best η̃"

FIGURES: dict[str, PaperFigure] = {
    figure.label: figure
    for figure in (
        PaperFigure("1", "reduced AlexNet, no BN, CIFAR-10, no augmentation", "best m ≤ 8"),
        PaperFigure("2", "ResNet-8, no BN, CIFAR-10, no augmentation", "best m = 2 and 4"),
        PaperFigure(
            "3",
            "ResNet-20, no BN, CIFAR-10, no augmentation",
            "best m = 2 and 4; a small m eases the training of the deeper net",
        ),
        PaperFigure(
            "text",
            "ResNet-32, no BN, CIFAR-10, no augmentation",
            "only m = 2, 4 and 8 learn (best 76 %); every η̃ fails for m = 16 … 2048",
        ),
        PaperFigure(
            "4",
            "ResNet-32 with BN, no augmentation, η̃ = 2⁻⁸: convergence curves",
            "the curves are alike for 4 ≤ m ≤ 64 and worse beyond",
        ),
        PaperFigure(
            "5",
            "reduced AlexNet, BN in convolutions and fully connected layers, no augmentation",
            "best m = 8 … 64; better than without BN (Fig. 1) over a wide range",
        ),
        PaperFigure(
            "6",
            "reduced AlexNet, BN after convolutions only, no augmentation",
            "best m = 4 … 32; the same level as with BN everywhere (Fig. 5)",
        ),
        PaperFigure(
            "7",
            "ResNet-32 with BN, CIFAR-10, no augmentation",
            "best m = 4 or 8; the optimum η̃ is usable only for m ≤ 16",
        ),
        PaperFigure("8", _BN_CIFAR10, "best m = 4 or 8; the optimum η̃ is usable only for m ≤ 16"),
        PaperFigure(
            "9",
            "ResNet-32 with BN, CIFAR-100, augmentation",
            "best m = 4 or 8; the optimum η̃ is usable only for m ≤ 8",
        ),
        PaperFigure(
            "10",
            f"{_BN_CIFAR10}, with warm-up",
            "best still m = 4 and 8; quite good out to m = 128",
        ),
        PaperFigure(
            "11",
            "ResNet-32 with BN, CIFAR-100, augmentation, with warm-up",
            "best m = 4 … 16; a steeper loss beyond",
        ),
        PaperFigure(
            "12",
            "ResNet-50 with BN, ImageNet, augmentation, mean of 2 runs",
            "best m = 16 … 64; m = 64 is very sensitive to η̃",
        ),
        PaperFigure(
            "13",
            f"ResNet-32 with BN, augmentation, CIFAR-10 and CIFAR-100; {_GHOST}",
            "a smaller SGD batch is better; a BN batch of 4 or 8 is best for every SGD batch",
        ),
        PaperFigure(
            "14",
            "ResNet-50, ImageNet: BN batch size against SGD batch size",
            "a BN batch of 16 … 64 is best for every SGD batch",
        ),
        PaperFigure(
            "15",
            "summary: best CIFAR-10 accuracy against m, one curve per study",
            "the best is always below m = 32; without BN it still improves down to m = 2",
        ),
        PaperFigure(
            "16",
            "summary: range of η̃ with reliable convergence against m, per study",
            "the range shrinks as m grows",
        ),
        PaperFigure(
            "17",
            f"{_BN_CIFAR10}, 41 epochs",
            "longer training helps, large m most, but large m stays below small m",
        ),
        PaperFigure(
            "18",
            f"{_BN_CIFAR10}, 164 epochs",
            "longer training helps, large m most, but large m stays below small m",
        ),
    )
}


def paper_figure(label: str | None) -> PaperFigure | None:
    """The figure for a study's label: "8", "13a", "Fig. 8" or "text"; None if there is none."""
    if not label:
        return None
    key = label.lower().removeprefix("figure").removeprefix("fig").lstrip(". ").strip()
    return FIGURES.get(key) or FIGURES.get(key.rstrip("ab"))
