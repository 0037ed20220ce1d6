"""A small U-Net with time embedding and attention, trained as DDPM; then some steps of sampling with the noise given."""

import math

import torch
import torch.nn.functional as F
from fill import array, compiled, fill, integers, show
from torch import nn


class SinusoidalPosEmb(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, x):
        half = self.dim // 2
        emb = torch.exp(torch.arange(half, device=x.device) * -(math.log(10000) / (half - 1)))
        emb = x[:, None] * emb[None, :]
        return torch.cat((emb.sin(), emb.cos()), dim=-1)


class ResBlock(nn.Module):
    def __init__(self, dim, dim_out, time_dim):
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, dim_out * 2))
        self.conv1, self.norm1 = nn.Conv2d(dim, dim_out, 3, padding=1), nn.GroupNorm(4, dim_out)
        self.conv2, self.norm2 = nn.Conv2d(dim_out, dim_out, 3, padding=1), nn.GroupNorm(4, dim_out)
        self.res = nn.Conv2d(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    def forward(self, x, t):
        scale, shift = self.mlp(t)[..., None, None].chunk(2, dim=1)
        h = F.silu(self.norm1(self.conv1(x)) * (scale + 1) + shift)
        return F.silu(self.norm2(self.conv2(h))) + self.res(x)


class Attention(nn.Module):
    def __init__(self, dim, heads=2):
        super().__init__()
        self.heads, self.norm = heads, nn.GroupNorm(1, dim)
        self.to_qkv, self.to_out = nn.Conv2d(dim, dim * 3, 1, bias=False), nn.Conv2d(dim, dim, 1)

    def forward(self, x):
        b, c, h, w = x.shape
        q, k, v = map(lambda t: t.reshape(b, self.heads, c // self.heads, h * w), self.to_qkv(self.norm(x)).chunk(3, dim=1))
        sim = torch.einsum("b h d i, b h d j -> b h i j", q * (c // self.heads) ** -0.5, k)
        out = torch.einsum("b h i j, b h d j -> b h d i", sim.softmax(dim=-1), v)
        return self.to_out(out.reshape(b, c, h, w)) + x


class Unet(nn.Module):
    def __init__(self, dim=8):
        super().__init__()
        self.time = nn.Sequential(SinusoidalPosEmb(dim), nn.Linear(dim, dim * 4), nn.GELU(), nn.Linear(dim * 4, dim * 4))
        self.init_conv = nn.Conv2d(1, dim, 7, padding=3)
        self.down1, self.down2 = ResBlock(dim, dim, dim * 4), ResBlock(dim, dim * 2, dim * 4)
        self.downsample = nn.Conv2d(dim, dim, 4, 2, 1)
        self.mid = Attention(dim * 2)
        self.upsample = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), nn.Conv2d(dim * 2, dim, 3, padding=1))
        self.up, self.final = ResBlock(dim * 2, dim, dim * 4), nn.ConvTranspose2d(dim, 1, 3, padding=1)

    def forward(self, x, time):
        t = self.time(time)
        h = self.down1(self.init_conv(x), t)
        m = self.mid(self.down2(self.downsample(h), t))
        return self.final(self.up(torch.cat((self.upsample(m), h), dim=1), t))


def cosine_beta_schedule(timesteps, s=0.008):
    t = torch.linspace(0, timesteps, timesteps + 1, dtype=torch.float64) / timesteps
    alphas_cumprod = torch.cos((t + s) / (1 + s) * math.pi * 0.5) ** 2
    alphas_cumprod = alphas_cumprod / alphas_cumprod[0]
    return torch.clip(1 - (alphas_cumprod[1:] / alphas_cumprod[:-1]), 0, 0.999)


def extract(a, t, x_shape):
    return a.gather(-1, t).reshape(t.shape[0], *((1,) * (len(x_shape) - 1)))


class Diffusion(nn.Module):
    def __init__(self, model, timesteps=20):
        super().__init__()
        self.model, self.num_timesteps = model, timesteps
        betas = cosine_beta_schedule(timesteps)
        cumprod = torch.cumprod(1.0 - betas, dim=0)
        prev = F.pad(cumprod[:-1], (1, 0), value=1.0)
        for name, val in dict(
            betas=betas, a=cumprod.sqrt(), b=torch.sqrt(1.0 - cumprod), variance=betas * (1 - prev) / (1 - cumprod), recip=torch.rsqrt(1 - betas)
        ).items():
            self.register_buffer(name, val.to(torch.float32))

    def loss(self, x, t, noise):
        noisy = extract(self.a, t, x.shape) * x + extract(self.b, t, x.shape) * noise
        return F.mse_loss(self.model(noisy, t), noise, reduction="none").flatten(1).mean(1).mean()

    @torch.no_grad()
    def sample(self, x):
        for i in reversed(range(0, self.num_timesteps, 4)):
            t = torch.full((x.shape[0],), i, device=x.device, dtype=torch.long)
            mean = extract(self.recip, t, x.shape) * (x - extract(self.betas / self.b, t, x.shape) * self.model(x, t))
            x = mean if i == 0 else mean + extract(self.variance, t, x.shape).sqrt() * array(*x.shape, seed=i)
        return x.clamp_(-1.0, 1.0)


def main():
    diffusion = Diffusion(fill(Unet()))
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-3, betas=(0.9, 0.99))
    loss_of = compiled(diffusion.loss)
    for it in range(4):
        optimizer.zero_grad()
        loss = loss_of(array(4, 1, 16, 16, seed=it), integers(20, 4, seed=it), array(4, 1, 16, 16, seed=100 + it))
        loss.backward()
        optimizer.step()
        show("loss", loss)
    out = diffusion.sample(array(2, 1, 16, 16, seed=9))
    show("sample", out.mean(), out.std(), out.abs().max())


if __name__ == "__main__":
    main()
