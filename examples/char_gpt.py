"""Train a small GPT on the characters of Python's own source code, compiled, and let it write some."""

import argparse
import math
import time
from pathlib import Path

import torchlet as torch
import torchlet.nn.functional as F
from torchlet import nn


class Block(nn.Module):
    """Causal self-attention and a feed-forward network, each after a layer norm and with a residual."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width), nn.Dropout(dropout))

    def forward(self, x):
        b, t, c = x.shape
        q, k, v = (y.view(b, t, self.heads, c // self.heads).transpose(1, 2) for y in self.qkv(self.norm1(x)).split(c, dim=2))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=True)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, c))
        return x + self.feed(self.norm2(x))


class GPT(nn.Module):
    """Token and position embeddings, blocks, and a head that shares its weight with the token embedding."""

    def __init__(self, vocabulary, context, width, layers, heads, dropout):
        super().__init__()
        self.context = context
        self.tokens, self.positions = nn.Embedding(vocabulary, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[Block(width, heads, dropout) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight
        for p in self.parameters():
            if p.ndim == 2:
                nn.init.normal_(p, std=0.02)

    def forward(self, tokens):
        x = self.tokens(tokens) + self.positions(torch.arange(tokens.shape[1]))
        return self.head(self.norm(self.blocks(x)))

    @torch.no_grad()
    def write(self, tokens, count, temperature=0.8):
        """`count` more tokens after `tokens` (1, T)."""
        for _ in range(count):
            logits = self(tokens[:, -self.context :])[:, -1] / temperature
            tokens = torch.cat([tokens, torch.multinomial(F.softmax(logits, dim=-1), 1)], dim=1)
        return tokens


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args()
    torch.manual_seed(0)
    text = Path(argparse.__file__).read_text(encoding="utf-8")
    characters = sorted(set(text))
    number = {c: i for i, c in enumerate(characters)}
    data = torch.tensor([number[c] for c in text])
    print(f"{len(text)} characters, {len(characters)} different ones: guessing gives a loss of {math.log(len(characters)):.2f}")
    model = GPT(len(characters), args.context, args.width, args.layers, heads=4, dropout=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.99), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=args.steps)

    @torch.compile
    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x).flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    start = time.perf_counter()
    for n in range(args.steps):
        at = torch.randint(len(data) - args.context - 1, (16, 1)) + torch.arange(args.context)
        loss = step(data[at], data[at + 1]).item()
        schedule.step()
        if n % 50 == 0 or n == args.steps - 1:
            print(f"step {n}: loss {loss:.3f}, {time.perf_counter() - start:.1f} s")
    model.eval()
    written = model.write(torch.tensor([[number["\n"]]]), 200)
    print("".join(characters[i] for i in written[0].tolist()))


if __name__ == "__main__":
    main()
