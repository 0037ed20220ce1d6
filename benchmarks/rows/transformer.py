"""Attention, a GPT-2 block and a small GPT in PyTorch's terms: one source for torch and torchlet, which is passed as `torch`."""

import math
from types import SimpleNamespace

from rows import data


def parts(torch):
    """The functions and the model."""
    nn, F = torch.nn, torch.nn.functional

    def sdpa_causal(q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def sdpa_full(q, k, v):
        return F.scaled_dot_product_attention(q, k, v)

    def naive_full(q, k, v):
        return torch.softmax(q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1]), -1) @ v

    def naive_causal(q, k, v):
        scores = q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])
        allowed = torch.tril(torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool))
        return torch.softmax(scores.masked_fill(~allowed, -math.inf), -1) @ v

    def attention(x, qkv, qkv_bias, out, out_bias, heads):
        n, t, width = x.shape
        q, k, v = (y.view(n, t, heads, width // heads).transpose(1, 2) for y in F.linear(x, qkv, qkv_bias).split(width, -1))
        return F.linear(sdpa_causal(q, k, v).transpose(1, 2).reshape(n, t, width), out, out_bias)

    def block(x, norm1, shift1, qkv, qkv_bias, out, out_bias, norm2, shift2, up, up_bias, down, down_bias, heads=data.BLOCK_HEADS):
        x = x + attention(F.layer_norm(x, x.shape[-1:], norm1, shift1), qkv, qkv_bias, out, out_bias, heads)
        hidden = F.gelu(F.linear(F.layer_norm(x, x.shape[-1:], norm2, shift2), up, up_bias), approximate="tanh")
        return x + F.linear(hidden, down, down_bias)

    class GPT(nn.Module):
        """Embeddings, blocks, a last norm, and an output layer of its own."""

        def __init__(self, weights):
            super().__init__()
            self.all = nn.ParameterList([nn.Parameter(torch.tensor(w)) for w in weights])

        def forward(self, tokens):
            words, places, *rest, norm, shift, out = self.all
            x = F.embedding(tokens, words) + places
            for i in range(0, len(rest), 12):
                x = block(x, *rest[i : i + 12], heads=data.GPT_HEADS)
            return F.linear(F.layer_norm(x, x.shape[-1:], norm, shift), out)

    def gpt_loss(model, tokens, labels):
        return F.cross_entropy(model(tokens).flatten(0, 1), labels.flatten())

    return SimpleNamespace(**{f.__name__: f for f in (sdpa_causal, sdpa_full, naive_causal, naive_full, block, GPT, gpt_loss)})
