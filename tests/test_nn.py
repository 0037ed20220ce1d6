"""Modules, parameters, functional forms, initial values and gradient clipping behave as in PyTorch."""

from __future__ import annotations

import copy
import gc
import math
import pickle
import weakref
from collections import OrderedDict

import numpy as np
import pytest

import torchlet as tl
from torchlet import nn
from torchlet.nn import functional as F

rng = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 3)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(3, 3), nn.ReLU()) for _ in range(2)])
        self.register_buffer("scale", tl.ones(3))
        self.register_buffer("scratch", tl.zeros(2), persistent=False)

    def forward(self, x: tl.Tensor) -> tl.Tensor:
        x = self.fc1(x)
        for block in self.blocks:
            x = block(x)
        return x * self.scale


NAMES = ["fc1.weight", "fc1.bias", "blocks.0.0.weight", "blocks.0.0.bias", "blocks.1.0.weight", "blocks.1.0.bias"]

# ------------------------------------------------------------------------------------------------ registries


def test_parameters_buffers_and_modules_are_found_in_order_of_assignment() -> None:
    net = Net()
    assert [n for n, _ in net.named_parameters()] == NAMES
    assert [n for n, _ in net.named_buffers()] == ["scale", "scratch"]
    assert list(net.state_dict()) == ["scale", *NAMES]
    assert [n for n, _ in net.named_modules()] == [
        "",
        "fc1",
        "blocks",
        "blocks.0",
        "blocks.0.0",
        "blocks.0.1",
        "blocks.1",
        "blocks.1.0",
        "blocks.1.1",
    ]
    assert [n for n, _ in net.named_children()] == ["fc1", "blocks"]


def test_registered_values_are_ordinary_attributes_so_that_lookup_is_fast() -> None:
    layer = nn.Linear(2, 2)
    assert layer.__dict__["weight"] is layer.weight is layer._parameters["weight"]
    assert "weight" in vars(layer)
    assert not hasattr(nn.Linear, "__getattr__")  # with one, Python would read every attribute the slow way


def test_a_subclass_may_fall_back_on_super_getattr() -> None:
    class Wrapper(nn.Module):
        def __init__(self, module: nn.Module) -> None:
            super().__init__()
            self.module = module

        def __getattr__(self, name: str) -> object:
            try:
                return super().__getattr__(name)
            except AttributeError:
                return getattr(self.module, name)

    class Deeper(Wrapper):
        pass

    wrapped = Deeper(nn.Linear(2, 3))
    assert wrapped.weight is wrapped.module.weight and wrapped.out_features == 3
    with pytest.raises(AttributeError, match="'Linear' object has no attribute 'nothing'"):
        wrapped.nothing
    assert copy.deepcopy(wrapped).module.weight.shape == (3, 2)


def test_writing_to_a_registry_changes_the_attribute() -> None:
    layer = nn.Linear(2, 2)
    new = nn.Parameter(tl.zeros(2, 2))
    layer._parameters["weight"] = new
    assert layer.weight is new
    del layer._parameters["bias"]
    assert not hasattr(layer, "bias")
    layer._parameters.update(extra=new)
    assert layer.extra is new
    layer._parameters.clear()
    assert not hasattr(layer, "weight") and list(layer.parameters()) == []


def test_assignment_moves_a_name_between_registries() -> None:
    m = nn.Module()
    m.a = 3
    m.a = nn.Parameter(tl.zeros(1))
    assert list(m._parameters) == ["a"] and m.a.shape == (1,)
    m.a = nn.ReLU()
    assert list(m._parameters) == [] and list(m._modules) == ["a"]
    m.a = nn.Parameter(tl.zeros(2))
    assert list(m._modules) == [] and m.a.shape == (2,)
    m.a = None
    assert m._parameters == {"a": None} and m.a is None
    del m.a
    assert not hasattr(m, "a")


def test_buffer_class_registers_itself() -> None:
    m = nn.Module()
    m.a, m.b = nn.Buffer(tl.ones(2)), nn.Buffer(tl.ones(2), persistent=False)
    assert list(m.state_dict()) == ["a"] and [n for n, _ in m.named_buffers()] == ["a", "b"]
    m.a = tl.zeros(3)
    assert m._buffers["a"].shape == (3,)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (lambda m: setattr(m, "weight", tl.zeros(2, 2)), TypeError, "cannot assign 'torchlet.Tensor' as parameter 'weight'"),
        (lambda m: setattr(m, "child", 3), TypeError, "cannot assign 'int' as child module 'child'"),
        (lambda m: setattr(m, "buffer", 3), TypeError, "cannot assign 'int' as buffer 'buffer'"),
        (lambda m: m.register_parameter("a.b", None), KeyError, "t contain"),
        (lambda m: m.register_parameter("", None), KeyError, "t be empty string"),
        (lambda m: m.register_parameter("forward", None), KeyError, "attribute .*forward.* already exists"),
        (lambda m: m.register_buffer("weight", tl.zeros(1)), KeyError, "attribute .*weight.* already exists"),
        (lambda m: m.register_parameter("p", nn.Parameter(tl.ones(1)) * 2), TypeError, "cannot assign"),
        (lambda m: m.add_module("m", 3), TypeError, "is not a Module subclass"),
        (lambda m: m.get_submodule("child.nothing"), AttributeError, "ReLU has no attribute `nothing`"),
        (lambda m: m.train("yes"), ValueError, "training mode is expected to be boolean"),
        (lambda m: m.to(tl.int64), TypeError, "only accepts floating point"),
        (lambda m: m.unknown, AttributeError, "'Linear' object has no attribute 'unknown'"),
    ],
)
def test_misuse_raises_with_pytorchs_words(change, error, words) -> None:  # type: ignore[no-untyped-def]
    m = nn.Linear(2, 2)
    m.child = nn.ReLU()
    m.register_buffer("buffer", tl.zeros(1))
    with pytest.raises(error, match=words):
        change(m)


def test_assigning_before_init_raises() -> None:
    class Early(nn.Module):
        def __init__(self) -> None:
            self.fc = nn.Linear(1, 1)

    with pytest.raises(AttributeError, match=r"cannot assign module before Module.__init__\(\) call"):
        Early()


def test_a_shared_module_is_listed_once() -> None:
    layer = nn.Linear(2, 2)
    net = nn.Sequential(layer, layer)
    assert len(list(net.parameters())) == 2
    assert len(list(net.named_parameters(remove_duplicate=False))) == 4
    assert list(net.state_dict()) == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_a_module_is_freed_without_the_garbage_collector() -> None:
    gc.disable()
    try:
        net = Net()
        gone = [weakref.ref(net.fc1.weight), weakref.ref(net)]
        net.load_state_dict(net.state_dict())
        del net
        assert [r() for r in gone] == [None, None]
    finally:
        gc.enable()


def test_train_and_eval_reach_all_submodules() -> None:
    net = Net()
    assert net.eval() is net and not any(m.training for m in net.modules())
    net.train()
    assert all(m.training for m in net.modules())


def test_apply_visits_children_first() -> None:
    seen: list[str] = []
    nn.Sequential(nn.ReLU(), nn.Tanh()).apply(lambda m: seen.append(type(m).__name__))
    assert seen == ["ReLU", "Tanh", "Sequential"]


def test_conversion_keeps_the_identity_of_parameters_and_spares_integers() -> None:
    net = nn.BatchNorm1d(3)
    weight = net.weight
    weight.grad = tl.ones(3)
    net.double()
    assert net.weight is weight and weight.dtype is tl.float64 and weight.grad.dtype is tl.float64 and weight.requires_grad
    assert net.running_mean.dtype is tl.float64 and net.num_batches_tracked.dtype is tl.int64
    assert net.to(tl.float16).weight.dtype is tl.float16
    assert net.to("cpu", dtype=tl.float32).weight.dtype is tl.float32
    assert net.half().float().weight.dtype is tl.float32


def test_zero_grad_and_requires_grad() -> None:
    net = Net()
    net(tl.ones(2, 4)).sum().backward()
    assert net.fc1.weight.grad is not None
    net.zero_grad(set_to_none=False)
    assert float(net.fc1.weight.grad.abs().sum()) == 0.0
    net.zero_grad()
    assert all(p.grad is None for p in net.parameters())
    net.requires_grad_(False)
    assert not net(tl.ones(2, 4)).requires_grad


def test_deepcopy_and_pickle_are_independent_and_keep_tied_parameters() -> None:
    net = Net()
    net.tied = net.fc1.weight
    net.add_module("self_made", nn.Identity())
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.tied is other.fc1.weight is other._modules["fc1"]._parameters["weight"]
        assert isinstance(other.fc1.weight, nn.Parameter) and other.fc1.weight.requires_grad
        assert np.array_equal(
            other.fc1.weight.numpy() if not other.fc1.weight.requires_grad else other.fc1.weight.detach().numpy(),
            net.fc1.weight.detach().numpy(),
        )
        with tl.no_grad():
            other.fc1.weight.zero_()
        assert float(net.fc1.weight.detach().abs().sum()) > 0
        other.fc1 = nn.Linear(1, 1)  # the copy's registries belong to the copy
        assert other._modules["fc1"].in_features == 1 and net.fc1.in_features == 4


def test_dir_and_repr() -> None:
    assert repr(nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Dropout(0.1)))) == (
        "Sequential(\n  (0): Linear(in_features=2, out_features=3, bias=True)\n  (1): Sequential(\n    (0): ReLU()\n    (1): "
        "Dropout(p=0.1, inplace=False)\n  )\n)"
    )
    assert repr(nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2), nn.ReLU()])) == (
        "ModuleList(\n  (0-1): 2 x Linear(in_features=2, out_features=2, bias=True)\n  (2): ReLU()\n)"
    )
    names = dir(nn.Sequential(nn.ReLU()))
    assert "forward" in names and "0" not in names and "weight" in dir(nn.Linear(1, 1))


# ------------------------------------------------------------------------------------------------ calls, hooks, errors


def test_errors_inside_a_model_name_the_module_once() -> None:
    net = nn.Sequential(OrderedDict(body=nn.Sequential(nn.ReLU(), nn.Linear(4, 2)), tail=nn.Tanh()))
    with pytest.raises(RuntimeError) as caught:
        net(tl.ones(3, 5))
    text = str(caught.value)
    assert text.startswith("model.body.1 (Linear(in_features=4, out_features=2, bias=True)): ")
    assert text.count("Linear(in_features") == 1 and "5" in text and "4" in text


def test_errors_find_modules_inside_of_lists_that_are_not_called() -> None:
    net = Net()
    net.blocks[1][0] = nn.Linear(7, 3)
    with pytest.raises(RuntimeError, match=r"^model\.blocks\.1\.0 \(Linear\(in_features=7"):
        net(tl.ones(1, 4))


def test_errors_that_the_user_raises_keep_their_words() -> None:
    class Mine(nn.Module):
        def forward(self, x: tl.Tensor) -> tl.Tensor:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match=r"^mine$"):
        nn.Sequential(Mine())(tl.ones(1))


def test_missing_forward_raises() -> None:
    with pytest.raises(NotImplementedError, match=r'Module \[Module\] is missing the required "forward" function'):
        nn.Module()(1)


def test_forward_hooks_see_and_replace_arguments_and_results() -> None:
    layer = nn.Identity()
    log: list[str] = []
    a = layer.register_forward_pre_hook(lambda m, args: log.append("pre") or (args[0] + 1,))
    b = layer.register_forward_hook(lambda m, args, out: log.append("post") or out * 10)
    layer.register_forward_hook(lambda m, args, kwargs, out: log.append(f"first {kwargs}"), prepend=True, with_kwargs=True)
    assert float(layer(tl.tensor(1.0))) == 20.0
    assert log == ["pre", "first {}", "post"]
    a.remove()
    b.remove()
    assert float(layer(tl.tensor(1.0))) == 1.0


def test_hook_that_is_always_called_runs_after_an_error() -> None:
    layer, log = nn.Linear(2, 2), []
    layer.register_forward_hook(lambda m, args, out: log.append(out), always_call=True)
    with pytest.raises(RuntimeError):
        layer(tl.ones(3))
    assert log == [None]


def test_full_backward_hooks_see_and_replace_gradients() -> None:
    layer = nn.Linear(2, 1, bias=False)
    with tl.no_grad():
        layer.weight.copy_(tl.tensor([[2.0, 3.0]]))
    seen = []
    layer.register_full_backward_pre_hook(lambda m, grad_output: (grad_output[0] * 10,))
    layer.register_full_backward_hook(
        lambda m, grad_input, grad_output: seen.append((grad_input[0].tolist(), grad_output[0].tolist())) or (grad_input[0] + 1,)
    )
    x = tl.tensor([[1.0, 1.0]], requires_grad=True)
    layer(x).sum().backward()
    assert seen == [([[20.0, 30.0]], [[10.0]])]
    assert x.grad.tolist() == [[21.0, 31.0]] and layer.weight.grad.tolist() == [[10.0, 10.0]]


def test_full_backward_hook_without_input_gradients() -> None:
    layer, seen = nn.Linear(2, 1), []
    layer.register_full_backward_hook(lambda m, grad_input, grad_output: seen.append((grad_input, grad_output[0].tolist())))
    layer(tl.ones(1, 2)).sum().backward()
    assert seen == [((None,), [[1.0]])]


# ------------------------------------------------------------------------------------------------ state_dict


def test_state_dict_round_trip() -> None:
    a, b = Net(), Net()
    assert str(b.load_state_dict(a.state_dict())) == "<All keys matched successfully>"
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        assert x is not y and np.array_equal(x.detach().numpy(), y.detach().numpy())


def test_state_dict_shares_memory_and_is_off_the_tape() -> None:
    net = Net()
    state = net.state_dict()
    with tl.no_grad():
        net.fc1.weight.fill_(7.0)
    assert not state["fc1.weight"].requires_grad and float(state["fc1.weight"][0, 0]) == 7.0
    assert net.state_dict(keep_vars=True)["fc1.weight"] is net.fc1.weight


def test_a_state_dict_that_does_not_fit_changes_nothing_and_lists_every_problem() -> None:
    net = Net()
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = {k: v + 1 for k, v in net.state_dict().items()}
    del state["fc1.bias"]
    state["extra.weight"] = tl.ones(1)
    state["blocks.0.0.weight"] = tl.ones(2, 2)
    state["blocks.1.0.bias"] = [1.0]
    with pytest.raises(RuntimeError) as caught:
        net.load_state_dict(state)
    text = str(caught.value)
    assert text.startswith("Error(s) in loading state_dict for Net:\n\t")
    assert 'Missing key(s) in state_dict: "fc1.bias". ' in text
    assert 'Unexpected key(s) in state_dict: "extra.weight". ' in text
    assert (
        "size mismatch for blocks.0.0.weight: copying a param with shape torchlet.Size([2, 2]) from checkpoint, "
        "the shape in current model is torchlet.Size([3, 3])." in text
    )
    assert 'While copying the parameter named "blocks.1.0.bias", expected torchlet.Tensor' in text
    for k, v in net.state_dict().items():
        assert np.array_equal(v.numpy(), before[k].numpy()), k


def test_strict_false_loads_what_fits_and_reports_the_rest() -> None:
    net = nn.Linear(2, 2)
    keys = net.load_state_dict({"weight": tl.full((2, 2), 5.0), "other": tl.ones(1)}, strict=False)
    assert keys.missing_keys == ["bias"] and keys.unexpected_keys == ["other"]
    assert float(net.weight.detach().sum()) == 20.0
    with pytest.raises(RuntimeError, match="size mismatch"):
        net.load_state_dict({"weight": tl.ones(1)}, strict=False)


def test_assign_puts_the_given_tensors_in_place() -> None:
    net = nn.Linear(2, 2)
    given = tl.ones(2, 2, dtype=tl.float64)
    net.load_state_dict({"weight": given, "bias": tl.zeros(2)}, assign=True)
    assert net.weight.dtype is tl.float64 and isinstance(net.weight, nn.Parameter) and net.weight.requires_grad
    given[0, 0] = 9.0
    assert float(net.weight.detach()[0, 0]) == 9.0


def test_extra_state_travels_with_the_state_dict() -> None:
    class Counting(nn.Module):
        count = 3

        def get_extra_state(self) -> dict[str, int]:
            return {"count": self.count}

        def set_extra_state(self, state: dict[str, int]) -> None:
            self.count = state["count"]

    a, b = Counting(), Counting()
    a.count = 8
    b.load_state_dict(a.state_dict())
    assert b.count == 8
    with pytest.raises(RuntimeError, match="_extra_state"):
        b.load_state_dict({})


def test_state_dict_hooks_run() -> None:
    net, log = nn.Linear(1, 1), []
    net.register_state_dict_post_hook(lambda m, state, prefix, meta: state.__setitem__("added", 1))
    net.register_load_state_dict_pre_hook(lambda m, state, *rest: state.pop("added"))
    net.register_load_state_dict_post_hook(lambda m, keys: log.append(keys.missing_keys))
    state = net.state_dict()
    assert state["added"] == 1
    net.load_state_dict(state)
    assert log == [[]]


# ------------------------------------------------------------------------------------------------ containers


def test_sequential_edits_keep_order_and_names() -> None:
    net = nn.Sequential(nn.Linear(1, 2), nn.Linear(2, 3))
    net.append(nn.ReLU()).insert(0, nn.Identity())
    assert [type(m).__name__ for m in net] == ["Identity", "Linear", "Linear", "ReLU"]
    assert [n for n, _ in net.named_parameters()] == ["1.weight", "1.bias", "2.weight", "2.bias"]
    del net[0]
    assert list(net._modules) == ["0", "1", "2"] and net[-1].__class__ is nn.ReLU
    assert [type(m).__name__ for m in net[:2]] == ["Linear", "Linear"] and len(net + net[:1]) == 4 and len(net * 2) == 6
    net[1] = nn.Tanh()
    assert isinstance(net.pop(1), nn.Tanh) and len(net) == 2
    with pytest.raises(IndexError, match="index 5 is out of range"):
        net[5]


def test_module_list_and_dict() -> None:
    items = nn.ModuleList([nn.Linear(1, 1)])
    items += [nn.ReLU()]
    items.insert(-5, nn.Tanh())
    assert [type(m).__name__ for m in items] == ["Tanh", "Linear", "ReLU"] and isinstance(items[-1], nn.ReLU)
    table = nn.ModuleDict({"a": nn.Linear(1, 1)})
    table.update([("b", nn.ReLU())])
    assert list(table) == ["a", "b"] and "a" in table and [n for n, _ in table.named_parameters()] == ["a.weight", "a.bias"]
    assert isinstance(table.pop("b"), nn.ReLU) and len(table) == 1


def test_parameter_list_and_dict_register_tensors() -> None:
    values = nn.ParameterList([tl.ones(2), nn.Parameter(tl.zeros(3))])
    values.append(tl.ones(1))
    assert all(isinstance(p, nn.Parameter) for p in values) and [n for n, _ in values.named_parameters()] == ["0", "1", "2"]
    assert "Parameter containing: [torchlet.float32 of size 2]" in repr(values)
    assert len(values[1:]) == 2 and values[-1].shape == (1,)
    table = nn.ParameterDict({"a": tl.ones(2)})
    table["b"] = tl.zeros(1)
    assert list(table.keys()) == ["a", "b"] and [n for n, _ in table.named_parameters()] == ["a", "b"]
    assert table.pop("a").shape == (2,) and "a" not in table and table.get("a") is None
    for original in (values, table):
        assert repr(copy.deepcopy(original)) == repr(original)


# ------------------------------------------------------------------------------------------------ layers


def test_linear_starts_within_its_bounds_and_computes_the_product() -> None:
    layer = nn.Linear(16, 64)
    bound = 1 / math.sqrt(16)
    w = layer.weight.detach().numpy()
    assert (
        np.abs(w).max() <= bound
        and w.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
        and np.abs(layer.bias.detach().numpy()).max() <= bound
    )
    x = normal(2, 5, 16).astype(np.float32)
    expected = x.astype(np.float64) @ w.T.astype(np.float64) + layer.bias.detach().numpy()
    np.testing.assert_allclose(layer(tl.tensor(x)).detach().numpy(), expected, rtol=1e-5, atol=1e-6)
    assert nn.Linear(2, 2, bias=False).bias is None and "bias" in nn.Linear(2, 2, bias=False)._parameters


def test_embedding_has_a_zero_padding_row_without_gradient() -> None:
    layer = nn.Embedding(5, 3, padding_idx=-2)
    assert layer.padding_idx == 3 and float(layer.weight.detach()[3].abs().sum()) == 0.0
    layer(tl.tensor([[3, 1], [1, 0]])).sum().backward()
    assert layer.weight.grad.tolist() == [[1.0] * 3, [2.0] * 3, [0.0] * 3, [0.0] * 3, [0.0] * 3]
    frozen = nn.Embedding.from_pretrained(tl.ones(2, 2))
    assert not frozen.weight.requires_grad
    with pytest.raises(IndexError):
        layer(tl.tensor([5]))


def test_batch_norm_normalises_and_tracks_statistics() -> None:
    layer = nn.BatchNorm1d(3).double()
    x = normal(6, 3, 4)
    mean, var = x.mean((0, 2)), x.var((0, 2))
    out = layer(tl.tensor(x))
    np.testing.assert_allclose(out.detach().numpy(), (x - mean[:, None]) / np.sqrt(var[:, None] + 1e-5), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(layer.running_mean.numpy(), 0.1 * mean, rtol=1e-9)
    np.testing.assert_allclose(layer.running_var.numpy(), 0.9 + 0.1 * x.var((0, 2), ddof=1), rtol=1e-9)
    assert int(layer.num_batches_tracked) == 1
    layer.eval()
    expected = (x - layer.running_mean.numpy()[:, None]) / np.sqrt(layer.running_var.numpy()[:, None] + 1e-5)
    np.testing.assert_allclose(layer(tl.tensor(x)).detach().numpy(), expected, rtol=1e-9)
    assert int(layer.num_batches_tracked) == 1


def test_batch_norm_without_momentum_averages_over_all_batches() -> None:
    layer = nn.BatchNorm1d(2, momentum=None).double()
    batches = [normal(5, 2) for _ in range(3)]
    for b in batches:
        layer(tl.tensor(b))
    np.testing.assert_allclose(layer.running_mean.numpy(), np.mean([b.mean(0) for b in batches], 0), rtol=1e-9)


def test_batch_norm_refuses_single_values_and_wrong_ranks() -> None:
    with pytest.raises(ValueError, match="Expected more than 1 value per channel when training"):
        nn.BatchNorm1d(3)(tl.ones(1, 3))
    with pytest.raises(ValueError, match=r"expected 2D or 3D input \(got 1D input\)"):
        nn.BatchNorm1d(3)(tl.ones(3))


def test_layer_group_and_rms_norm() -> None:
    x = normal(2, 4, 6)
    centred = x - x.mean(-1, keepdims=True)
    expected = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(nn.LayerNorm(6).double()(tl.tensor(x)).detach().numpy(), expected, rtol=1e-8)
    np.testing.assert_allclose(
        nn.RMSNorm(6, eps=1e-6).double()(tl.tensor(x)).detach().numpy(), x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6), rtol=1e-8
    )
    g = x.reshape(2, 2, -1)
    g = (g - g.mean(-1, keepdims=True)) / np.sqrt(g.var(-1, keepdims=True) + 1e-5)
    np.testing.assert_allclose(nn.GroupNorm(2, 4).double()(tl.tensor(x)).detach().numpy(), g.reshape(x.shape), rtol=1e-8)
    with pytest.raises(RuntimeError, match="normalized_shape"):
        nn.LayerNorm(5)(tl.ones(2, 6))


def test_dropout_drops_scales_and_is_off_in_evaluation() -> None:
    tl.manual_seed(0)
    layer = nn.Dropout(0.25)
    x = tl.ones(200, 200)
    y = layer(x).numpy()
    assert np.unique(y).tolist() == [0.0, pytest.approx(4 / 3)] and (y == 0).mean() == pytest.approx(0.25, abs=0.01)
    assert layer.eval()(x) is x
    assert float(F.dropout(x, 1.0).sum()) == 0.0
    columns = F.dropout1d(tl.ones(4, 8, 16), 0.5).numpy()
    assert ((columns == 0).all(-1) | (columns != 0).all(-1)).all()
    with pytest.raises(ValueError, match="dropout probability has to be between 0 and 1, but got 2"):
        nn.Dropout(2)


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("relu", lambda x: np.maximum(x, 0)),
        ("silu", lambda x: x / (1 + np.exp(-x))),
        ("elu", lambda x: np.where(x > 0, x, np.expm1(x))),
        ("leaky_relu", lambda x: np.where(x > 0, x, 0.01 * x)),
        ("hardtanh", lambda x: np.clip(x, -1, 1)),
        ("relu6", lambda x: np.clip(x, 0, 6)),
        ("softplus", lambda x: np.log1p(np.exp(x))),
        ("softsign", lambda x: x / (1 + abs(x))),
        ("tanhshrink", lambda x: x - np.tanh(x)),
        ("mish", lambda x: x * np.tanh(np.log1p(np.exp(x)))),
        ("hardswish", lambda x: x * np.clip(x + 3, 0, 6) / 6),
        ("gelu", lambda x: 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))),
        ("logsigmoid", lambda x: -np.log1p(np.exp(-x))),
        ("selu", lambda x: 1.0507009873554805 * np.where(x > 0, x, 1.6732632423543772 * np.expm1(x))),
        ("softshrink", lambda x: np.sign(x) * np.maximum(abs(x) - 0.5, 0)),
        ("hardshrink", lambda x: np.where(abs(x) > 0.5, x, 0)),
    ],
)
def test_activation_is_its_formula(name, formula) -> None:  # type: ignore[no-untyped-def]
    x = normal(5, 7) * 2
    np.testing.assert_allclose(getattr(F, name)(tl.tensor(x)).numpy(), formula(x), rtol=1e-9, atol=1e-12)


def test_inplace_activations_write_into_their_input() -> None:
    x = tl.tensor([-1.0, 2.0])
    assert nn.ReLU(inplace=True)(x) is x and x.tolist() == [0.0, 2.0]
    y = tl.tensor([-1.0, 2.0])
    assert F.leaky_relu(y, 0.5, inplace=True) is y and y.tolist() == [-0.5, 2.0]


def test_hardtanh_has_no_gradient_at_its_limits() -> None:
    x = tl.tensor([-1.0, 0.5, 1.0], requires_grad=True)
    F.hardtanh(x).sum().backward()
    assert x.grad.tolist() == [0.0, 1.0, 0.0]


# ------------------------------------------------------------------------------------------------ losses


def log_softmax(x: np.ndarray) -> np.ndarray:
    z = x - x.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
@pytest.mark.parametrize("weighted", [False, True])
def test_cross_entropy_with_classes(smoothing: float, weighted: bool) -> None:
    x, t, w = normal(5, 4), np.array([0, 3, -100, 1, 1]), np.array([1.0, 2.0, 0.5, 3.0])
    if not weighted:
        w = np.ones(4)
    keep = t != -100
    logs = log_softmax(x)[keep]
    weights = w[t[keep]]
    rows = -(1 - smoothing) * weights * logs[np.arange(keep.sum()), t[keep]] - smoothing / 4 * (logs * w).sum(1)
    weight = tl.tensor(w) if weighted else None
    loss = F.cross_entropy(tl.tensor(x), tl.tensor(t), weight, label_smoothing=smoothing)
    assert float(loss) == pytest.approx(rows.sum() / weights.sum(), rel=1e-9)
    each = F.cross_entropy(tl.tensor(x), tl.tensor(t), weight, label_smoothing=smoothing, reduction="none").numpy()
    np.testing.assert_allclose(each[keep], rows, rtol=1e-9)
    assert each[2] == 0


def test_cross_entropy_gradient_is_softmax_minus_one_hot() -> None:
    x = tl.tensor(normal(3, 4), requires_grad=True)
    F.cross_entropy(x, tl.tensor([1, 2, 0])).backward()
    p = np.exp(log_softmax(x.detach().numpy()))
    np.testing.assert_allclose(x.grad.numpy(), (p - np.eye(4)[[1, 2, 0]]) / 3, rtol=1e-9)


def test_cross_entropy_shapes() -> None:
    x, t = normal(2, 3, 4, 5), rng.integers(0, 3, (2, 4, 5))
    rows = -np.take_along_axis(log_softmax(np.moveaxis(x, 1, -1)), t[..., None], -1)[..., 0]
    np.testing.assert_allclose(F.cross_entropy(tl.tensor(x), tl.tensor(t), reduction="none").numpy(), rows, rtol=1e-9)
    assert float(F.cross_entropy(tl.tensor(x), tl.tensor(t))) == pytest.approx(rows.mean())
    one = normal(3)
    assert float(F.cross_entropy(tl.tensor(one), tl.tensor(2))) == pytest.approx(-log_softmax(one)[2])
    p = np.abs(normal(4, 3))
    y = normal(4, 3)
    assert float(nn.CrossEntropyLoss()(tl.tensor(y), tl.tensor(p))) == pytest.approx(-(p * log_softmax(y)).sum() / 4)


def test_cross_entropy_refuses_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"Expected input batch_size \(3\) to match target batch_size \(2\)"):
        F.cross_entropy(tl.ones(3, 4), tl.tensor([0, 1]))
    with pytest.raises(IndexError, match="out of bounds"):
        F.cross_entropy(tl.ones(2, 4), tl.tensor([0, 4]))
    with pytest.raises(RuntimeError, match="Expected floating point type for target with class probabilities"):
        F.cross_entropy(tl.ones(2, 4), tl.ones(2, 4, dtype=tl.int64))
    with pytest.raises(ValueError, match="nothing is not a valid value for reduction"):
        F.mse_loss(tl.ones(2), tl.ones(2), reduction="nothing")


def test_nll_loss_matches_cross_entropy() -> None:
    x, t = tl.tensor(normal(4, 3)), tl.tensor([0, 2, 1, -100])
    assert float(F.nll_loss(F.log_softmax(x, 1), t)) == pytest.approx(float(F.cross_entropy(x, t)))


@pytest.mark.parametrize(
    ("loss", "formula"),
    [
        (nn.MSELoss, lambda x, y: (x - y) ** 2),
        (nn.L1Loss, lambda x, y: abs(x - y)),
        (nn.SmoothL1Loss, lambda x, y: np.where(abs(x - y) < 1, 0.5 * (x - y) ** 2, abs(x - y) - 0.5)),
        (
            lambda **kw: nn.HuberLoss(delta=0.7, **kw),
            lambda x, y: np.where(abs(x - y) <= 0.7, 0.5 * (x - y) ** 2, 0.7 * (abs(x - y) - 0.35)),
        ),
        (nn.BCEWithLogitsLoss, lambda x, y: np.logaddexp(0, x) - x * y),
    ],
)
def test_elementwise_losses_in_each_reduction(loss, formula) -> None:  # type: ignore[no-untyped-def]
    x, y = normal(4, 3), normal(4, 3)
    expected = formula(x, y)
    np.testing.assert_allclose(loss(reduction="none")(tl.tensor(x), tl.tensor(y)).numpy(), expected, rtol=1e-9)
    assert float(loss(reduction="sum")(tl.tensor(x), tl.tensor(y))) == pytest.approx(expected.sum())
    assert float(loss()(tl.tensor(x), tl.tensor(y))) == pytest.approx(expected.mean())


def test_binary_cross_entropy_is_finite_at_zero_and_one() -> None:
    x = tl.tensor([0.0, 1.0, 0.5], requires_grad=True)
    y = tl.tensor([1.0, 1.0, 0.0])
    out = F.binary_cross_entropy(x, y, reduction="none")
    np.testing.assert_allclose(out.detach().numpy(), [100.0, 0.0, math.log(2)], rtol=1e-6)
    out.sum().backward()
    assert np.isfinite(x.grad.numpy()).all() and x.grad.tolist()[1] == 0.0
    with pytest.raises(RuntimeError, match="all elements of input should be between 0 and 1"):
        F.binary_cross_entropy(tl.tensor([1.5]), tl.tensor([1.0]))
    with pytest.raises(ValueError, match="Using a target size"):
        F.binary_cross_entropy(tl.tensor([0.5]), tl.tensor([[1.0]]))


def test_kl_divergence_ignores_zero_probabilities() -> None:
    target = np.array([[0.5, 0.5, 0.0], [0.2, 0.3, 0.5]])
    logs = log_softmax(normal(2, 3))
    expected = np.where(target > 0, target * np.log(np.where(target > 0, target, 1)), 0) - target * logs
    assert float(F.kl_div(tl.tensor(logs), tl.tensor(target), reduction="batchmean")) == pytest.approx(expected.sum() / 2)
    with pytest.warns(UserWarning, match="batchmean"):
        assert float(F.kl_div(tl.tensor(logs), tl.tensor(target))) == pytest.approx(expected.mean())


def test_losses_warn_of_broadcasting() -> None:
    with pytest.warns(UserWarning, match="Using a target size"):
        assert float(F.mse_loss(tl.ones(2, 1), tl.zeros(2))) == 1.0


# ------------------------------------------------------------------------------------------------ other functions


def test_attention_is_softmax_of_scaled_scores() -> None:
    q, k, v = normal(2, 3, 5, 4), normal(2, 3, 6, 4), normal(2, 3, 6, 7)
    scores = q @ np.swapaxes(k, -1, -2) / 2
    expected = np.exp(log_softmax(scores)) @ v
    np.testing.assert_allclose(F.scaled_dot_product_attention(tl.tensor(q), tl.tensor(k), tl.tensor(v)).numpy(), expected, rtol=1e-9)
    causal = np.exp(log_softmax(np.where(np.tril(np.ones((5, 6), bool)), scores, -np.inf))) @ v
    np.testing.assert_allclose(
        F.scaled_dot_product_attention(tl.tensor(q), tl.tensor(k), tl.tensor(v), is_causal=True).numpy(), causal, rtol=1e-9
    )


def test_a_query_that_may_attend_to_nothing_gives_zeros_and_finite_gradients() -> None:
    q, k, v = (tl.tensor(normal(1, 3, 4), requires_grad=True) for _ in range(3))
    mask = tl.tensor([[True, False, True], [False, False, False], [True, True, True]])
    for m in (mask, tl.where(mask, 0.0, -math.inf).double()):
        out = F.scaled_dot_product_attention(q, k, v, m)
        assert out.detach().numpy()[0, 1].tolist() == [0.0] * 4
        out.sum().backward()
        assert np.isfinite(q.grad.numpy()).all() and np.isfinite(v.grad.numpy()).all()


@pytest.mark.parametrize(
    ("mode", "numpy_mode"), [("constant", "constant"), ("reflect", "reflect"), ("replicate", "edge"), ("circular", "wrap")]
)
def test_pad_is_numpys(mode: str, numpy_mode: str) -> None:
    x = normal(2, 3, 5)
    np.testing.assert_array_equal(F.pad(tl.tensor(x), (2, 1), mode=mode).numpy(), np.pad(x, ((0, 0), (0, 0), (2, 1)), mode=numpy_mode))


def test_pad_with_negative_widths_and_values() -> None:
    x = normal(3, 4)
    np.testing.assert_array_equal(
        F.pad(tl.tensor(x), (-1, 1, 1, -1), value=2.0).numpy(), np.pad(x[:2, 1:], ((1, 0), (0, 1)), constant_values=2.0)
    )


def test_one_hot_normalize_cosine_similarity() -> None:
    assert F.one_hot(tl.tensor([0, 2])).tolist() == [[1, 0, 0], [0, 0, 1]]
    with pytest.raises(RuntimeError, match="Class values must be smaller than num_classes"):
        F.one_hot(tl.tensor([3]), 3)
    x, y = normal(3, 4), normal(3, 4)
    np.testing.assert_allclose(F.normalize(tl.tensor(x)).numpy(), x / np.linalg.norm(x, axis=1, keepdims=True), rtol=1e-9)
    expected = (x * y).sum(1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)
    np.testing.assert_allclose(F.cosine_similarity(tl.tensor(x), tl.tensor(y)).numpy(), expected, rtol=1e-9)


# ------------------------------------------------------------------------------------------------ init


def test_initialisers_have_their_distributions() -> None:
    tl.manual_seed(0)
    w = tl.empty(200, 300)
    bound = math.sqrt(6 / 500)
    assert np.abs(nn.init.xavier_uniform_(w).numpy()).max() <= bound and w.numpy().std() == pytest.approx(bound / math.sqrt(3), rel=0.02)
    assert nn.init.xavier_normal_(w).numpy().std() == pytest.approx(math.sqrt(2 / 500), rel=0.02)
    assert nn.init.kaiming_normal_(w, nonlinearity="relu").numpy().std() == pytest.approx(math.sqrt(2 / 300), rel=0.02)
    assert np.abs(nn.init.kaiming_uniform_(w, mode="fan_out").numpy()).max() <= math.sqrt(6 / 200)
    cut = nn.init.trunc_normal_(w, std=1.0, a=-0.5, b=2.0).numpy()
    assert cut.min() >= -0.5 and cut.max() <= 2.0 and cut.mean() > 0.2
    q = nn.init.orthogonal_(w).numpy()
    np.testing.assert_allclose(q @ q.T, np.eye(200), atol=1e-4)
    assert (nn.init.eye_(w).numpy() == np.eye(200, 300)).all() and (nn.init.constant_(w, 2.5).numpy() == 2.5).all()
    zeros = (nn.init.sparse_(w, 0.25).numpy() == 0).sum(0)
    assert (zeros == 50).all()
    assert nn.init.calculate_gain("leaky_relu", 0.2) == pytest.approx(math.sqrt(2 / 1.04)) and nn.init.calculate_gain("tanh") == 5 / 3
    with pytest.raises(ValueError, match="Fan in and fan out can not be computed for tensor with fewer than 2 dimensions"):
        nn.init.xavier_uniform_(tl.empty(3))


# ------------------------------------------------------------------------------------------------ utils


def test_clip_grad_norm_scales_all_gradients_by_one_factor() -> None:
    parameters = [nn.Parameter(tl.zeros(2, 3)), nn.Parameter(tl.zeros(4)), nn.Parameter(tl.zeros(1))]
    grads = [normal(2, 3), normal(4)]
    for p, g in zip(parameters, grads, strict=False):
        p.grad = tl.tensor(g, dtype=tl.float32)
    norm = math.sqrt(sum((g**2).sum() for g in grads))
    held = parameters[0].grad
    assert float(nn.utils.clip_grad_norm_(parameters, 0.5)) == pytest.approx(norm, rel=1e-6)
    np.testing.assert_allclose(held.numpy(), grads[0] * 0.5 / (norm + 1e-6), rtol=1e-5)
    assert float(nn.utils.clip_grad_norm_(iter(parameters), 10.0)) == pytest.approx(0.5, rel=1e-4)
    np.testing.assert_allclose(held.numpy(), grads[0] * 0.5 / (norm + 1e-6), rtol=1e-5)
    assert float(nn.utils.clip_grad_norm_(parameters[2:], 1.0)) == 0.0
    parameters[1].grad[0] = math.inf
    with pytest.raises(RuntimeError, match="non-finite"):
        nn.utils.clip_grad_norm_(parameters, 1.0, error_if_nonfinite=True)


def test_clip_grad_value() -> None:
    p = nn.Parameter(tl.zeros(3))
    p.grad = tl.tensor([-2.0, 0.1, 5.0])
    nn.utils.clip_grad_value_(p, 0.5)
    np.testing.assert_allclose(p.grad.numpy(), [-0.5, 0.1, 0.5], rtol=1e-6)


def test_parameters_as_one_vector_and_back() -> None:
    net = nn.Linear(2, 3)
    vector = nn.utils.parameters_to_vector(net.parameters())
    assert vector.shape == (9,)
    nn.utils.vector_to_parameters(tl.arange(9).float(), net.parameters())
    assert net.weight.detach().tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]] and net.bias.detach().tolist() == [6.0, 7.0, 8.0]


def test_parameter_shares_memory_with_its_data() -> None:
    data = tl.zeros(2)
    p = nn.Parameter(data)
    data[0] = 3.0
    assert p.detach().tolist() == [3.0, 0.0] and p.is_leaf and p.requires_grad and not nn.Parameter(data, requires_grad=False).requires_grad
    with pytest.raises(RuntimeError, match="floating point"):
        nn.Parameter(tl.ones(2, dtype=tl.int64))


def test_a_small_network_learns() -> None:
    tl.manual_seed(0)
    x = tl.tensor(normal(64, 2), dtype=tl.float32)
    y = (x[:, 0] * x[:, 1] > 0).long()
    net = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))
    optimizer = tl.optim.Adam(net.parameters(), lr=0.05)
    for _ in range(120):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
    assert float((net(x).argmax(1) == y).float().mean()) > 0.95
