"""A squashed Gaussian policy as in SAC, a mixture density network, and one-hot latents with straight-through gradients."""

import torch
import torch.nn as nn
from fill import array, compiled, fill, show
from torch import distributions as D
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal, OneHotCategoricalStraightThrough
from torch.distributions.transformed_distribution import TransformedDistribution
from torch.distributions.transforms import AffineTransform, ExpTransform, SigmoidTransform, TanhTransform


def squashed():
    actor = fill(nn.Linear(4, 4))
    optimizer = torch.optim.Adam(actor.parameters(), lr=0.01)
    for it in range(3):
        mean, log_std = actor(array(6, 4, seed=it)).chunk(2, dim=-1)
        policy = Independent(TransformedDistribution(Normal(mean, log_std.clamp(-5, 2).exp()), [TanhTransform(cache_size=1)]), 1)
        loss = -policy.log_prob(torch.tanh(array(6, 2, seed=it + 9))).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        show("tanh", loss, policy.rsample().abs().max() < 1)


def mixture():
    net = fill(nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 9)))
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)

    def loss_of(x, y):
        weights, loc, scale = net(x).chunk(3, dim=-1)
        return -MixtureSameFamily(Categorical(logits=weights), Normal(loc, scale.exp())).log_prob(y.squeeze(-1)).mean()

    loss_of = compiled(loss_of)
    for it in range(3):
        x = array(10, 1, seed=it)
        loss = loss_of(x, torch.sin(x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        show("mdn", loss)
    parts = Independent(Normal(array(2, 3, 2), array(2, 3, 2, seed=1).exp()), 1)
    whole = MixtureSameFamily(Categorical(torch.ones(2, 3)), parts)
    show("moments", whole.mean.sum(), whole.variance.sum(), whole.log_prob(array(2, 2)).sum(), whole.sample((5,)).numel())


def latents():
    logits = array(3, 4, 5).requires_grad_()
    q = OneHotCategoricalStraightThrough(logits=logits)
    z = q.rsample()
    (z * array(3, 4, 5, seed=2)).sum().backward()
    show("one-hot", z.sum(), logits.grad.abs().sum(), q.log_prob(z.detach()).shape[1], q.entropy().sum())
    for transforms in ([AffineTransform(1.0, -2.0), ExpTransform()], [SigmoidTransform()]):
        d = TransformedDistribution(D.Normal(torch.zeros(3), torch.ones(3)), transforms)
        show("transformed", d.log_prob(array(3).sigmoid()).sum(), d.sample((2,)).shape[0])


if __name__ == "__main__":
    squashed()
    mixture()
    latents()
