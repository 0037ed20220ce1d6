"""RealNVP, a neural ODE by Runge-Kutta, a physics-informed network with second derivatives, WGAN-GP, MAML, Adam written by hand."""

import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from fill import array, compiled, fill, show
from torch import distributions
from torch.autograd import grad
from torch.func import functional_call
from torch.optim import Optimizer


class RealNVP(nn.Module):
    def __init__(self, nets, nett, mask, prior):
        super().__init__()
        self.prior = prior
        self.mask = nn.Parameter(mask, requires_grad=False)
        self.t = torch.nn.ModuleList([nett() for _ in range(len(mask))])
        self.s = torch.nn.ModuleList([nets() for _ in range(len(mask))])

    def g(self, z):
        x = z
        for i in range(len(self.t)):
            x_ = x * self.mask[i]
            s, t = self.s[i](x_) * (1 - self.mask[i]), self.t[i](x_) * (1 - self.mask[i])
            x = x_ + (1 - self.mask[i]) * (x * torch.exp(s) + t)
        return x

    def f(self, x):
        log_det_J, z = x.new_zeros(x.shape[0]), x
        for i in reversed(range(len(self.t))):
            z_ = self.mask[i] * z
            s, t = self.s[i](z_) * (1 - self.mask[i]), self.t[i](z_) * (1 - self.mask[i])
            z = (1 - self.mask[i]) * (z - t) * torch.exp(-s) + z_
            log_det_J -= s.sum(dim=1)
        return z, log_det_J

    def log_prob(self, x):
        z, logp = self.f(x)
        return self.prior.log_prob(z) + logp


class HandAdam(Optimizer):
    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0):
        if not 0.0 <= lr:
            raise ValueError("Invalid learning rate: {}".format(lr))
        super().__init__(params, dict(lr=lr, betas=betas, eps=eps, weight_decay=weight_decay))

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if len(state) == 0:
                    state["step"] = 0
                    state["exp_avg"] = torch.zeros_like(p, memory_format=torch.preserve_format)
                    state["exp_avg_sq"] = torch.zeros_like(p.data)
                beta1, beta2 = group["betas"]
                state["step"] += 1
                state["exp_avg"].mul_(beta1).add_(p.grad, alpha=1 - beta1)
                state["exp_avg_sq"].mul_(beta2).addcmul_(p.grad, p.grad, value=1 - beta2)
                denom = (state["exp_avg_sq"].sqrt() / math.sqrt(1 - beta2 ** state["step"])).add_(group["eps"])
                p.addcdiv_(state["exp_avg"], denom, value=-group["lr"] / (1 - beta1 ** state["step"]))
        return loss


def mlp(*sizes):
    layers = [m for a, b in zip(sizes, sizes[1:]) for m in (nn.Linear(a, b), nn.Tanh())][:-1]
    return nn.Sequential(*layers)


def train(name, model, loss_of, optimizer, steps=4):
    loss_of = compiled(loss_of)
    for it in range(steps):
        optimizer.zero_grad()
        loss = loss_of(it)
        loss.backward()
        optimizer.step()
        show(name, loss)


def flow():
    masks = torch.tensor([[0, 1], [1, 0]] * 2, dtype=torch.float32)
    prior = distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    model = fill(RealNVP(lambda: nn.Sequential(mlp(2, 8, 2), nn.Tanh()), lambda: mlp(2, 8, 2), masks, prior))
    optimizer = HandAdam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    train("flow", model, lambda it: -model.log_prob(array(16, 2, seed=it)).mean(), optimizer)
    z = array(5, 2)
    show("inverse", (model.f(model.g(z))[0] - z).abs().max() < 1e-2, prior.sample((3,)).shape[0])


def ode():
    func = fill(mlp(2, 8, 2))

    def odeint(y, t):
        ys = [y]
        for t0, t1 in zip(t[:-1], t[1:]):
            h = t1 - t0
            k1 = func(y**3)
            k2 = func((y + h * k1 / 2) ** 3)
            k3 = func((y + h * k2 / 2) ** 3)
            k4 = func((y + h * k3) ** 3)
            y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
            ys.append(y)
        return torch.stack(ys)

    t = torch.linspace(0.0, 1.0, 6)
    train("ode", func, lambda it: torch.mean(torch.abs(odeint(array(3, 2), t) - array(6, 3, 2, seed=2))), torch.optim.RMSprop(func.parameters(), lr=1e-3))


def pinn():
    u = fill(mlp(2, 12, 1))

    def loss_of(it):
        x, t = array(10, 1, seed=it).requires_grad_(True), array(10, 1, seed=it + 9).requires_grad_(True)
        y = u(torch.cat([x, t], dim=1))
        u_x, u_t = torch.autograd.grad(y, (x, t), grad_outputs=torch.ones_like(y), create_graph=True)
        u_xx = torch.autograd.grad(u_x.sum(), x, create_graph=True, retain_graph=True)[0]
        return (u_t + y * u_x - (0.01 / math.pi) * u_xx).square().mean() + (u(array(4, 2)) - 1).pow(2).mean()

    train("pinn", u, loss_of, torch.optim.Adam(u.parameters(), lr=1e-2))


def penalty():
    critic = fill(nn.Sequential(nn.Conv2d(1, 4, 3, 2, 1), nn.LeakyReLU(0.2), nn.Flatten(), nn.Linear(64, 1)))

    def loss_of(it):
        real, fake, alpha = array(4, 1, 8, 8, seed=it), array(4, 1, 8, 8, seed=it + 9), array(4, 1, 1, 1, seed=it).sigmoid()
        interpolates = torch.autograd.Variable(alpha * real + ((1 - alpha) * fake), requires_grad=True)
        d = critic(interpolates)
        gradients = grad(outputs=d, inputs=interpolates, grad_outputs=torch.ones(d.size()), create_graph=True, only_inputs=True)[0]
        gp = ((gradients.view(4, -1).norm(2, dim=1) - 1) ** 2).mean() * 10
        return critic(fake).mean() - critic(real).mean() + gp

    train("wgan-gp", critic, loss_of, torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.9)))


def maml():
    net = fill(mlp(1, 8, 1))

    def loss_of(it):
        total = 0.0
        for task in range(2):
            x = array(5, 1, seed=it + task)
            params = dict(net.named_parameters())
            inner = F.mse_loss(functional_call(net, params, (x,)), torch.sin(x + task))
            grads = torch.autograd.grad(inner, tuple(params.values()), create_graph=True)
            fast = {n: p - 0.1 * g for (n, p), g in zip(params.items(), grads)}
            total = total + F.mse_loss(functional_call(net, fast, (x + 0.5,)), torch.sin(x + 0.5 + task))
        return total / 2

    train("maml", net, loss_of, torch.optim.SGD(net.parameters(), lr=0.05))


if __name__ == "__main__":
    for part in (flow, ode, pinn, penalty, maml):
        part()
