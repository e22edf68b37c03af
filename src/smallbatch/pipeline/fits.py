"""Whether the models of the studies take the images of a data set."""

from __future__ import annotations

from typing import TYPE_CHECKING

from smallbatch.errors import UserError

if TYPE_CHECKING:
    from smallbatch.config.params import Params
    from smallbatch.data.prepared import Meta


def check_models(params: Params, meta: Meta) -> None:
    """Build every model that is run, but for the paper's, which take images of any size.

    Pretrained weights in a file of the project's are tried too.

    Raises:
        UserError: A model does not take such images, or not with its norm.
    """
    from smallbatch.config.model_files import FROM_TIMM
    from smallbatch.engines.kinds import has_layers

    for name in params.running:
        study = params.studies[name]
        # Those of timm are only fetched for a training.
        weights = None if study.pretrained == FROM_TIMM else study.pretrained
        if has_layers(study.model) and not weights:
            continue
        from smallbatch.models import build_model

        batch_size = max(params.grid.batch_sizes)
        try:
            build_model(
                study.model, study.norm, num_classes=len(meta.classes), in_chans=meta.channels,
                image_size=(meta.height, meta.width), seed=0, batch_size=batch_size,
                bn_batch_size=study.at(batch_size)[0].bn_batch_size, pretrained=weights,
            )  # fmt: skip
        except UserError as error:
            raise UserError(f"studies.{name}.{error}") from None
