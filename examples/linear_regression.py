"""Linear regression by gradient descent: y = 2x + 1 with noise, then disease progression of 442 diabetes patients."""

import argparse
import statistics
import time

import matplotlib

matplotlib.use("Agg")  # draw into a file, also where there is no screen
import matplotlib.pyplot as plt
from sklearn.datasets import load_diabetes
from tqdm import trange

import torchlet as torch
from torchlet import nn


def line():
    """100 points of y = 2x + 1 with a little noise."""
    torch.manual_seed(0)
    x = torch.arange(0, 10, 0.1).view(-1, 1)
    return x, 2 * x + 1 + 0.1 * torch.randn(len(x), 1)


def diabetes():
    """442 patients: 10 measurements each, and how the disease progressed in a year; all in units of their spread."""
    x, y = load_diabetes(return_X_y=True)
    y = (y - y.mean()) / y.std()
    return torch.tensor(x / x.std(axis=0)).float(), torch.tensor(y).float().view(-1, 1)


def train(x, y, lr, epochs, compiled):
    """Fit one nn.Linear; return it, the loss of every epoch and the seconds of every step."""
    torch.manual_seed(1)
    model = nn.Linear(x.shape[1], 1)
    loss_function = nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)

    def step(x, y):
        optimizer.zero_grad()
        loss = loss_function(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    if compiled:
        step = torch.compile(step)
    losses, seconds = [], []
    for _ in trange(epochs, desc="compiled" if compiled else "eager", mininterval=0.5):
        start = time.perf_counter()
        losses.append(step(x, y).item())
        seconds.append(time.perf_counter() - start)
    return model, losses, seconds


def compare(name, x, y, lr, epochs):
    """Train eagerly and compiled from the same seed, plot both curves, return the compiled model."""
    print(f"--- {name}: {x.shape[0]} rows, {x.shape[1]} features")
    _, eager, eager_seconds = train(x, y, lr, epochs, compiled=False)
    model, compiled, seconds = train(x, y, lr, epochs, compiled=True)
    difference = max(abs(a - b) / a for a, b in zip(eager, compiled))
    plt.figure()
    plt.plot(eager, label="eager", linewidth=4, alpha=0.4)
    plt.plot(compiled, label="compiled", linewidth=1)
    plt.xlabel("epoch"), plt.ylabel("mean squared error"), plt.yscale("log"), plt.legend(), plt.title(name)
    file = f"linear_regression_{name}.png"
    plt.savefig(file), plt.close()
    print(f"loss curve: {file}")
    print(f"loss: {compiled[0]:.4f} -> {compiled[-1]:.4f}")
    print(f"first compiled call: {seconds[0]:.2f} s")
    print(f"largest relative difference of the losses: {difference:.1e}")
    print(f"compiled/eager: {statistics.median(eager_seconds[1:]) / statistics.median(seconds[1:]):.1f}x faster")
    assert difference <= 1e-4, "eager and compiled training must agree"
    return model


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=2000)
    epochs = parser.parse_args().epochs
    model = compare("line", *line(), lr=0.01, epochs=epochs)
    with torch.no_grad():
        print(f"y(15) = {model(torch.tensor([[15.0]])).item():.2f} (the line without noise: 31)")
    x, y = diabetes()
    model = compare("diabetes", x, y, lr=0.05, epochs=epochs)
    with torch.no_grad():
        explained = 1 - ((model(x) - y) ** 2).mean() / y.var(correction=0)
    print(f"explained variance: {explained.item():.4f}")


if __name__ == "__main__":
    main()
