"""Records the logits of Hugging Face's models for tiny random weights: `python tests/reference/record_hf.py` writes hf.npz.

Needs torch and transformers, as nothing else here does.
"""

import sys
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
import hf_weights  # noqa: E402  found beside this file


def main() -> None:
    """Write the logits."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    out = {}
    for name, model, weights in (
        ("gpt2", GPT2LMHeadModel(GPT2Config(**hf_weights.GPT2)), {f"transformer.{k}": v for k, v in hf_weights.gpt2().items()}),
        ("llama", LlamaForCausalLM(LlamaConfig(**hf_weights.LLAMA)), hf_weights.llama()),
    ):
        result = model.load_state_dict({k: torch.from_numpy(v) for k, v in weights.items()}, strict=False)
        assert not result.unexpected_keys and set(result.missing_keys) <= {"lm_head.weight"}, result
        model.tie_weights()
        with torch.no_grad():
            out[name] = model.eval()(torch.from_numpy(hf_weights.TOKENS)).logits.numpy()
    np.savez_compressed(HERE / "hf.npz", **out)


if __name__ == "__main__":
    main()
