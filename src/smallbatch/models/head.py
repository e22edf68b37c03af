"""The classifier, in the form that timm's users expect and can replace."""

from torch import nn


def make_classifier(
    in_features: int, num_classes: int, global_pool: str | None = None
) -> nn.Linear | nn.Identity:
    """An FC layer with a bias, or an identity for 0 classes (features instead of logits).

    Args:
        in_features: Inputs of the classifier.
        num_classes: Its outputs.
        global_pool: None or `avg`; timm's other pools do not exist here.

    Raises:
        ValueError: Another pool, or a negative number of classes.
    """
    if global_pool not in (None, "avg"):
        raise ValueError(f"global_pool: found {global_pool!r}; allowed: 'avg'")
    if num_classes < 0:
        raise ValueError(f"num_classes: found {num_classes}; allowed: 0 or more")
    return nn.Linear(in_features, num_classes) if num_classes else nn.Identity()
