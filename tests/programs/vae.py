"""The variational autoencoder of the PyTorch examples, with the noise given, and the same with torch.distributions."""

import torch
from fill import array, compiled, fill, show
from torch import nn, optim
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F


class VAE(nn.Module):
    def __init__(self):
        super(VAE, self).__init__()
        self.fc1 = nn.Linear(64, 32)
        self.fc21 = nn.Linear(32, 4)
        self.fc22 = nn.Linear(32, 4)
        self.fc3 = nn.Linear(4, 32)
        self.fc4 = nn.Linear(32, 64)

    def encode(self, x):
        h1 = F.relu(self.fc1(x))
        return self.fc21(h1), self.fc22(h1)

    def reparameterize(self, mu, logvar, eps):
        std = torch.exp(0.5 * logvar)
        assert torch.randn_like(std).shape == std.shape
        return eps.mul(std).add_(mu)

    def decode(self, z):
        return torch.sigmoid(self.fc4(F.relu(self.fc3(z))))

    def forward(self, x, eps):
        mu, logvar = self.encode(x.view(-1, 64))
        z = self.reparameterize(mu, logvar, eps)
        return self.decode(z), mu, logvar


def loss_function(recon_x, x, mu, logvar):
    BCE = F.binary_cross_entropy(recon_x, x.view(-1, 64), reduction="sum")
    KLD = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    return BCE + KLD


def main():
    torch.manual_seed(1)
    model = fill(VAE()).to("cpu")
    optimizer = optim.Adam(model.parameters(), lr=1e-2)

    @compiled
    def step(data, eps):
        optimizer.zero_grad()
        recon, mu, logvar = model(data, eps)
        loss = loss_function(recon, data, mu, logvar)
        loss.backward()
        optimizer.step()
        return loss

    for it in range(5):
        loss = step(array(8, 1, 8, 8, seed=it).sigmoid(), array(8, 4, seed=50 + it))
        show("loss", loss.item() / 8)
    mu, logvar = model.encode(array(3, 64).sigmoid())
    q = Normal(mu, (0.5 * logvar).exp())
    z = q.rsample()
    assert z.requires_grad and q.log_prob(z).shape == (3, 4)
    kl = kl_divergence(q, Normal(torch.zeros_like(mu), torch.ones_like(mu)))
    show("kl", kl.sum(), q.log_prob(array(3, 4)).sum(), q.entropy().mean(), q.cdf(mu + 1).mean())
    torch.testing.assert_close(kl, -0.5 * (1 + logvar - mu.pow(2) - logvar.exp()), rtol=1e-4, atol=1e-5)


if __name__ == "__main__":
    main()
