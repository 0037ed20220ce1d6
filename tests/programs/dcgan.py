"""DCGAN's two networks and alternating steps, and a spectrally normalised discriminator with hinge loss."""

import torch
import torch.nn as nn
import torch.nn.parallel
import torch.optim as optim
from fill import array, compiled, fill, show
from torch.nn.utils import spectral_norm
from torch.nn.utils.parametrizations import spectral_norm as spectral_norm_new

nz, ngf, ndf = 6, 8, 8


def weights_init(m):
    classname = m.__class__.__name__
    if classname.find("Conv") != -1:
        torch.nn.init.normal_(m.weight, 0.0, 0.02)
    elif classname.find("BatchNorm") != -1:
        torch.nn.init.ones_(m.weight)
        torch.nn.init.zeros_(m.bias)


class Generator(nn.Module):
    def __init__(self):
        super(Generator, self).__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(nz, ngf * 2, 4, 1, 0, bias=False),
            nn.BatchNorm2d(ngf * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 2, ngf, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ngf),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf, 1, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, input):
        return self.main(input)


def discriminator(wrap=lambda m: m):
    return nn.Sequential(
        wrap(nn.Conv2d(1, ndf, 4, 2, 1, bias=False)),
        nn.LeakyReLU(0.2, inplace=True),
        wrap(nn.Conv2d(ndf, ndf * 2, 4, 2, 1, bias=False)),
        nn.BatchNorm2d(ndf * 2) if wrap.__name__ == "<lambda>" else nn.InstanceNorm2d(ndf * 2, affine=True),
        nn.LeakyReLU(0.2, inplace=True),
        wrap(nn.Conv2d(ndf * 2, 1, 4, 1, 0, bias=False)),
    )


def main():
    netG = fill(Generator().apply(weights_init))
    netD = fill(discriminator().apply(weights_init))
    netD.add_module("sigmoid", nn.Sigmoid())
    criterion = nn.BCELoss()
    optimizerD = optim.Adam(netD.parameters(), lr=0.002, betas=(0.5, 0.999))
    optimizerG = optim.Adam(netG.parameters(), lr=0.002, betas=(0.5, 0.999))

    @compiled
    def step(real_cpu, noise):
        netD.zero_grad()
        b_size = real_cpu.size(0)
        label = torch.full((b_size,), 1.0, dtype=torch.float, device=real_cpu.device)
        output = netD(real_cpu).view(-1)
        errD_real = criterion(output, label)
        errD_real.backward()
        fake = netG(noise)
        label.fill_(0.0)
        output = netD(fake.detach()).view(-1)
        errD_fake = criterion(output, label)
        errD_fake.backward()
        optimizerD.step()
        netG.zero_grad()
        label.fill_(1.0)
        output = netD(fake).view(-1)
        errG = criterion(output, label)
        errG.backward()
        optimizerG.step()
        return errD_real + errD_fake, errG, output.mean()

    for it in range(3):
        show("gan", *step(array(4, 1, 16, 16, seed=it), array(4, nz, 1, 1, seed=40 + it)))

    for wrap in (spectral_norm, spectral_norm_new):
        net = discriminator(wrap)
        with torch.no_grad():
            for k, m in enumerate(c for c in net if isinstance(c, nn.Conv2d)):
                original = m.weight_orig if hasattr(m, "weight_orig") else m.parametrizations.weight.original
                original.copy_(array(*original.shape, seed=k, scale=0.2))
                holder = m if hasattr(m, "weight_u") else m.parametrizations.weight[0]
                u, v = ("weight_u", "weight_v") if holder is m else ("_u", "_v")
                for name in (u, v):
                    getattr(holder, name).copy_(nn.functional.normalize(array(*getattr(holder, name).shape, seed=7), dim=0))
        opt = torch.optim.RMSprop(net.parameters(), lr=1e-3)
        for it in range(3):
            loss = torch.relu(1 - net(array(4, 1, 16, 16, seed=it))).mean() + torch.relu(1 + net(array(4, 1, 16, 16, seed=9 + it))).mean()
            opt.zero_grad()
            loss.backward()
            opt.step()
            show("hinge", loss)
        print(sorted(net.state_dict())[:4])


if __name__ == "__main__":
    main()
