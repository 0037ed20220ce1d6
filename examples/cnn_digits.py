"""Train a small convolutional network to read handwritten digits (1,797 real scans), eagerly and compiled, and compare."""

import argparse
import time

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import torchlet as torch
import torchlet.nn.functional as F
from torchlet import nn
from torchlet.utils.data import DataLoader, TensorDataset


def digits():
    """Training and test set: images (1, 8, 8) with values from 0 to 1, and the digit that each one shows."""
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x.reshape(-1, 1, 8, 8) / 16, y, test_size=0.2, stratify=y, random_state=42)
    train_set = TensorDataset(torch.tensor(x_train).float(), torch.tensor(y_train))
    return train_set, TensorDataset(torch.tensor(x_test).float(), torch.tensor(y_test))


class Residual(nn.Module):
    """Two convolutions with batch norm, around which the input passes by."""

    def __init__(self, channels):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x):
        y = F.gelu(self.norm1(self.conv1(x)))
        return F.gelu(x + self.norm2(self.conv2(y)))


def network():
    """(N, 1, 8, 8) to (N, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.GELU(), Residual(16), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.GELU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(128, 10),
    )


def train(dataset, epochs, compiled):
    """Train from a fixed seed; return the model, the loss of every step and the seconds of the steps after the first two."""
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)

    def step(x, y):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y, label_smoothing=0.05)
        loss.backward()
        optimizer.step()
        return loss

    if compiled:
        step = torch.compile(step)
    losses, seconds = [], []
    for _ in range(epochs):
        for x, y in DataLoader(dataset, batch_size=64, shuffle=True, drop_last=True):
            start = time.perf_counter()
            losses.append(step(x, y).item())
            seconds.append(time.perf_counter() - start)
    return model, losses, sum(seconds[2:])


def accuracy(model, dataset):
    """The fraction of images that the model reads correctly."""
    model.eval()
    with torch.no_grad():
        x, y = dataset.tensors
        return (model(x).argmax(dim=1) == y).float().mean().item()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=8)
    epochs = parser.parse_args().epochs
    train_set, test_set = digits()
    _, eager, eager_seconds = train(train_set, epochs, compiled=False)
    model, compiled, seconds = train(train_set, epochs, compiled=True)
    difference = max(abs(a - b) / a for a, b in zip(eager[:20], compiled[:20]))
    print(f"loss: {compiled[0]:.3f} -> {compiled[-1]:.3f}")
    print(f"largest relative difference of the first losses: {difference:.1e}")
    print(f"test accuracy: {accuracy(model, test_set):.4f}")
    print(f"compiled/eager: {eager_seconds / seconds:.1f}x faster")


if __name__ == "__main__":
    main()
