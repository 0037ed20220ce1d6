"""Skip-gram with negative sampling, a counted vocabulary, nearest words; CBOW with EmbeddingBag."""

from collections import Counter

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F
from fill import compiled, fill, integers, show
from torch.utils.data import DataLoader, Dataset

TEXT = "the quick brown fox jumps over the lazy dog while the slow red fox sleeps near the old dog and the cat sits on the mat".split()


class SkipGramDataset(Dataset):
    def __init__(self, words, window=2):
        self.vocab = [w for w, _ in Counter(words).most_common()]
        self.stoi = {w: i for i, w in enumerate(self.vocab)}
        ids = [self.stoi[w] for w in words]
        self.pairs = [(ids[i], ids[j]) for i in range(len(ids)) for j in range(max(0, i - window), min(len(ids), i + window + 1)) if i != j]
        self.counts = np.bincount(ids, minlength=len(self.vocab))

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, idx):
        center, context = self.pairs[idx]
        return torch.tensor(center), torch.tensor(context), idx


class SGNS(nn.Module):
    def __init__(self, vocab, dim):
        super().__init__()
        self.u = nn.Embedding(vocab, dim)
        self.v = nn.Embedding(vocab, dim)
        self.u.weight.data.uniform_(-0.5 / dim, 0.5 / dim)
        self.v.weight.data.zero_()

    def forward(self, center, context, negative):
        u, v, n = self.u(center), self.v(context), self.v(negative)
        score = torch.mul(u, v).sum(dim=1).squeeze()
        negative_score = torch.bmm(n, u.unsqueeze(2)).squeeze(2)
        return -(F.logsigmoid(score) + F.logsigmoid(-negative_score).sum(1)).mean()


def main():
    data = SkipGramDataset(TEXT)
    noise = torch.from_numpy(data.counts).float().pow(0.75)
    drawn = torch.multinomial(noise / noise.sum(), 10, replacement=True)
    assert drawn.shape == (10,) and int(drawn.max()) < len(data.vocab)
    model = fill(SGNS(len(data.vocab), 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    loss_of = compiled(model)
    for k, (center, context, index) in enumerate(DataLoader(data, batch_size=32, drop_last=True)):
        optimizer.zero_grad()
        loss = loss_of(center, context, integers(len(data.vocab), len(index), 5, seed=k))
        loss.backward()
        optimizer.step()
        show("loss", loss.item())
    with torch.no_grad():
        e = F.normalize(model.u.weight, p=2, dim=1)
        near = torch.argsort(e @ e[data.stoi["fox"]], descending=True)[:4]
        print([data.vocab[i] for i in near], len(data.vocab))
        show("cosine", F.cosine_similarity(e[0], e[1], dim=0), torch.cdist(e[:3], e[3:6]).sum(), torch.dist(e[0], e[1]))
    bag = fill(nn.EmbeddingBag(len(data.vocab), 6, mode="mean", padding_idx=0))
    linear = fill(nn.Linear(6, 2))
    opt = torch.optim.Adagrad([*bag.parameters(), *linear.parameters()], lr=0.1)
    text, offsets, label = integers(len(data.vocab), 12), torch.tensor([0, 4, 9]), torch.tensor([0, 1, 0])
    for _ in range(3):
        loss = F.cross_entropy(linear(bag(text, offsets)), label)
        opt.zero_grad()
        loss.backward()
        opt.step()
        show("bag", loss)


if __name__ == "__main__":
    main()
