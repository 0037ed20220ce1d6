"""Look inside: compile one training step of a small network, dump every stage, and show one of its kernels."""

import argparse
from pathlib import Path

import torchlet as torch
from torchlet import nn


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dir", default="torchlet_debug", help="folder to write the dump to")
    parser.add_argument("--epochs", type=int, default=3)
    options = parser.parse_args()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    loss_function = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def train_step(x, y):
        optimizer.zero_grad()
        loss = loss_function(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    train_step = torch.compile(train_step, dump=options.dir)
    x, y = torch.randn(32, 64), torch.randint(0, 10, (32,))
    for epoch in range(options.epochs):
        print(f"step {epoch}: loss {train_step(x, y).item():.4f}")

    dump = Path(options.dir).resolve()
    files = sorted(path for path in dump.rglob("*") if path.is_file())
    print(f"\nthe dump is in {dump}")
    for path in files:
        print(f"  {path.relative_to(dump)}  ({path.stat().st_size} bytes)")

    kernels = [path for path in files if path.parent.name == "6_kernels" and path.suffix == ".c"]
    kernel = max(kernels, key=lambda path: path.stat().st_size)
    print(f"\none kernel, {kernel.relative_to(dump)}:\n")
    print(kernel.read_text())


if __name__ == "__main__":
    main()
