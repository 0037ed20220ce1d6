"""torch.func per-sample gradients, Jacobians and Hessians; custom autograd functions, straight-through and VQ; a tensor subclass-free scan."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from fill import array, compiled, fill, integers, show
from torch.autograd import Function, gradcheck
from torch.autograd.functional import hessian as old_hessian
from torch.autograd.functional import jacobian as old_jacobian
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, stack_module_state, vjp, vmap


def per_sample():
    model = fill(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 4)))
    params = {k: v.detach() for k, v in model.named_parameters()}
    buffers = {k: v.detach() for k, v in model.named_buffers()}

    def compute_loss(params, buffers, sample, target):
        predictions = functional_call(model, (params, buffers), (sample.unsqueeze(0),))
        return F.cross_entropy(predictions, target.unsqueeze(0))

    x, y = array(5, 1, 6, 6), integers(4, 5)
    each = vmap(grad(compute_loss), in_dims=(None, None, 0, 0))(params, buffers, x, y)
    for name, g in each.items():
        show(name, g.shape[0], g.flatten(1).norm(dim=1).sum())
    F.cross_entropy(model(x), y).backward()
    assert torch.allclose(each["0.weight"].mean(0), model[0].weight.grad, atol=1e-5)
    ensemble = [fill(nn.Linear(4, 2), seed=s) for s in range(3)]
    stacked, _ = stack_module_state(ensemble)
    base = ensemble[0]
    out = vmap(lambda p, v: functional_call(base, p, (v,)), in_dims=(0, None))(stacked, array(6, 4))
    show("ensemble", *out.shape, out.sum())


def derivatives():
    f = lambda v: (v.sin() * v.roll(1)).sum()  # noqa: E731
    v = array(4)
    show("hessian", hessian(f)(v).sum(), old_hessian(f, v).sum(), jacrev(torch.exp)(v).diagonal().sum(), jacfwd(torch.tanh)(v).trace())
    show("jacobian", old_jacobian(lambda a: a.cumsum(0) ** 2, v).sum())
    out, tangent = jvp(f, (v,), (torch.ones(4),))
    value, pull = vjp(f, v)
    show("jvp", out, tangent, pull(torch.tensor(1.0))[0].sum() - tangent)
    x = array(3, 2).double().requires_grad_()
    assert gradcheck(lambda t: torch.logsumexp(t * 2, 0), (x,), eps=1e-6, atol=1e-4)


class Quantize(Function):
    @staticmethod
    def forward(ctx, x, levels):
        ctx.save_for_backward(x)
        return torch.round(x.clamp(-1, 1) * levels) / levels

    @staticmethod
    def backward(ctx, grad_output):
        (x,) = ctx.saved_tensors
        return grad_output * (x.abs() <= 1).to(grad_output.dtype), None


class GradReverse(Function):
    @staticmethod
    def forward(ctx, x, alpha):
        ctx.alpha = alpha
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad_output):
        return grad_output.neg() * ctx.alpha, None


class VectorQuantizer(nn.Module):
    def __init__(self, k, d):
        super().__init__()
        self.embedding = nn.Embedding(k, d)
        self.embedding.weight.data.uniform_(-1.0 / k, 1.0 / k)

    def forward(self, z):
        flat = z.view(-1, z.shape[-1])
        d = torch.sum(flat**2, dim=1, keepdim=True) + torch.sum(self.embedding.weight**2, dim=1) - 2 * torch.matmul(flat, self.embedding.weight.t())
        indices = torch.argmin(d, dim=1).unsqueeze(1)
        one_hot = torch.zeros(indices.shape[0], self.embedding.num_embeddings)
        one_hot.scatter_(1, indices, 1)
        q = torch.matmul(one_hot, self.embedding.weight).view(z.shape)
        loss = F.mse_loss(q.detach(), z) * 0.25 + F.mse_loss(q, z.detach())
        avg = torch.mean(one_hot, dim=0)
        return z + (q - z).detach(), loss, torch.exp(-torch.sum(avg * torch.log(avg + 1e-10)))


def custom():
    model, vq, head = fill(nn.Linear(4, 6)), fill(VectorQuantizer(5, 6)), fill(nn.Linear(6, 2))
    opt = torch.optim.Adam([*model.parameters(), *vq.parameters(), *head.parameters()], lr=0.02)

    @compiled
    def step(x, y):
        z = Quantize.apply(model(x), 4)
        q, loss, perplexity = vq(z)
        loss = loss + F.cross_entropy(head(GradReverse.apply(q, 0.3)), y)
        opt.zero_grad()
        loss.backward()
        opt.step()
        return loss, perplexity

    for it in range(4):
        show("custom", *step(array(8, 4, seed=it), integers(2, 8, seed=it)))
    logits = array(4, 5).requires_grad_()
    hard = F.gumbel_softmax(logits, tau=1, hard=True, dim=-1)
    hard.sum().backward()
    show("gumbel", hard.sum())


if __name__ == "__main__":
    for part in (per_sample, derivatives, custom):
        part()
