"""Other people's files and libraries: .pt files, DLPack, NumPy, einops."""

import collections
import io
import pickle
import random
import struct
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchlet as torch
from torchlet.checkpoint import CheckpointError

REFERENCE = Path(__file__).parent / "reference" / "checkpoint.pt"  # written by PyTorch 2.13 (reference/record.py)


def test_a_file_of_pytorch_is_read_without_it() -> None:
    got = torch.load(REFERENCE)
    assert isinstance(got["model"], collections.OrderedDict) and list(got["model"]) == ["weight", "bias"] and got["model"]._metadata
    assert got["model"]["weight"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert got["row"].tolist() == [3, 4, 5] and got["turned"].stride() == (1, 3)
    got["row"].mul_(2)
    assert got["turned"][:, 1].tolist() == [6, 8, 10]  # views of one memory still share it
    assert isinstance(got["parameter"], torch.nn.Parameter) and got["parameter"].requires_grad
    assert got["bfloat16"].dtype is torch.bfloat16 and got["bfloat16"].float().tolist() == [1.5, -2.0]
    assert got["complex"].tolist() == [1 + 2j] and got["bool"].tolist() == [True, False] and got["empty"].shape == (0, 3)
    assert got["plain"] == {"n": None, "i": 2**40, "f": -1.5, "t": (1, [2, "x"]), "s": {1, 2}}
    assert got["size"] == torch.Size([2, 3]) and got["dtype"] is torch.float16 and got["device"] == torch.device("cpu")
    model = torch.nn.Linear(3, 2)
    assert not model.load_state_dict(got["model"]).missing_keys


def test_a_pytorch_file_written_here_comes_back() -> None:
    x = torch.arange(12.0).view(3, 4)
    value = {
        "model": torch.nn.Linear(2, 2).state_dict(),
        "x": x,
        "row": x[1],
        "t": x.t(),
        "p": torch.nn.Parameter(torch.ones(2)),
        "n": [None, True, -(2**70), 1.5, "é", (1,)],
    }
    f = io.BytesIO()
    torch.save(value, f, format="pytorch")
    f.seek(0)
    back = torch.load(f)
    assert back["n"] == value["n"] and back["t"].tolist() == x.t().tolist() and isinstance(back["p"], torch.nn.Parameter)
    back["x"].zero_()
    assert back["row"].abs().sum() == 0 and type(back["model"]) is collections.OrderedDict
    with pytest.raises(TypeError, match=r"save: obj\['a'\]\[0\] is a builtins.object"):
        torch.save({"a": [object()]}, io.BytesIO(), format="pytorch")


def archive(program: bytes, data: bytes = bytes(16), **members: bytes) -> io.BytesIO:
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w") as z:
        z.writestr("a/data.pkl", program)
        z.writestr("a/data/0", data)
        for name, content in members.items():
            z.writestr(name, content)
    f.seek(0)
    return f


def tensor_program(count: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """The pickle of a float32 tensor over storage 0."""

    def number(n: int) -> bytes:
        return b"J" + struct.pack("<i", n)

    def numbers(ns: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, ns)) + b"t"

    key = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu" + number(count) + b"tQ"
    return (
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n("
        + key
        + number(offset)
        + numbers(size)
        + numbers(stride)
        + b"\x89ccollections\nOrderedDict\n)RtR."
    )


class Evil:
    def __reduce__(self) -> Any:
        return exec, ("raise SystemExit",)


@pytest.mark.parametrize(
    "file, match",
    [
        (archive(pickle.dumps(Evil(), 2)), "it names '__builtin__.exec'.*nothing is executed"),
        (archive(b"\x80\x02cos\nsystem\n(X\x01\x00\x00\x00xtR."), "it names 'os.system'"),
        (archive(b"\x80\x02]."[:-1]), "ends early|damaged"),
        (archive(b"\x80\x02K\x01K\x02a."), "adds to a int"),
        (archive(b"\x80\x02ccollections\nOrderedDict\nK\x01\x81."), "known constructor"),
        (archive(b"\x80\x04\x95\x00\x00\x00\x00\x00\x00\x00\x00\x82\x01."), "instruction EXT1"),
        (archive(tensor_program(4, 3, (2,), (1,))), "reaches outside"),
        (archive(tensor_program(4, 0, (2,), (-1,))), "strides"),
        (archive(tensor_program(4, 0, (30000, 30000), (0, 0))), "repeats"),
        (archive(tensor_program(5, 0, (2,), (1,))), "should hold 5 elements"),
        (archive(b"N.", **{"a/../x": b""}), "member named"),
        (io.BytesIO(pickle.dumps(Evil())), "looks like a pickle"),
    ],
)
def test_files_that_are_not_what_they_should_be_are_refused_and_nothing_runs(file: io.BytesIO, match: str) -> None:
    with pytest.raises(RuntimeError, match=match):
        torch.load(file)


def test_a_compressed_member_is_refused() -> None:
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("a/data.pkl", b"\x80\x02N.")
    f.seek(0)
    with pytest.raises(CheckpointError, match="compressed"):
        torch.load(f)


def test_a_flipped_bit_in_a_tensor_is_noticed() -> None:
    data = bytearray(REFERENCE.read_bytes())
    at = data.index(np.arange(6, dtype=np.float32).tobytes())
    data[at + 2] ^= 1
    with pytest.raises(CheckpointError, match=r"CRC|damaged"):
        torch.load(io.BytesIO(data))


def test_damaged_files_never_do_anything_but_raise_runtime_error() -> None:
    rng, whole = random.Random(0), REFERENCE.read_bytes()
    refused = 0
    for k in range(400):
        data = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if k % 5 == 0:
            del data[rng.randrange(len(data)) :]
        try:
            torch.load(io.BytesIO(data))
        except RuntimeError:
            refused += 1
    assert refused > 200


# ------------------------------------------------------------------------------------------------ arrays and other libraries


def test_dlpack_shares_memory_both_ways() -> None:
    x = torch.arange(6.0).view(2, 3)
    a = np.from_dlpack(x)
    a[0, 0] = 9
    assert x[0, 0].item() == 9
    y = torch.from_dlpack(np.arange(3))
    assert y.dtype is torch.int64 and y.tolist() == [0, 1, 2]
    assert torch.utils.dlpack.from_dlpack(torch.utils.dlpack.to_dlpack(x)).data_ptr() == x.data_ptr()


def test_numpy_functions_take_tensors() -> None:
    x = torch.tensor([1.0, 4.0])
    assert np.sqrt(x).tolist() == [1, 2] and np.asarray(x).tolist() == [1, 4] and np.stack([x, x]).shape == (2, 2)


@pytest.mark.parametrize("first", ["einops", "torchlet"])
def test_einops_takes_tensors_whichever_is_imported_first(first: str) -> None:
    code = f"""
import {first}, einops, torchlet as torch
from einops import rearrange, reduce, repeat
from einops.layers.torchlet import EinMix, Rearrange, Reduce
x = torch.arange(24.0).view(2, 3, 4).requires_grad_()
assert rearrange(x, "b h w -> b (h w)").shape == (2, 12) and repeat(x, "b h w -> b h w c", c=2).shape == (2, 3, 4, 2)
assert reduce(x, "b h w -> b", "max").tolist() == [11, 23] and einops.einsum(x, x, "b h w, b k w -> b h k").shape == (2, 3, 3)
assert torch.compile(lambda t: rearrange(t, "b h w -> w b h") * 2)(x.detach()).shape == (4, 2, 3)
m = torch.nn.Sequential(Rearrange("b h w -> b (h w)"), torch.nn.Linear(12, 2))
m(x).sum().backward()
assert x.grad is not None and EinMix("b h w -> b h o", weight_shape="w o", bias_shape="o", w=4, o=5)(x).shape == (2, 3, 5)
"""
    assert subprocess.run([sys.executable, "-c", code], cwd=REFERENCE.parents[2], timeout=900).returncode == 0
