"""Replace the Linear layers of a trained network by 8-bit ones (dynamic quantisation) and compare size and accuracy."""

import argparse

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import torchlet as torch
import torchlet.nn.functional as F
from torchlet import nn


class Int8Linear(nn.Module):
    """A Linear whose weight is int8 with one scale an output; inputs are rounded to int8 by the largest of each row as they come."""

    def __init__(self, linear):
        super().__init__()
        weight = linear.weight.detach()
        scale = weight.abs().amax(dim=1, keepdim=True).clamp(min=1e-8) / 127  # (out, 1)
        self.register_buffer("weight", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale.squeeze(1))
        self.register_buffer("bias", linear.bias.detach())

    def forward(self, x):
        step = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-8) / 127
        rounded = (x / step).round().clamp(-127, 127)
        total = rounded @ self.weight.to(x.dtype).T  # whole numbers up to 127² a product: exact in float32 for 1,000 inputs
        return total * step * self.scale + self.bias

    def extra_repr(self):
        return f"in_features={self.weight.shape[1]}, out_features={self.weight.shape[0]}, dtype=int8"


def quantize(module):
    """The module with every Linear in it replaced."""
    for name, child in module.named_children():
        setattr(module, name, Int8Linear(child) if isinstance(child, nn.Linear) else quantize(child))
    return module


def size(model):
    """Bytes of all parameters and buffers."""
    return sum(t.numel() * t.element_size() for t in model.state_dict().values())


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=200)
    epochs = parser.parse_args().epochs
    torch.manual_seed(0)
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16, y, test_size=0.2, stratify=y, random_state=42)
    x_train, x_test = (torch.tensor(p).float() for p in parts[:2])
    y_train, y_test = (torch.tensor(p) for p in parts[2:])
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 128), nn.GELU(), nn.Linear(128, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    @torch.compile
    def step():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x_train), y_train)
        loss.backward()
        optimizer.step()
        return loss

    for _ in range(epochs):
        loss = step()
    print(f"training loss: {loss.item():.4f}")

    @torch.compile
    @torch.no_grad()
    def read(model):
        return model(x_test)

    logits, bytes_before = read(model), size(model)
    quantize(model)
    print(model)
    rounded = read(model)
    print(f"size: {bytes_before} bytes -> {size(model)} bytes, {bytes_before / size(model):.1f}x smaller")
    print(f"largest difference of a logit: {(rounded - logits).abs().max().item():.3f} of {logits.abs().max().item():.1f}")
    for name, out in (("float32", logits), ("int8", rounded)):
        print(f"test accuracy {name}: {(out.argmax(dim=1) == y_test).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
