"""Ways of training: autocast with a scaler, EMA and SWA, gradient checkpointing, LBFGS, schedulers, freezing, hooks."""

import copy
import warnings

import torch
import torch.nn as nn
import torch.nn.functional as F
from fill import array, fill, integers, show
from torch.optim import lr_scheduler
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

x, y = array(16, 6), integers(3, 16)


def net(norm=True):
    middle = [nn.BatchNorm1d(8)] if norm else []
    return fill(nn.Sequential(nn.Linear(6, 8), *middle, nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)))


def mixed():
    model = net()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    scaler = torch.cuda.amp.GradScaler(enabled=torch.cuda.is_available())
    for _ in range(2):
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = model(x)
            assert out.dtype == torch.bfloat16
            loss = F.cross_entropy(out.float(), y)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        print("amp", loss.item() < 2, model[0].weight.grad.dtype)
    print(scaler.get_scale(), sorted(scaler.state_dict()))


def averaging():
    model = net()
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    swa = AveragedModel(model)
    shadow = copy.deepcopy(model)
    for p in shadow.parameters():
        p.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    scheduler, swa_scheduler = lr_scheduler.CosineAnnealingLR(optimizer, T_max=4), SWALR(optimizer, swa_lr=0.05, anneal_epochs=2)
    for epoch in range(5):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        ema.update_parameters(model)
        with torch.no_grad():
            for s, p in zip(shadow.parameters(), model.parameters()):
                s.lerp_(p, 0.1)
        if epoch > 2:
            swa.update_parameters(model)
            swa_scheduler.step()
        else:
            scheduler.step()
        show("lr", optimizer.param_groups[0]["lr"])
    update_bn([x[:8], x[8:]], swa)
    for m in (ema, swa, shadow):
        m.eval()
        show("averaged", F.cross_entropy(m(x), y))
    print(int(swa.n_averaged), list(swa.state_dict())[:2])


def recomputed():
    model = net(norm=False)
    for use in (False, True):
        model.zero_grad()
        inputs = x.clone().requires_grad_()
        h = checkpoint_sequential(model, 2, inputs, use_reentrant=False) if use else model(inputs)
        h = checkpoint(lambda t, k: torch.tanh(t) * k, h, 2.0, use_reentrant=False) if use else torch.tanh(h) * 2.0
        F.cross_entropy(h, y).backward()
        show("checkpoint", model[0].weight.grad.norm(), inputs.grad.norm())


def second_order():
    model = net(norm=False)
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=5, history_size=5, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) + 1e-3 * sum(p.pow(2.0).sum() for p in model.parameters())
        loss.backward()
        return loss

    for _ in range(3):
        show("lbfgs", optimizer.step(closure))


def schedules():
    kinds = [
        lambda o: lr_scheduler.StepLR(o, 2, 0.5),
        lambda o: lr_scheduler.MultiStepLR(o, [1, 3], gamma=0.1),
        lambda o: lr_scheduler.ExponentialLR(o, 0.9),
        lambda o: lr_scheduler.SequentialLR(
            o, [lr_scheduler.LinearLR(o, 0.1, total_iters=2), lr_scheduler.CosineAnnealingLR(o, 3)], milestones=[2]
        ),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 2, 2),
        lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=2, cycle_momentum=False),
        lambda o: lr_scheduler.PolynomialLR(o, 4, 2.0),
        lambda o: lr_scheduler.ChainedScheduler([lr_scheduler.ConstantLR(o, 0.5, 2), lr_scheduler.ExponentialLR(o, 0.8)]),
    ]
    for kind in kinds:
        p = nn.Parameter(torch.zeros(1))
        optimizer = torch.optim.SGD([p], lr=0.1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scheduler = kind(optimizer)
            rates = []
            for _ in range(5):
                optimizer.step()
                scheduler.step()
                rates.append(optimizer.param_groups[0]["lr"])
        show(type(scheduler).__name__, *rates)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    plateau = lr_scheduler.ReduceLROnPlateau(optimizer, "min", factor=0.5, patience=1)
    for v in (1.0, 1.0, 1.0, 0.9, 0.9, 0.9):
        plateau.step(v)
    show("plateau", optimizer.param_groups[0]["lr"])


def optimizers():
    for name in "SGD Adam AdamW RMSprop Adagrad Adadelta Adamax NAdam RAdam Rprop ASGD".split():
        model = net(norm=False)
        model[0].requires_grad_(False)
        optimizer = getattr(torch.optim, name)(filter(lambda p: p.requires_grad, model.parameters()), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        show(name, loss, sum(p.double().abs().sum() for p in model.parameters()))


def hooks():
    model, seen = net(), {}
    handles = [model[0].register_forward_hook(lambda m, i, o: seen.update(act=o.detach().mean()))]
    handles.append(model[3].register_full_backward_hook(lambda m, gi, go: seen.update(grad=go[0].norm())))
    handles.append(model.register_forward_pre_hook(lambda m, args: (args[0] * 2,)))
    model[0].weight.register_hook(lambda g: g * 0.5)
    F.cross_entropy(model(x), y).backward()
    show("hooks", seen["act"], seen["grad"], model[0].weight.grad.norm())
    for h in handles:
        h.remove()
    vector = nn.utils.parameters_to_vector(model.parameters())
    nn.utils.vector_to_parameters(vector * 0.5, model.parameters())
    show("vector", vector.norm(), model[0].weight.norm(), vector.numel())


if __name__ == "__main__":
    for part in (mixed, averaging, recomputed, second_order, schedules, optimizers, hooks):
        part()
