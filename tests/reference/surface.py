"""Which names of PyTorch are there: `python tests/reference/surface.py api_surface.csv [tier …]` lists what is absent.

With `--write`, the names of tiers 1 and 2 are written to surface.txt, which a test reads.
"""

import csv
import importlib
import sys
from pathlib import Path
from typing import Any

LIST = Path(__file__).parent / "surface.txt"
# names in the list that are no attributes by that spelling, or that are methods of Python's containers
READ_AS = {"Tensor.__matmul__ (@)": "Tensor.__matmul__"}


def resolve(torch: Any, name: str) -> bool:
    """True if `name` ("torch.x.y", "Tensor.x", "Module.x", "Optimizer.x", "LRScheduler.x") is there."""
    name = READ_AS.get(name, name)
    if name.startswith("Tensor/Module."):
        last = name.rpartition(".")[2]
        return hasattr(torch.Tensor, last) and hasattr(torch.nn.Module, last)
    root, *parts = name.split(".")
    if root in ("Optimizer", "LRScheduler"):
        made = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
        return hasattr(made if root == "Optimizer" else torch.optim.lr_scheduler.StepLR(made, 1), parts[0])
    found = {"torch": torch, "Tensor": torch.Tensor, "Module": torch.nn.Module}[root]
    path = torch.__name__
    for part in parts:
        path += f".{part}"
        if not hasattr(found, part):
            try:
                importlib.import_module(path)
            except ImportError:
                return False
        found = getattr(found, part, sys.modules.get(path))
    return True


def main(arguments: list[str]) -> None:
    """Print what is absent, by tier."""
    import torchlet.compat
    from torchlet.absent import reason

    torchlet.compat.install()
    import torch

    rows = list(csv.DictReader(Path(arguments[0]).read_text().splitlines()))
    if "--write" in arguments:
        LIST.write_text("".join(f"{r['tier']} {r['name']}\n" for r in rows if r["tier"] in "12"))
    for tier in "1234":
        names = [r["name"] for r in rows if r["tier"] == tier]
        absent = [f"{n}  ({why})" if (why := reason(n)) else n for n in names if not resolve(torch, n)]
        print(
            f"tier {tier}: {len(names) - len(absent)} of {len(names)}",
            *(absent if tier in arguments[1:] or tier in "12" else []),
            sep="\n  ",
        )


if __name__ == "__main__":
    main(sys.argv[1:])
