"""torchlet.data under PyTorch's name, with the module paths that PyTorch keeps its parts in."""

import sys

from torchlet.data import *  # noqa: F403  exactly the names of torchlet.data
from torchlet.data import __all__ as __all__
from torchlet.data import collate, dataloader, dataset, sampler, worker

distributed = sampler
_utils = collate
for _name, _place in {
    "dataloader": dataloader,
    "dataset": dataset,
    "sampler": sampler,
    "distributed": sampler,
    "_utils": collate,
    "_utils.collate": collate,
    "_utils.worker": worker,
}.items():
    sys.modules[f"{__name__}.{_name}"] = _place
