"""Tiny random weights with the names and layouts of Hugging Face's GPT-2 and Llama, and the writer of their safetensors files."""

import json
import struct
from pathlib import Path

import numpy as np

GPT2 = dict(vocab_size=19, n_positions=12, n_embd=16, n_layer=2, n_head=4)
LLAMA = dict(vocab_size=19, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
TOKENS = np.arange(18).reshape(2, 9) * 7 % 19


def gpt2() -> dict[str, np.ndarray]:
    """Conv1D matrices are (in, out)."""
    n = GPT2["n_embd"]
    shapes = {"wte.weight": (19, n), "wpe.weight": (12, n), "ln_f.weight": (n,), "ln_f.bias": (n,)}
    for k in range(GPT2["n_layer"]):
        for name in ("ln_1", "ln_2"):
            shapes |= {f"h.{k}.{name}.weight": (n,), f"h.{k}.{name}.bias": (n,)}
        for name, a, b in (("attn.c_attn", n, 3 * n), ("attn.c_proj", n, n), ("mlp.c_fc", n, 4 * n), ("mlp.c_proj", 4 * n, n)):
            shapes |= {f"h.{k}.{name}.weight": (a, b), f"h.{k}.{name}.bias": (b,)}
    return drawn(shapes)


def llama() -> dict[str, np.ndarray]:
    """Linear matrices are (out, in); keys and values have fewer heads."""
    n, hidden, kv = 16, 24, 8
    shapes = {"model.embed_tokens.weight": (19, n), "model.norm.weight": (n,), "lm_head.weight": (19, n)}
    for k in range(LLAMA["num_hidden_layers"]):
        at = f"model.layers.{k}."
        shapes |= {f"{at}self_attn.{x}_proj.weight": (r, n) for x, r in (("q", n), ("k", kv), ("v", kv), ("o", n))}
        shapes |= {f"{at}mlp.{x}_proj.weight": s for x, s in (("gate", (hidden, n)), ("up", (hidden, n)), ("down", (n, hidden)))}
        shapes |= {f"{at}input_layernorm.weight": (n,), f"{at}post_attention_layernorm.weight": (n,)}
    return drawn(shapes)


def drawn(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Numbers that depend on the order of the names; scales of norms around 1."""
    random = np.random.RandomState(0)
    out = {k: random.standard_normal(s) * (0.4 if len(s) > 1 else 0.2) for k, s in shapes.items()}
    return {k: (v + (len(v.shape) == 1 and k.endswith("weight"))).astype(np.float32) for k, v in out.items()}


def write(path: Path, weights: dict[str, np.ndarray]) -> None:
    """The safetensors format by hand: length of the header, header, bytes."""
    head, at = {"__metadata__": {"format": "pt"}}, 0
    for name, a in weights.items():
        head[name] = {"dtype": "F32", "shape": list(a.shape), "data_offsets": [at, at + a.nbytes]}
        at += a.nbytes
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(a.tobytes() for a in weights.values()))
