"""The names that PyTorch programs use are there, also where `import torch` gives torchlet."""

import subprocess
import sys
from pathlib import Path

import pytest

import torchlet as torch

ROOT = Path(__file__).parent.parent
PROGRAM = """
import sys
import torch
import torch.nn as nn
import torch.nn.functional as F
import torch.backends.cudnn as cudnn
from torch import Tensor, optim
from torch.autograd import Variable
from torch.autograd.functional import jacobian
from torch.cuda.amp import GradScaler, autocast
from torch.nn.parameter import Parameter
from torch.optim.lr_scheduler import StepLR
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.dataloader import default_collate

cudnn.benchmark = True
assert torch.backends.cudnn.benchmark and isinstance(torch.zeros(2), Tensor) and torch.cuda.amp.autocast is autocast
data = TensorDataset(torch.randn(8, 3), torch.randn(8, 1))
model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
optimizer = optim.SGD(model.parameters(), lr=0.1)
for x, y in DataLoader(data, batch_size=4):
    optimizer.zero_grad()
    loss = F.mse_loss(checkpoint(model, x, use_reentrant=False), y)
    loss.backward()
    optimizer.step()
print("ran with", sys.argv[1:], torch.__name__, torch.pi > 3)
"""


def python(*arguments: str, code: int = 0) -> str:
    done = subprocess.run([sys.executable, "-W", "ignore", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def test_every_name_of_tiers_1_and_2_is_there() -> None:
    code = (
        "import sys; sys.path.insert(0, 'tests/reference'); import torchlet.compat; torchlet.compat.install(); import torch\n"
        "from surface import LIST, resolve\n"
        "names = [line.split(' ', 1)[1] for line in LIST.read_text().splitlines()]\n"
        "assert len(names) > 400\n"
        "absent = [n for n in names if not resolve(torch, n)]\n"
        "sys.exit(f'absent: {absent}' if absent else 0)"
    )
    python("-c", code)


def test_a_program_that_imports_torch_runs_unchanged(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(PROGRAM)
    assert "ran with ['--epochs', '3'] torch True" in python("-m", "torchlet.compat", str(script), "--epochs", "3")


@pytest.mark.parametrize(
    "statement, message",
    [
        ("from torch.nn import Conv9d", "ModuleNotFoundError: No module or name 'torch.nn.Conv9d'.*nearest name is 'Conv"),
        ("import torch.nn.functionall", "No module or name 'torch.nn.functionall'.*nearest name is 'functional'"),
        ("torch.matmull", "AttributeError: module 'torch' has no attribute 'matmull' in torchlet; the nearest name is 'matmul'"),
        ("torch.nn.functional.relo", "module 'torch.nn.functional' has no attribute 'relo' in torchlet; the nearest name is 'relu'"),
    ],
)
def test_a_missing_name_is_named_with_the_nearest_one(statement: str, message: str) -> None:
    out = python("-c", f"import torchlet.compat; torchlet.compat.install(); import torch; {statement}", code=1)
    assert __import__("re").search(message, out), out


def test_an_imported_pytorch_is_never_replaced() -> None:
    code = "import sys, types; sys.modules['torch'] = types.ModuleType('torch'); import torchlet.compat; torchlet.compat.install()"
    assert "PyTorch  is already imported, and is not replaced" in python("-c", code, code=1)


def test_uninstalling_gives_the_name_back() -> None:
    code = (
        "import sys, torchlet.compat as c; c.install(); c.install(); import torch.nn; assert c.is_installed(); c.uninstall()\n"
        "assert not any(n == 'torch' or n.startswith('torch.') for n in sys.modules) and not c.is_installed()"
    )
    python("-c", code)


def test_dtypes_and_sizes_are_printed_with_the_name_the_program_imports() -> None:
    code = "import torchlet.compat as c; c.install(); import torch; x = torch.zeros(2, 3).double(); print(x.dtype, x.shape, x.type(), x[0])"
    expected = "torch.float64 torch.Size([2, 3]) torch.DoubleTensor tensor([0., 0., 0.], dtype=torch.float64)\n"
    assert python("-c", code) == expected
    assert python("-c", code + "; c.uninstall(); import torchlet; print(torchlet.int32)") == expected + "torchlet.int32\n"


def test_arguments_have_the_names_that_pytorch_gives_them_too() -> None:
    x = torch.arange(6.0).view(2, 3)
    assert [p.shape for p in x.split(split_size=[1, 2], dim=1)] == [(2, 1), (2, 2)]
    assert len(torch.split(tensor=x, split_size_or_sections=1)) == 2
    assert [p.shape for p in torch.tensor_split(x, sections=3, dim=1)] == [(2, 1)] * 3
    assert [p.shape for p in torch.tensor_split(x, indices=(1,), dim=1)] == [(2, 1), (2, 2)]
    assert x.swapaxes(axis0=0, axis1=1).shape == (3, 2)
    assert torch.broadcast_to(x, shape=(4, 2, 3)).shape == (4, 2, 3)
    assert torch.heaviside(torch.tensor([-1.0, 0.0]), values=torch.tensor(0.5)).tolist() == [0.0, 0.5]
    assert x.sum(axis=0, keepdims=True).shape == (1, 3)


def test_searching_takes_a_sorter_and_gives_int32_on_request() -> None:
    values, order = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([1, 2, 0])
    found = torch.searchsorted(values, torch.tensor([2.0, 2.5]), sorter=order, out_int32=True)
    assert found.tolist() == [1, 2] and found.dtype is torch.int32
    assert torch.bucketize(torch.tensor([2.5]), torch.tensor([1.0, 2.0, 3.0]), out_int32=True).dtype is torch.int32
    assert torch.isin(torch.tensor([1, 2, 3]), torch.tensor([2]), invert=True).tolist() == [True, False, True]
