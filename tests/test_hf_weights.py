"""Hugging Face's GPT-2 and Llama weights load into plain modules, which give the logits that its own models give."""

import sys
from pathlib import Path

import numpy as np
import pytest

import torchlet as torch
from torchlet import serialize

REFERENCE = Path(__file__).parent / "reference"
sys.path[:0] = [str(REFERENCE), str(Path(__file__).parent)]
import hf_weights  # noqa: E402  beside the recorded values
from hf_models import GPT2, Llama  # noqa: E402  beside this file


def model_of(name: str, folder: Path) -> torch.nn.Module:
    """The model with the weights of a file made for it."""
    hf_weights.write(folder / "model.safetensors", getattr(hf_weights, name)())
    model = GPT2(19, 12, 16, 2, 4) if name == "gpt2" else Llama(19, 16, 24, 2, 4, 2)
    model.load(serialize.load_file(folder / "model.safetensors"))
    return model.eval()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_logits_are_those_of_hugging_face(name: str, compiled: bool, tmp_path: Path) -> None:
    model = model_of(name, tmp_path)
    with torch.no_grad():
        logits = (torch.compile(model) if compiled else model)(torch.tensor(hf_weights.TOKENS))
    with np.load(REFERENCE / "hf.npz") as values:
        np.testing.assert_allclose(logits.numpy(), values[name], rtol=1e-4, atol=1e-4)


def test_a_checkpoint_of_another_layout_is_refused_by_the_names_that_differ(tmp_path: Path) -> None:
    weights = hf_weights.gpt2()
    weights["h.0.attn.c_attn.weight"] = weights["h.0.attn.c_attn.weight"].T.copy()
    del weights["ln_f.bias"]
    hf_weights.write(tmp_path / "model.safetensors", weights)
    with pytest.raises(RuntimeError) as caught:
        GPT2(19, 12, 16, 2, 4).load(serialize.load_file(tmp_path / "model.safetensors"))
    assert "ln_f.bias" in str(caught.value) and "size mismatch for h.0.attn.c_attn.weight" in str(caught.value)
