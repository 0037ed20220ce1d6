"""Train a small network to read handwritten digits (1,797 real scans), eagerly and compiled, and compare."""

import argparse
import statistics
import time

import matplotlib

matplotlib.use("Agg")  # draw into a file, also where there is no screen
import matplotlib.pyplot as plt
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tqdm import tqdm

import torchlet as torch
from torchlet import nn
from torchlet.utils.data import DataLoader, TensorDataset


def digits():
    """Training and test set: 8 x 8 scans with values from 0 to 1, and the digit that each one shows."""
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x / 16, y, test_size=0.2, stratify=y, random_state=42)
    train_set = TensorDataset(torch.tensor(x_train).float(), torch.tensor(y_train))
    return train_set, TensorDataset(torch.tensor(x_test).float(), torch.tensor(y_test))


def train(dataset, epochs, compiled):
    """Train from a fixed seed; return the model, the mean loss of every epoch and the seconds of every step."""
    torch.manual_seed(0)
    # GELU, not ReLU: at ReLU's kink one rounding error grows into a different loss curve within ten epochs.
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Dropout(0.3), nn.Linear(256, 128), nn.GELU(), nn.Linear(128, 10))
    loss_function = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    loader = DataLoader(dataset, batch_size=64, shuffle=True, drop_last=True)

    def step(x, y):
        optimizer.zero_grad()
        loss = loss_function(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    if compiled:
        step = torch.compile(step)
    losses, seconds = [], []
    progress = tqdm(range(epochs), desc="compiled" if compiled else "eager")
    for _ in progress:
        total = 0.0
        for x, y in loader:
            start = time.perf_counter()
            loss = step(x, y)
            total += loss.item()
            seconds.append(time.perf_counter() - start)
        scheduler.step()
        losses.append(total / len(loader))
        progress.set_postfix(loss=f"{losses[-1]:.4f}")
    return model, losses, seconds


def accuracy(model, dataset):
    """The fraction of scans that the model reads correctly."""
    model.eval()
    correct = 0
    with torch.no_grad():
        for x, y in DataLoader(dataset, batch_size=256):
            correct += (model(x).argmax(dim=1) == y).sum().item()
    return correct / len(dataset)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=40)
    epochs = parser.parse_args().epochs
    train_set, test_set = digits()
    print(f"{len(train_set)} scans to train, {len(test_set)} to test")
    _, eager, eager_seconds = train(train_set, epochs, compiled=False)
    model, compiled, seconds = train(train_set, epochs, compiled=True)
    difference = max(abs(a - b) / a for a, b in zip(eager, compiled))

    plt.plot(eager, label="eager", linewidth=4, alpha=0.4)
    plt.plot(compiled, label="compiled", linewidth=1)
    plt.xlabel("epoch"), plt.ylabel("cross-entropy"), plt.yscale("log"), plt.legend()
    plt.savefig("mlp_loss.png")
    print("loss curve: mlp_loss.png")
    print(f"loss: {compiled[0]:.4f} -> {compiled[-1]:.4f}")
    print(f"first compiled call: {seconds[0]:.2f} s")
    print(f"largest relative difference of the losses: {difference:.1e}")
    assert difference <= 1e-4, "eager and compiled training must agree"
    print(f"test accuracy: {accuracy(model, test_set):.4f}")
    print(f"compiled/eager: {statistics.median(eager_seconds[1:]) / statistics.median(seconds[1:]):.1f}x faster")


if __name__ == "__main__":
    main()
