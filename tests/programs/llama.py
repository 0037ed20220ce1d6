"""A Llama in plain modules: RMSNorm, rotary embedding in complex numbers, grouped queries, SwiGLU, key-value cache; experts by top-k; LoRA."""

import math
from typing import Optional, Tuple

import torch
import torch.nn.functional as F
import torch.nn.utils.parametrize as parametrize
from fill import array, compiled, fill, integers, show
from torch import nn


class RMSNorm(torch.nn.Module):
    def __init__(self, dim: int, eps: float = 1e-6):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)

    def forward(self, x):
        return self._norm(x.float()).type_as(x) * self.weight


def precompute_freqs_cis(dim: int, end: int, theta: float = 10000.0):
    freqs = 1.0 / (theta ** (torch.arange(0, dim, 2)[: (dim // 2)].float() / dim))
    t = torch.arange(end, device=freqs.device, dtype=torch.float32)
    return torch.polar(torch.ones_like(torch.outer(t, freqs)), torch.outer(t, freqs))


def apply_rotary_emb(xq: torch.Tensor, xk: torch.Tensor, freqs_cis: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    xq_ = torch.view_as_complex(xq.float().reshape(*xq.shape[:-1], -1, 2))
    xk_ = torch.view_as_complex(xk.float().reshape(*xk.shape[:-1], -1, 2))
    freqs_cis = freqs_cis.view(1, xq_.shape[1], 1, xq_.shape[-1])
    return torch.view_as_real(xq_ * freqs_cis).flatten(3).type_as(xq), torch.view_as_real(xk_ * freqs_cis).flatten(3).type_as(xk)


class Attention(nn.Module):
    def __init__(self, dim=16, heads=4, kv_heads=2):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = heads, kv_heads, dim // heads
        self.wq, self.wo = nn.Linear(dim, dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.wk, self.wv = (nn.Linear(dim, kv_heads * self.head_dim, bias=False) for _ in range(2))
        self.cache: Optional[list] = None

    def forward(self, x, start_pos, freqs_cis, mask):
        bsz, seqlen, _ = x.shape
        xq = self.wq(x).view(bsz, seqlen, self.n_heads, self.head_dim)
        xk, xv = (w(x).view(bsz, seqlen, self.n_kv_heads, self.head_dim) for w in (self.wk, self.wv))
        xq, xk = apply_rotary_emb(xq, xk, freqs_cis=freqs_cis)
        if self.cache is not None:
            self.cache[0][:bsz, start_pos : start_pos + seqlen] = xk
            self.cache[1][:bsz, start_pos : start_pos + seqlen] = xv
            xk, xv = (c[:bsz, : start_pos + seqlen] for c in self.cache)
        keys, values = (torch.repeat_interleave(t, self.n_heads // self.n_kv_heads, dim=2) for t in (xk, xv))
        xq, keys, values = xq.transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
        scores = torch.matmul(xq, keys.transpose(2, 3)) / math.sqrt(self.head_dim)
        scores = F.softmax((scores + mask if mask is not None else scores).float(), dim=-1).type_as(xq)
        return self.wo(torch.matmul(scores, values).transpose(1, 2).contiguous().view(bsz, seqlen, -1))


class MoE(nn.Module):
    def __init__(self, dim=16, hidden=24, experts=4, top=2):
        super().__init__()
        self.top, self.gate = top, nn.Linear(dim, experts, bias=False)
        self.w1, self.w3 = (nn.ModuleList(nn.Linear(dim, hidden, bias=False) for _ in range(experts)) for _ in range(2))
        self.w2 = nn.ModuleList(nn.Linear(hidden, dim, bias=False) for _ in range(experts))

    def forward(self, x):
        flat = x.view(-1, x.shape[-1])
        weights, selected = torch.topk(F.softmax(self.gate(flat), dim=1, dtype=torch.float), self.top, dim=-1)
        weights /= weights.sum(dim=-1, keepdim=True)
        out = torch.zeros_like(flat)
        hit = F.one_hot(selected, num_classes=len(self.w1)).permute(2, 1, 0)
        for e in range(len(self.w1)):
            idx, top_x = torch.where(hit[e])
            h = flat[None, top_x].reshape(-1, flat.shape[-1])
            h = self.w2[e](F.silu(self.w1[e](h)) * self.w3[e](h)) * weights[top_x, idx, None]
            out.index_add_(0, top_x, h.to(x.dtype))
        self.load = torch.zeros(len(self.w1)).scatter_add_(0, selected.flatten(), torch.ones(selected.numel()))
        return out.view_as(x)


class Llama(nn.Module):
    def __init__(self, vocab=20, dim=16, layers=2, maximum=32):
        super().__init__()
        self.tok_embeddings, self.output = nn.Embedding(vocab, dim), nn.Linear(dim, vocab, bias=False)
        self.layers = nn.ModuleList(
            nn.ModuleDict({"a": Attention(), "f": MoE(), "n1": RMSNorm(dim), "n2": RMSNorm(dim)}) for _ in range(layers)
        )
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        self.register_buffer("freqs_cis", precompute_freqs_cis(4, maximum), persistent=False)

    def forward(self, tokens: torch.Tensor, start_pos: int = 0):
        _, seqlen = tokens.shape
        h, freqs, mask = self.tok_embeddings(tokens), self.freqs_cis[start_pos : start_pos + seqlen], None
        if seqlen > 1:
            mask = torch.triu(torch.full((seqlen, seqlen), float("-inf"), device=tokens.device), diagonal=1)
            mask = torch.hstack([torch.zeros((seqlen, start_pos)), mask]).type_as(h)
        for layer in self.layers:
            h = h + layer["a"](layer["n1"](h), start_pos, freqs, mask)
            h = h + layer["f"](layer["n2"](h))
        return self.output(self.norm(h)).float()


class LoRA(nn.Module):
    def __init__(self, out_features, in_features, rank=2, alpha=4.0, seed=0):
        super().__init__()
        self.lora_A = nn.Parameter(array(rank, in_features, seed=seed, scale=0.3))
        self.lora_B = nn.Parameter(torch.zeros(out_features, rank))
        self.scale = alpha / rank

    def forward(self, weight):
        return weight + torch.matmul(self.lora_B, self.lora_A).view(weight.shape) * self.scale


def main():
    model = fill(Llama())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, fused=False)
    forward = compiled(model)
    for it in range(3):
        x = integers(20, 2, 9, seed=it)
        loss = F.cross_entropy(forward(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        show("llama", loss, model.layers[0]["f"].load.max())
    for k, layer in enumerate(model.layers):
        for name in ("wq", "wv"):
            w = getattr(layer["a"], name)
            parametrize.register_parametrization(w, "weight", LoRA(*w.weight.shape, seed=k))
    for name, p in model.named_parameters():
        p.requires_grad = "lora" in name
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=1e-2)
    for it in range(2):
        x = integers(20, 2, 9, seed=it)
        loss = F.cross_entropy(model(x[:, :-1]).flatten(0, 1), x[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        show("lora", loss, len(trained))
    for layer in model.layers:
        parametrize.remove_parametrizations(layer["a"].wq, "weight", leave_parametrized=True)
    with torch.inference_mode():
        whole = model(x)
        for layer in model.layers:
            layer["a"].cache = [torch.zeros(2, 32, 2, 4) for _ in range(2)]
        parts = torch.cat([model(x[:, :4], 0)] + [model(x[:, i : i + 1], i) for i in range(4, 9)], dim=1)
        show("cache", (whole - parts).abs().max() < 1e-5, whole.sum())


if __name__ == "__main__":
    main()
