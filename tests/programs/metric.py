"""Siamese contrastive, triplet, SimCLR (NT-Xent), CLIP, and distillation losses over small encoders."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from fill import array, compiled, fill, integers, show


class SiameseNetwork(nn.Module):
    def __init__(self):
        super(SiameseNetwork, self).__init__()
        self.cnn1 = nn.Sequential(
            nn.ReflectionPad2d(1),
            nn.Conv2d(1, 4, kernel_size=3),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(4),
            nn.Dropout2d(p=0.0),
            nn.MaxPool2d(2),
        )
        self.fc1 = nn.Sequential(nn.Linear(4 * 4 * 4, 16), nn.ReLU(inplace=True), nn.Linear(16, 5))

    def forward_once(self, x):
        output = self.cnn1(x)
        output = output.view(output.size()[0], -1)
        return self.fc1(output)

    def forward(self, input1, input2):
        return self.forward_once(input1), self.forward_once(input2)


class ContrastiveLoss(torch.nn.Module):
    def __init__(self, margin=2.0):
        super().__init__()
        self.margin = margin

    def forward(self, output1, output2, label):
        d = F.pairwise_distance(output1, output2, keepdim=True)
        return torch.mean((1 - label) * torch.pow(d, 2) + label * torch.pow(torch.clamp(self.margin - d, min=0.0), 2))


def info_nce(features, temperature=0.5):
    n = features.shape[0] // 2
    labels = torch.cat([torch.arange(n) for i in range(2)], dim=0)
    labels = (labels.unsqueeze(0) == labels.unsqueeze(1)).float()
    features = F.normalize(features, dim=1)
    similarity = torch.matmul(features, features.T)
    mask = torch.eye(labels.shape[0], dtype=torch.bool)
    labels = labels[~mask].view(labels.shape[0], -1)
    similarity = similarity[~mask].view(similarity.shape[0], -1)
    positives = similarity[labels.bool()].view(labels.shape[0], -1)
    negatives = similarity[~labels.bool()].view(similarity.shape[0], -1)
    logits = torch.cat([positives, negatives], dim=1)
    return logits / temperature, torch.zeros(logits.shape[0], dtype=torch.long)


def distillation(student, teacher, labels, T=4.0, alpha=0.7):
    soft = F.kl_div(F.log_softmax(student / T, dim=1), F.softmax(teacher / T, dim=1), reduction="batchmean") * (T * T * alpha)
    return soft + F.cross_entropy(student, labels) * (1.0 - alpha)


def main():
    net = fill(SiameseNetwork())
    scale = nn.Parameter(torch.ones([]) * torch.log(torch.tensor(1 / 0.07)))
    teacher = fill(SiameseNetwork(), seed=9).eval().requires_grad_(False)
    criteria = {
        "contrastive": lambda a, b: ContrastiveLoss()(*net(a, b), (torch.arange(6) % 2).float().unsqueeze(1)),
        "triplet": lambda a, b: nn.TripletMarginLoss(margin=1.0, p=2)(net.forward_once(a), net.forward_once(b), net.forward_once(a.flip(0))),
        "nt-xent": lambda a, b: nn.CrossEntropyLoss()(*info_nce(net.forward_once(torch.cat([a, b])))),
        "cosine": lambda a, b: nn.CosineEmbeddingLoss(margin=0.1)(*net(a, b), torch.arange(6) % 2 * 2 - 1),
        "ranking": lambda a, b: F.margin_ranking_loss(*[t.mean(1) for t in net(a, b)], torch.ones(6), margin=0.3),
        "distill": lambda a, b: distillation(net.forward_once(a), teacher.forward_once(a), integers(5, 6)),
        "huber": lambda a, b: F.huber_loss(net.forward_once(a), teacher.forward_once(b), delta=0.5) + F.l1_loss(*net(a, b)),
        "bce": lambda a, b: F.binary_cross_entropy_with_logits(net.forward_once(a), (b.flatten(1)[:, :5] > 0).float(), pos_weight=torch.ones(5) * 2),
        "ctc": lambda a, b: F.ctc_loss(
            F.log_softmax(net.forward_once(a), 1).view(6, 1, 5), torch.tensor([[1, 2, 2]]), torch.tensor([6]), torch.tensor([3])
        ),
    }

    def clip(a, b):
        image, text = F.normalize(net.forward_once(a), dim=-1), F.normalize(net.forward_once(b), dim=-1)
        logits = scale.exp() * image @ text.t()
        labels = torch.arange(len(logits), device=logits.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.t(), labels)) / 2

    optimizer = torch.optim.SGD([*net.parameters(), scale], lr=0.01)
    for name, criterion in {**criteria, "clip": clip}.items():
        run = compiled(criterion)
        for it in range(2):
            loss = run(array(6, 1, 8, 8, seed=it), array(6, 1, 8, 8, seed=it + 5))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            show(name, loss)


if __name__ == "__main__":
    main()
