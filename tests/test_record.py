"""Records and results: values with named fields that cost nothing to define."""

import copy
import pickle
import subprocess
import sys

import pytest

import torchlet as torch
from torchlet import dtypes
from torchlet.index import Axis, FloorDiv, Index, Mod
from torchlet.spec import Spec


def test_records_are_equal_and_hash_alike_when_class_and_fields_do():
    assert Axis("i", 4) == Axis("i", 4) and hash(Axis("i", 4)) == hash(Axis("i", 4))
    assert Axis("i", 4) != Axis("i", 5) and Axis("i", 4) != "i"
    index = Index(((Axis("i", 4), 1),))
    assert FloorDiv(index, 2) != Mod(index, 2)
    assert {Spec((2,), dtypes.float32): 1}[Spec((2,), dtypes.float32)] == 1


def test_a_record_with_changed_fields_leaves_the_first_as_it_was():
    spec = Spec((2, 3), dtypes.float32, weak=True)
    assert spec.replace(shape=(6,)) == Spec((6,), dtypes.float32, weak=True) and spec.shape == (2, 3)
    with pytest.raises(TypeError, match="size"):
        spec.replace(size=3)


def test_a_record_says_its_fields_and_survives_pickling():
    spec = Spec((2,), dtypes.int64)
    assert repr(spec).startswith("Spec(shape=(2,), dtype=torchlet.int64")
    assert pickle.loads(pickle.dumps(spec)) == spec


def test_results_are_tuples_with_names_that_print_as_pytorchs():
    q, r = found = torch.linalg.qr(torch.tensor([[2.0]]))
    assert found.Q is q and found.R is r and len(found) == 2 and found._fields == ("Q", "R")
    assert repr(found).startswith("torchlet.return_types.linalg_qr(\nQ=tensor(")
    values = torch.tensor([1.0, 3.0]).max(0)
    assert type(values).__name__ == "max" and values.indices == 1
    copied = copy.deepcopy(found)
    assert type(copied) is type(found) and copied.Q.item() == q.item() and copied.Q is not q
    with pytest.raises(TypeError, match="got 1 values; expected 2: Q, R"):
        type(found)(q)


def test_importing_torchlet_generates_no_class():
    code = "import sys, numpy; before = set(sys.modules); import torchlet; print('dataclasses' in set(sys.modules) - before)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"
