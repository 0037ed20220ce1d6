"""What is saved comes back; what is damaged says so; nothing in a file is executed."""

from __future__ import annotations

import io
import json
import os
import pathlib
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import torchlet as tl
from torchlet import nn, optim, serialize


def round_trip(value: Any) -> Any:
    f = io.BytesIO()
    tl.save(value, f)
    f.seek(0)
    return tl.load(f)


def test_nested_values_keep_their_types() -> None:
    value = {
        "a": [1, 2.5, None, True, "text", b"\x00\xff", 2**80, float("inf"), -0.0], ("tuple", 1): (1, (2,), [], {}), 3: {4, 5},
        "f": frozenset([1]),
        "d": tl.float16, "dev": tl.device("cpu"), "size": tl.Size([1, 2]), "c": 1 + 2j, "o": OrderedDict(b=1, a=2),
    }
    back = round_trip(value)
    assert back == value and [type(v) for v in back.values()] == [type(v) for v in value.values()]
    assert list(back["o"]) == ["b", "a"] and str(back["a"][-1]) == "-0.0" and np.isnan(round_trip(float("nan")))


@pytest.mark.parametrize("d", tl.dtypes.ALL, ids=lambda d: d.name)
def test_tensors_of_every_dtype(d: tl.dtype) -> None:
    for shape in ((3, 4), (), (0, 2)):
        t = (tl.arange(int(np.prod(shape))).reshape(shape) % 2).to(d)
        back = round_trip(t)
        assert back.dtype is d and back.shape == t.shape and back.float().tolist() == t.float().tolist()


def test_strided_views_and_flags_come_back() -> None:
    t = tl.arange(24).reshape(4, 6).float()
    view = t[1:3, ::2].t()
    assert round_trip(view).tolist() == view.tolist()
    p = nn.Parameter(tl.ones(2))
    back = round_trip([p, p, tl.ones(1, requires_grad=True), nn.Parameter(tl.ones(1), requires_grad=False)])
    assert isinstance(back[0], nn.Parameter) and back[0] is back[1] and back[0].requires_grad and back[0].is_leaf
    assert (
        back[2].requires_grad and not isinstance(back[2], nn.Parameter) and isinstance(back[3], nn.Parameter) and not back[3].requires_grad
    )


def test_shared_memory_is_shared_again() -> None:
    t = tl.zeros(6)
    back = round_trip({"all": t, "tail": t[4:], "grid": t.view(2, 3)})
    back["tail"][1] = 7.0
    assert back["all"].tolist() == [0, 0, 0, 0, 0, 7] and back["grid"].tolist() == [[0, 0, 0], [0, 0, 7]]


def test_a_small_view_does_not_save_the_large_tensor() -> None:
    f = io.BytesIO()
    tl.save(tl.zeros(1000, 1000)[:, 0], f)
    assert len(f.getvalue()) < 10_000


def test_a_whole_checkpoint(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    optimizer = optim.AdamW(net.parameters(), lr=0.1)
    scheduler = optim.lr_scheduler.StepLR(optimizer, 2)
    x = tl.tensor(np.random.default_rng(0).standard_normal((5, 3)), dtype=tl.float32)

    def step() -> None:
        optimizer.zero_grad()
        (net(x) ** 2).sum().backward()
        optimizer.step()
        scheduler.step()

    step()
    path = tmp_path / "checkpoint.tl"
    tl.save({"model": net.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "epoch": 3}, path)
    step()
    after = {k: v.clone() for k, v in net.state_dict().items()}
    saved = tl.load(path)
    assert saved["epoch"] == 3 and saved["model"]._metadata[""] == {"version": 1} and saved["model"]._metadata["1"] == {"version": 2}
    assert saved["optimizer"]["param_groups"][0]["betas"] == (0.9, 0.999) and saved["optimizer"]["state"][0]["step"].dtype is tl.float32
    net.load_state_dict(saved["model"])
    optimizer.load_state_dict(saved["optimizer"])
    scheduler.load_state_dict(saved["scheduler"])
    step()
    for k, v in net.state_dict().items():
        assert np.array_equal(v.numpy(), after[k].numpy()), k


def test_what_cannot_be_saved_is_named_and_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    tl.save(1, path)
    with pytest.raises(TypeError, match=r"save: obj\['m'\]\[0\] is a torchlet.nn.linear.Linear; expected"):
        tl.save({"m": [nn.Linear(1, 1)]}, path)
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(ValueError, match=r"save: obj\[0\] contains itself"):
        tl.save(loop, path)
    assert tl.load(path) == 1 and os.listdir(tmp_path) == ["f"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    tl.save([1], path)

    def full(*_: Any, **__: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    with pytest.raises(OSError, match="disk full"):
        tl.save([2], path)
    monkeypatch.undo()
    assert tl.load(path) == [1] and os.listdir(tmp_path) == ["f"]


# ------------------------------------------------------------------------------------------------ damage


def content() -> bytes:
    f = io.BytesIO()
    tl.save({"w": tl.arange(100).float(), "text": "x"}, f)
    return f.getvalue()


def test_every_truncation_is_noticed() -> None:
    whole = content()
    for n in [0, 1, 3, 10, 100, len(whole) // 2, len(whole) - 30, len(whole) - 1]:
        with pytest.raises(RuntimeError, match=r"load: .*(cannot be read|is not a torchlet file)"):
            tl.load(io.BytesIO(whole[:n]))


def test_flipped_bits_never_change_a_value_silently() -> None:
    whole = content()
    expected = np.arange(100, dtype=np.float32)
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0x10
        try:
            back = tl.load(io.BytesIO(bytes(damaged)))
        except RuntimeError:
            continue
        assert np.array_equal(back["w"].numpy(), expected) and back["text"] == "x", position


def test_pickles_are_not_read() -> None:
    with pytest.raises(RuntimeError, match="looks like a pickle"):
        tl.load(io.BytesIO(pickle.dumps([1])))
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w") as z:
        z.writestr("archive/data.pkl", pickle.dumps(pathlib.PurePosixPath("x")))
    f.seek(0)
    with pytest.raises(RuntimeError, match=r"it names 'pathlib\.PurePosixPath'.*nothing is executed"):
        tl.load(f)


def made(value: Any, tensors: list[dict[str, Any]], data: bytes = bytes(8)) -> io.BytesIO:
    f = io.BytesIO()
    with zipfile.ZipFile(f, "w") as z:
        z.writestr(
            "structure.json", json.dumps({"format": "torchlet", "version": 1, "byteorder": "little", "tensors": tensors, "value": value})
        )
        z.writestr("data/0", data)
    f.seek(0)
    return f


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [3]},
        {"offset": 8},
        {"offset": -4},
        {"strides": [400]},
        {"strides": [-4]},
        {"strides": [1]},
        {"shape": [-1]},
        {"shape": [2, 2]},
        {"dtype": "object"},
        {"storage": 4},
    ],
)
def test_layouts_that_reach_outside_are_refused(change: dict[str, Any]) -> None:
    good = {"storage": 0, "dtype": "float32", "shape": [2], "strides": [4], "offset": 0}
    assert tl.load(made({"tensor": 0}, [good])).tolist() == [0.0, 0.0]
    with pytest.raises(RuntimeError, match="cannot be read"):
        tl.load(made({"tensor": 0}, [{**good, **change}]))


@pytest.mark.parametrize(
    "value", [{"tensor": 5}, {"call": ["os.system", "true"]}, [1], {"dict": [[{"list": []}, 1]]}, {"list": 3}, {}, {"dtype": "nothing"}]
)
def test_structures_that_make_no_sense_are_refused(value: Any) -> None:
    with pytest.raises(RuntimeError, match="cannot be read"):
        tl.load(made(value, []))


# ------------------------------------------------------------------------------------------------ safetensors


def test_safetensors_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    tensors = {d.name: (tl.arange(6).reshape(2, 3) % 2).to(d) for d in tl.dtypes.ALL if d is not tl.complex128} | {
        "scalar": tl.tensor(2.5),
        "empty": tl.ones(0, 2),
        "view": tl.arange(6).reshape(2, 3).t(),
    }
    serialize.save_file(tensors, path, {"made by": "a test"})
    back = serialize.load_file(path)
    assert set(back) == set(tensors)
    for k, v in tensors.items():
        assert back[k].dtype is v.dtype and back[k].shape == v.shape and back[k].float().tolist() == v.float().tolist()
    back["scalar"].add_(1)
    assert float(back["scalar"]) == 3.5


def test_safetensors_layout_is_that_of_the_format() -> None:
    f = io.BytesIO()
    serialize.save_file({"b": tl.tensor([1.0, 2.0]), "a": tl.tensor([3], dtype=tl.int64)}, f, {"k": "v"})
    raw = f.getvalue()
    size = struct.unpack("<Q", raw[:8])[0]
    assert size % 8 == 0
    assert json.loads(raw[8 : 8 + size]) == {
        "__metadata__": {"k": "v"}, "a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]},
    }
    assert raw[8 + size :] == struct.pack("<qff", 3, 1.0, 2.0)


@pytest.mark.parametrize(
    "header",
    [
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]}},
        {"a": {"dtype": "F9", "shape": [2], "data_offsets": [0, 8]}},
        {"a": {"dtype": "F32", "shape": [-2, -1], "data_offsets": [0, 8]}},
        {},
        [1],
    ],
)
def test_damaged_safetensors_are_refused(header: Any) -> None:
    text = json.dumps(header).encode()
    with pytest.raises(RuntimeError, match="is not a valid safetensors file"):
        serialize.load_file(io.BytesIO(struct.pack("<Q", len(text)) + text + bytes(8)))
    with pytest.raises(RuntimeError, match="its header should have"):
        serialize.load_file(io.BytesIO(struct.pack("<Q", 2**60) + text))
