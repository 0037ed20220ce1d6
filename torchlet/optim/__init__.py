"""torchlet.optim: optimizers and learning-rate schedules, with PyTorch's names."""

from torchlet.optim import lr_scheduler
from torchlet.optim.adam import Adam, AdamW
from torchlet.optim.optimizer import Optimizer
from torchlet.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "Optimizer", "lr_scheduler"]
