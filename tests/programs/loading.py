"""Datasets, samplers, collation, workers; checkpoints written, read and resumed; state dicts changed by hand; printing."""

import os
import tempfile
from collections import OrderedDict

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from fill import array, fill, show
from torch.utils.data import (
    ConcatDataset, DataLoader, Dataset, IterableDataset, Sampler, SequentialSampler, Subset, WeightedRandomSampler, default_collate,
    get_worker_info, random_split,
)


class Sentences(Dataset):
    def __init__(self, n, transform=None):
        self.items = [np.arange(1, 2 + (k * 7) % 5) for k in range(n)]
        self.transform = transform

    def __len__(self):
        return len(self.items)

    def __getitem__(self, idx):
        if torch.is_tensor(idx):
            idx = idx.tolist()
        sample = {"tokens": self.items[idx], "label": float(idx % 2), "name": f"s{idx}"}
        return self.transform(sample) if self.transform else sample


class Buckets(Sampler):
    def __init__(self, data, size):
        self.order, self.size = sorted(range(len(data)), key=lambda k: len(data.items[k])), size

    def __iter__(self):
        for i in range(0, len(self.order), self.size):
            yield self.order[i : i + self.size]

    def __len__(self):
        return (len(self.order) + self.size - 1) // self.size


def pad(batch):
    tokens = nn.utils.rnn.pad_sequence([torch.as_tensor(b["tokens"]) for b in batch], batch_first=True)
    return tokens, torch.tensor([b["label"] for b in batch]), [b["name"] for b in batch]


class Stream(IterableDataset):
    def __iter__(self):
        info = get_worker_info()
        first, step = (info.id, info.num_workers) if info is not None else (0, 1)
        return iter(range(first, 10, step))


def data():
    sentences = Sentences(10, transform=lambda s: {**s, "tokens": torch.from_numpy(s["tokens"])})
    for tokens, label, names in DataLoader(sentences, batch_sampler=Buckets(sentences, 4), collate_fn=pad):
        print(tuple(tokens.shape), int(tokens.sum()), label.tolist(), names[0])
    train, valid = random_split(sentences, [8, 2], generator=torch.Generator().manual_seed(42))
    both = ConcatDataset([Subset(sentences, [1, 3]), valid])
    print(len(train), len(both), both[0]["name"], len(WeightedRandomSampler([0.1, 0.9], 5, replacement=True)))
    print(default_collate([(1, 2.0, "a", {"k": np.float32(3)}), (2, 3.0, "b", {"k": np.float32(4)})]))
    plain = [(torch.full((2,), float(k)), k) for k in range(6)]
    for loader in (DataLoader(plain, 4, num_workers=2), DataLoader(plain, 4, sampler=SequentialSampler(plain), drop_last=True)):
        print([(x.sum().item(), y.tolist()) for x, y in loader], len(loader))
    print(sorted(int(v) for v in DataLoader(Stream(), batch_size=None, num_workers=2)))
    try:
        next(iter(DataLoader([torch.zeros(2), torch.zeros(3)], batch_size=2)))
    except RuntimeError as e:
        print(str(e)[:60])


def checkpoints():
    model = nn.Sequential(OrderedDict([("body", nn.Linear(3, 4)), ("act", nn.ReLU()), ("head", nn.Linear(4, 2))]))
    optimizer = torch.optim.AdamW(fill(model).parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

    def train(model, optimizer, scheduler, steps):
        for it in range(steps):
            loss = F.mse_loss(model(array(5, 3)), array(5, 2, seed=1))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
            show("loss", loss, scheduler.get_last_lr()[0])

    train(model, optimizer, scheduler, 2)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "checkpoint.pth.tar")
        state = {"epoch": 2, "state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}
        torch.save({**state, "rng": torch.get_rng_state()}, path)
        checkpoint = torch.load(path, map_location=torch.device("cpu"), weights_only=True)
    again = nn.Sequential(OrderedDict([("body", nn.Linear(3, 4)), ("act", nn.ReLU()), ("head", nn.Linear(4, 2))]))
    print(again.load_state_dict(checkpoint["state_dict"]), checkpoint["epoch"])
    optimizer2 = torch.optim.AdamW(again.parameters(), lr=3.0)
    optimizer2.load_state_dict(checkpoint["optimizer"])
    scheduler2 = torch.optim.lr_scheduler.StepLR(optimizer2, 1, 0.5)
    scheduler2.load_state_dict(checkpoint["scheduler"])
    train(again, optimizer2, scheduler2, 2)
    wrapped = {f"module.{k}": v for k, v in again.state_dict().items()}
    wrapped = OrderedDict((k.replace("module.", ""), v) for k, v in wrapped.items() if "head" not in k)
    result = again.load_state_dict(wrapped, strict=False)
    print(result.missing_keys, result.unexpected_keys)
    for bad in ({"body.weight": torch.zeros(2, 2)}, {"extra": torch.zeros(1)}):
        try:
            again.load_state_dict({**again.state_dict(), **bad})
        except RuntimeError as e:
            print(e)
    print(again)
    print(torch.arange(6.0).view(2, 3) / 3, torch.tensor([1, 2]), torch.tensor(True), array(2, 2) > 0, torch.zeros(2, requires_grad=True) + 1)


if __name__ == "__main__":
    data()
    checkpoints()
