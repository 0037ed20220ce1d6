"""A vision transformer in lucidrains' manner (einops), an MLP-Mixer, a ConvNeXt block and an EfficientNet block."""

from functools import partial

import torch
import torch.nn.functional as F
from einops import rearrange, reduce, repeat
from einops.layers.torch import Rearrange, Reduce
from fill import array, compiled, fill, integers, show
from torch import einsum, nn


def pair(t):
    return t if isinstance(t, tuple) else (t, t)


class Attention(nn.Module):
    def __init__(self, dim, heads=4, dim_head=8):
        super().__init__()
        self.heads, self.scale, self.norm = heads, dim_head**-0.5, nn.LayerNorm(dim)
        self.to_qkv = nn.Linear(dim, heads * dim_head * 3, bias=False)
        self.to_out = nn.Sequential(nn.Linear(heads * dim_head, dim), nn.Dropout(0.0))

    def forward(self, x):
        qkv = self.to_qkv(self.norm(x)).chunk(3, dim=-1)
        q, k, v = map(lambda t: rearrange(t, "b n (h d) -> b h n d", h=self.heads), qkv)
        attn = (einsum("b h i d, b h j d -> b h i j", q, k) * self.scale).softmax(dim=-1)
        return self.to_out(rearrange(torch.matmul(attn, v), "b h n d -> b n (h d)"))


def FeedForward(dim, mult=2, dense=nn.Linear):
    return nn.Sequential(nn.LayerNorm(dim), dense(dim, dim * mult), nn.GELU(), dense(dim * mult, dim))


class ViT(nn.Module):
    def __init__(self, *, image_size, patch_size, num_classes, dim, depth, channels=3):
        super().__init__()
        (ih, iw), (ph, pw) = pair(image_size), pair(patch_size)
        patches, patch_dim = (ih // ph) * (iw // pw), channels * ph * pw
        self.to_patch_embedding = nn.Sequential(
            Rearrange("b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=ph, p2=pw), nn.LayerNorm(patch_dim), nn.Linear(patch_dim, dim)
        )
        self.pos_embedding = nn.Parameter(torch.randn(1, patches + 1, dim))
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim))
        self.layers = nn.ModuleList([nn.ModuleList([Attention(dim), FeedForward(dim)]) for _ in range(depth)])
        self.head = nn.Linear(dim, num_classes)

    def forward(self, img):
        x = self.to_patch_embedding(img)
        b, n, _ = x.shape
        x = torch.cat((repeat(self.cls_token, "1 1 d -> b 1 d", b=b), x), dim=1)
        x += self.pos_embedding[:, : (n + 1)]
        for attn, ff in self.layers:
            x = attn(x) + x
            x = ff(x) + x
        return self.head(x[:, 0] + reduce(x, "b n d -> b d", "mean"))


class PreNormResidual(nn.Module):
    def __init__(self, dim, fn):
        super().__init__()
        self.fn, self.norm = fn, nn.LayerNorm(dim)

    def forward(self, x):
        return self.fn(self.norm(x)) + x


def MLPMixer(dim, patches, depth, classes):
    chan_first = partial(nn.Conv1d, kernel_size=1)
    return nn.Sequential(
        Rearrange("b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=4, p2=4),
        nn.Linear(48, dim),
        *[
            nn.Sequential(
                PreNormResidual(dim, nn.Sequential(chan_first(patches, 8), nn.GELU(), chan_first(8, patches))),
                PreNormResidual(dim, FeedForward(dim)[1:]),
            )
            for _ in range(depth)
        ],
        nn.LayerNorm(dim),
        Reduce("b n c -> b c", "mean"),
        nn.Linear(dim, classes),
    )


class ConvNeXtBlock(nn.Module):
    def __init__(self, dim, layer_scale_init_value=1e-1):
        super().__init__()
        self.dwconv = nn.Conv2d(dim, dim, kernel_size=7, padding=3, groups=dim)
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.pwconv1, self.act, self.pwconv2 = nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim)
        self.gamma = nn.Parameter(layer_scale_init_value * torch.ones(dim), requires_grad=True)

    def forward(self, x):
        y = self.norm(self.dwconv(x).permute(0, 2, 3, 1))
        return x + (self.gamma * self.pwconv2(self.act(self.pwconv1(y)))).permute(0, 3, 1, 2)


class MBConv(nn.Module):
    def __init__(self, cin, cout, expand=4, stride=1):
        super().__init__()
        mid = cin * expand
        self.expand = nn.Sequential(nn.Conv2d(cin, mid, 1, bias=False), nn.BatchNorm2d(mid, momentum=0.01, eps=1e-3), nn.SiLU(inplace=True))
        self.depth = nn.Sequential(nn.Conv2d(mid, mid, 3, stride, 1, groups=mid, bias=False), nn.BatchNorm2d(mid), nn.Hardswish())
        self.se = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(mid, 4, 1), nn.ReLU6(), nn.Conv2d(4, mid, 1), nn.Hardsigmoid())
        self.project = nn.Sequential(nn.Conv2d(mid, cout, 1, bias=False), nn.BatchNorm2d(cout))

    def forward(self, x):
        h = self.depth(self.expand(x))
        return self.project(h * self.se(h))


def main():
    torch.manual_seed(0)
    conv = nn.Sequential(
        nn.Conv2d(3, 8, 4, 4), ConvNeXtBlock(8), MBConv(8, 12, stride=2), nn.AdaptiveMaxPool2d(2), nn.Flatten(), nn.Linear(48, 5)
    )
    vit = ViT(image_size=16, patch_size=4, num_classes=5, dim=16, depth=2)
    for name, model in (("vit", vit), ("mixer", MLPMixer(16, 16, 2, 5)), ("conv", conv)):
        opt = torch.optim.AdamW(fill(model).parameters(), lr=3e-3, weight_decay=0.05)
        forward = compiled(model)
        for it in range(3):
            loss = F.cross_entropy(forward(array(6, 3, 16, 16, seed=it)), integers(5, 6, seed=it))
            opt.zero_grad()
            loss.backward()
            opt.step()
            show(name, loss)


if __name__ == "__main__":
    main()
