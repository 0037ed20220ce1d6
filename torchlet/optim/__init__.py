"""torchlet.optim: optimizers, learning-rate schedules and averages of weights, with PyTorch's names."""

from torchlet.optim import lr_scheduler, swa_utils
from torchlet.optim.adam import Adam, AdamW
from torchlet.optim.adaptive import ASGD, Adadelta, Adagrad, Adamax, NAdam, RAdam, RMSprop, Rprop
from torchlet.optim.factored import Adafactor, SparseAdam
from torchlet.optim.lbfgs import LBFGS
from torchlet.optim.muon import Muon
from torchlet.optim.optimizer import Optimizer
from torchlet.optim.sgd import SGD

__all__ = [
    "ASGD", "LBFGS", "SGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax",
    "Muon", "NAdam", "Optimizer", "RAdam", "RMSprop", "Rprop",
    "SparseAdam", "lr_scheduler", "swa_utils",
]
