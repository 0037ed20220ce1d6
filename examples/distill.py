"""Train a small network on the answers of a larger one (knowledge distillation, Hinton et al. 2015), compiled."""

import argparse
import itertools

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import torchlet as torch
import torchlet.nn.functional as F
from torchlet import nn
from torchlet.utils.data import DataLoader, TensorDataset

TEMPERATURE = 2.0  # softens both distributions, so that the order of the wrong answers counts too


def perceptron(*widths):
    """Linear layers with GELU between them."""
    layers = [layer for a, b in itertools.pairwise(widths) for layer in (nn.Linear(a, b), nn.GELU())]
    return nn.Sequential(*layers[:-1])


def train(model, loader, epochs, teacher=None):
    """Train on the labels, and with a teacher on its softened answers as well; return the loss of the last epoch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=1e-2)

    @torch.compile
    def step(x, y):
        optimizer.zero_grad()
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        if teacher is not None:
            with torch.no_grad():
                answers = F.log_softmax(teacher(x) / TEMPERATURE, dim=1)
            softened = F.log_softmax(logits / TEMPERATURE, dim=1)
            loss = 0.5 * loss + 0.5 * TEMPERATURE**2 * F.kl_div(softened, answers, reduction="batchmean", log_target=True)
        loss.backward()
        optimizer.step()
        return loss

    model.train()
    for _ in range(epochs):
        total = sum(step(x, y).item() for x, y in loader)
    model.eval()
    return total / len(loader)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=40)
    epochs = parser.parse_args().epochs
    x, y = load_digits(return_X_y=True)
    parts = train_test_split(x / 16, y, test_size=0.5, stratify=y, random_state=42)
    x_train, x_test = (torch.tensor(p).float() for p in parts[:2])
    y_train, y_test = (torch.tensor(p) for p in parts[2:])
    loader = DataLoader(TensorDataset(x_train, y_train), batch_size=64, shuffle=True, drop_last=True)

    def report(name, model, loss):
        with torch.no_grad():
            correct = (model(x_test).argmax(dim=1) == y_test).float().mean().item()
        count = sum(p.numel() for p in model.parameters())
        print(f"{name}: {count} parameters, loss {loss:.4f}, test accuracy {correct:.4f}")

    torch.manual_seed(0)
    teacher = perceptron(64, 256, 256, 10)
    report("teacher", teacher, train(teacher, loader, epochs))
    teacher.requires_grad_(False)
    for name, source in (("student alone", None), ("student taught", teacher)):
        torch.manual_seed(1)
        student = perceptron(64, 8, 10)
        report(name, student, train(student, loader, epochs, source))


if __name__ == "__main__":
    main()
