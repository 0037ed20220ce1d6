"""Train a small vision transformer to read handwritten digits (1,797 real scans), compiled."""

import argparse
import time

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

import torchlet as torch
from torchlet import nn
from torchlet.utils.data import DataLoader, TensorDataset


class ViT(nn.Module):
    """Patches of an image as tokens, a class token in front, transformer layers, a linear head (Dosovitskiy et al. 2020)."""

    def __init__(self, size=8, patch=2, width=48, layers=3, heads=4, classes=10):
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, stride=patch)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, (size // patch) ** 2 + 1, width) * 0.02)
        layer = nn.TransformerEncoderLayer(width, heads, 2 * width, dropout=0.1, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)  # (N, patches, width)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), tokens], dim=1) + self.positions
        return self.head(self.encoder(tokens)[:, 0])


def digits():
    """Training and test set: images (1, 8, 8) with values from -1 to 1, and the digit that each one shows."""
    x, y = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(x.reshape(-1, 1, 8, 8) / 8 - 1, y, test_size=0.2, stratify=y, random_state=42)
    train_set = TensorDataset(torch.tensor(x_train).float(), torch.tensor(y_train))
    return train_set, TensorDataset(torch.tensor(x_test).float(), torch.tensor(y_test))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--layers", type=int, default=3)
    args = parser.parse_args()
    epochs = args.epochs
    torch.manual_seed(0)
    train_set, test_set = digits()
    loader = DataLoader(train_set, batch_size=64, shuffle=True, drop_last=True)
    model = ViT(layers=args.layers)
    print(f"{sum(p.numel() for p in model.parameters())} parameters")
    loss_function = nn.CrossEntropyLoss(label_smoothing=0.1)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=epochs * len(loader))

    @torch.compile
    def step(x, y):
        optimizer.zero_grad()
        loss = loss_function(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        return loss

    start = time.perf_counter()
    for epoch in range(epochs):
        total = 0.0
        for x, y in loader:
            total += step(x, y).item()
            schedule.step()
        if epoch % 5 == 0 or epoch == epochs - 1:
            print(f"epoch {epoch}: loss {total / len(loader):.3f}, {time.perf_counter() - start:.1f} s")
    model.eval()
    with torch.no_grad():
        x, y = test_set.tensors
        print(f"test accuracy: {(model(x).argmax(dim=1) == y).float().mean().item():.4f}")


if __name__ == "__main__":
    main()
