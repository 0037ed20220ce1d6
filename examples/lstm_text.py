"""Train an LSTM on the characters of Python's own source code, compiled, carrying its state from batch to batch."""

import argparse
import math
import time
from pathlib import Path

import torchlet as torch
import torchlet.nn.functional as F
from torchlet import nn


class Model(nn.Module):
    """Characters to logits of the next character; the state goes in and out."""

    def __init__(self, vocabulary, width, layers):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, width)
        self.lstm = nn.LSTM(width, width, layers, batch_first=True, dropout=0.1 if layers > 1 else 0.0)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, tokens, state=None):
        x, state = self.lstm(self.embedding(tokens), state)
        return self.head(x), state


@torch.no_grad()
def write(model, first, count, temperature=0.7):
    """`count` tokens after `first`, one at a time."""
    token, state, out = torch.tensor([[first]]), None, []
    for _ in range(count):
        logits, state = model(token, state)
        token = torch.multinomial(F.softmax(logits[:, -1] / temperature, dim=-1), 1)
        out.append(token.item())
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--layers", type=int, default=1)
    parser.add_argument("--batches", type=int, default=1000, help="at most so many in an epoch")
    args = parser.parse_args()
    torch.manual_seed(0)
    text = Path(argparse.__file__).read_text(encoding="utf-8")
    characters = sorted(set(text))
    number = {c: i for i, c in enumerate(characters)}
    data = torch.tensor([number[c] for c in text])
    print(f"{len(text)} characters, {len(characters)} different ones: guessing gives a loss of {math.log(len(characters)):.2f}")

    rows, length = 32, 50  # 32 places in the text are read at the same time, 50 characters a step
    columns = (len(data) - 1) // rows
    x, y = (data[k : k + rows * columns].view(rows, columns) for k in (0, 1))
    model = Model(len(characters), args.width, args.layers)
    optimizer = torch.optim.Adam(model.parameters(), lr=4e-3)

    @torch.compile
    def step(x, y, h, c):
        optimizer.zero_grad()
        logits, (h, c) = model(x, (h, c))
        loss = F.cross_entropy(logits.flatten(0, 1), y.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss, h.detach(), c.detach()

    start = time.perf_counter()
    for epoch in range(args.epochs):
        h = c = torch.zeros(args.layers, rows, args.width)
        losses = []
        for at in list(range(0, columns - length + 1, length))[: args.batches]:
            loss, h, c = step(x[:, at : at + length], y[:, at : at + length], h, c)
            losses.append(loss.item())
        print(f"epoch {epoch}: loss {sum(losses) / len(losses):.3f}, {time.perf_counter() - start:.1f} s")
    model.eval()
    print("".join(characters[i] for i in write(model, number["\n"], 200)))


if __name__ == "__main__":
    main()
