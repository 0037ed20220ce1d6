"""GPT-2 and Llama as plain modules whose parameters load from Hugging Face's safetensors files."""

import torchlet as torch
import torchlet.nn.functional as F
from torchlet import nn


class GPT2Block(nn.Module):
    """Pre-norm attention and feed-forward."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.ModuleDict({"c_attn": nn.Linear(width, 3 * width), "c_proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"c_fc": nn.Linear(width, 4 * width), "c_proj": nn.Linear(4 * width, width)})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, -1).transpose(1, 2) for y in self.attn["c_attn"](self.ln_1(x)).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).reshape(b, t, c)
        x = x + self.attn["c_proj"](y)
        return x + self.mlp["c_proj"](F.gelu(self.mlp["c_fc"](self.ln_2(x)), approximate="tanh"))


class GPT2(nn.Module):
    """The language model; the head shares the embedding's matrix."""

    def __init__(self, vocabulary: int, positions: int, width: int, layers: int, heads: int):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(positions, width)
        self.h = nn.ModuleList(GPT2Block(width, heads) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return F.linear(self.ln_f(x), self.wte.weight)

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Take Hugging Face's names; its Conv1D keeps (in, out) matrices, a Linear (out, in); its attention masks are no weights."""
        turned = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
        weights = {k.removeprefix("transformer."): v.t() if k.endswith(turned) else v for k, v in weights.items()}
        others = (".attn.bias", ".attn.masked_bias", "lm_head.weight")
        self.load_state_dict({k: v for k, v in weights.items() if not k.endswith(others)})


class LlamaLayer(nn.Module):
    """Grouped-query attention with rotary positions, and SwiGLU."""

    def __init__(self, width: int, hidden: int, heads: int, kv_heads: int):
        super().__init__()
        self.size = width // heads
        few = kv_heads * self.size
        names = {"q_proj": (width, width), "k_proj": (width, few), "v_proj": (width, few), "o_proj": (width, width)}
        self.self_attn = nn.ModuleDict({n: nn.Linear(a, b, bias=False) for n, (a, b) in names.items()})
        shapes = {"gate_proj": (width, hidden), "up_proj": (width, hidden), "down_proj": (hidden, width)}
        self.mlp = nn.ModuleDict({n: nn.Linear(a, b, bias=False) for n, (a, b) in shapes.items()})
        self.input_layernorm, self.post_attention_layernorm = nn.RMSNorm(width, eps=1e-6), nn.RMSNorm(width, eps=1e-6)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        h = self.input_layernorm(x)
        q, k, v = (self.self_attn[n](h).view(b, t, -1, self.size).transpose(1, 2) for n in ("q_proj", "k_proj", "v_proj"))
        q, k = (y * cos + torch.cat((-y[..., self.size // 2 :], y[..., : self.size // 2]), -1) * sin for y in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.self_attn["o_proj"](y.transpose(1, 2).reshape(b, t, c))
        h = self.post_attention_layernorm(x)
        return x + self.mlp["down_proj"](F.silu(self.mlp["gate_proj"](h)) * self.mlp["up_proj"](h))


class Llama(nn.Module):
    """The language model, with names as in the files."""

    def __init__(self, vocabulary: int, width: int, hidden: int, layers: int, heads: int, kv_heads: int, theta: float = 10000.0):
        super().__init__()
        self.embed_tokens, self.norm = nn.Embedding(vocabulary, width), nn.RMSNorm(width, eps=1e-6)
        self.layers = nn.ModuleList(LlamaLayer(width, hidden, heads, kv_heads) for _ in range(layers))
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.rates = theta ** (-torch.arange(0, width // heads, 2) / (width // heads))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        angles = torch.outer(torch.arange(tokens.shape[1]).float(), self.rates).repeat(1, 2)
        x = self.embed_tokens(tokens)
        for layer in self.layers:
            x = layer(x, angles.cos(), angles.sin())
        return self.lm_head(self.norm(x))

    def load(self, weights: dict[str, torch.Tensor]) -> None:
        """Take Hugging Face's names."""
        self.load_state_dict({k.removeprefix("model."): v.float() for k, v in weights.items() if not k.endswith("inv_freq")})
