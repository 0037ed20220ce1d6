"""Records what PyTorch 2.13 gives for the cases beside it: `python tests/reference/record.py` writes values.npz and checkpoint.pt."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
from cases import CASES  # noqa: E402  found beside this file


def flat(value: Any) -> list[Any]:
    """The leaves of a nest of lists and tuples."""
    return [leaf for v in value for leaf in flat(v)] if isinstance(value, list | tuple) else [value]


def evaluate(m: Any, function: Any, arrays: Any) -> list[np.ndarray]:
    """The case's results as arrays, then the gradients of its float64 inputs (empty where there is none)."""
    inputs = [m.tensor(a) for a in arrays]
    wanted = [t.requires_grad_() for t in inputs if t.dtype is m.float64]
    leaves = flat(function(m, *inputs))
    out = []
    for v in leaves:
        if hasattr(v, "detach"):
            out.append(np.array(v.detach().float().numpy() if v.dtype in (m.bfloat16, m.float16) else v.detach().numpy()))
        else:
            out.append(np.array(v))
    loss = [(v * v).sum() for v in leaves if hasattr(v, "detach") and v.requires_grad and v.dtype is m.float64]
    if loss:
        sum(loss).backward()
    return out + [np.array(t.grad.numpy(force=True)) if t.grad is not None else np.zeros(0) for t in wanted]


def main() -> None:
    """Write the values of all cases."""
    import torch

    values = {}
    names = set()
    for name, function, arrays in CASES:
        assert name not in names, name
        names.add(name)
        try:
            results = evaluate(torch, function, arrays)
        except RuntimeError as error:
            raise RuntimeError(f"{name}: {error}") from error
        for k, v in enumerate(results):
            values[f"{name}|{k}"] = v
    x = torch.arange(6.0).view(2, 3)
    layer = torch.nn.Linear(3, 2)
    with torch.no_grad():
        layer.weight.copy_(x)
    checkpoint = {
        "model": layer.state_dict(),
        "row": x[1],
        "turned": x.t(),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
        "complex": torch.tensor([1 + 2j]),
        "bool": torch.tensor([True, False]),
        "empty": torch.zeros(0, 3),
        "size": torch.Size([2, 3]),
        "dtype": torch.float16,
        "device": torch.device("cpu"),
        "plain": {"n": None, "i": 2**40, "f": -1.5, "t": (1, [2, "x"]), "s": {1, 2}},
    }
    torch.save(checkpoint, HERE / "checkpoint.pt")
    np.savez_compressed(HERE / "values.npz", **values)
    print(f"{len(CASES)} cases, {len(values)} values, {(HERE / 'values.npz').stat().st_size} bytes, torch {torch.__version__}")


if __name__ == "__main__":
    main()
