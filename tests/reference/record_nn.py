"""Writes nn.npz: what PyTorch gives for the cases of nn_cases.py. Run it where PyTorch is installed: python tests/reference/record_nn.py"""

import warnings
from pathlib import Path

import torch
from nn_cases import MODULES, OPTIMIZERS, lines, make, results, run, save, train

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    found = {}
    for case in lines(MODULES):
        torch.manual_seed(0)
        module, x = make(torch, case)
        outs = run(torch, case, module, x)
        key = " | ".join(case)
        found[f"{key} / repr"] = repr(module)
        found[f"{key} / state"] = "\n".join(f"{k} {tuple(v.shape)}" for k, v in module.state_dict().items())
        found |= {f"{key} / {name}": value for name, value in results(outs, module, x).items()}
    for (expression,) in lines(OPTIMIZERS):
        found |= {f"{expression} / p{i}": value for i, value in enumerate(train(torch, expression))}
    save(Path(__file__).parent / "nn.npz", found)
