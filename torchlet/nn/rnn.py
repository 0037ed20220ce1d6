"""Recurrent layers and cells: RNN, LSTM and GRU."""

from __future__ import annotations

import math
import warnings
from typing import Any

from torchlet import ops
from torchlet.autograd import is_grad_enabled
from torchlet.dtypes import dtype as dtype_type
from torchlet.nn import init
from torchlet.nn.module import Module
from torchlet.nn.parameter import Parameter, fresh_parameter
from torchlet.nn.utils.rnn import PackedSequence, pack_padded, pad_packed
from torchlet.op import apply
from torchlet.ops.recurrent import MODES, recurrent_
from torchlet.tensor import Tensor

__all__ = ["GRU", "GRUCell", "LSTM", "LSTMCell", "RNN", "RNNBase", "RNNCell", "RNNCellBase"]


class RNNBase(Module):
    """Layers of a recurrent network over (T, N, input_size), or (N, T, input_size) with `batch_first`, in one or both directions."""

    def __init__(
        self,
        mode: str,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: dtype_type | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(dropout, int | float) or isinstance(dropout, bool) or not 0 <= dropout <= 1:
            raise ValueError("dropout should be a number in range [0, 1] representing the probability of an element being zeroed")
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero dropout expects num_layers "
                "greater than 1, but got "
                f"dropout={dropout} and num_layers={num_layers}",
                stacklevel=3,
            )
        if not isinstance(hidden_size, int):
            raise TypeError(f"hidden_size should be of type int, got: {type(hidden_size).__name__}")
        if hidden_size <= 0:
            raise ValueError("hidden_size must be greater than zero")
        if num_layers <= 0:
            raise ValueError("num_layers must be greater than zero")
        if not 0 <= proj_size < hidden_size:
            raise ValueError("proj_size should be a positive integer or zero to disable projections, and smaller than hidden_size")
        if proj_size and mode != "LSTM":
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        self.mode = mode
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.num_layers = num_layers
        self.bias = bias
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.proj_size = proj_size
        gates, out = MODES[mode][0] * hidden_size, proj_size or hidden_size
        for layer in range(num_layers):
            for suffix in self._suffixes():
                width = input_size if layer == 0 else out * len(self._suffixes())
                shapes: dict[str, tuple[int, ...]] = {"weight_ih": (gates, width), "weight_hh": (gates, out)}
                if bias:
                    shapes |= {"bias_ih": (gates,), "bias_hh": (gates,)}
                if proj_size:
                    shapes["weight_hr"] = (proj_size, hidden_size)
                for name, shape in shapes.items():
                    self.register_parameter(f"{name}_l{layer}{suffix}", fresh_parameter(ops.empty(*shape, device=device, dtype=dtype)))
        self.reset_parameters()

    def _suffixes(self) -> tuple[str, ...]:
        return ("", "_reverse") if self.bidirectional else ("",)

    def reset_parameters(self) -> None:
        """All uniform within 1 / sqrt(hidden_size)."""
        bound = 1 / math.sqrt(self.hidden_size)
        for p in self.parameters():
            init.uniform_(p, -bound, bound)

    def flatten_parameters(self) -> None:
        """Nothing to do: the parameters need not lie together."""

    @property
    def all_weights(self) -> list[list[Parameter]]:
        """The parameters of every layer and direction."""
        names = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if self.bias else []), *(["weight_hr"] if self.proj_size else [])]
        return [[getattr(self, f"{n}_l{layer}{suffix}") for n in names] for layer in range(self.num_layers) for suffix in self._suffixes()]

    def _check(self, x: Tensor, states: tuple[Tensor, ...], batch: int) -> None:
        if x.shape[-1] != self.input_size:
            raise RuntimeError(f"input.size(-1) must be equal to input_size. Expected {self.input_size}, got {x.shape[-1]}")
        layers = self.num_layers * len(self._suffixes())
        for k, s in enumerate(states):
            expected = (layers, batch, self.hidden_size if k or not self.proj_size else self.proj_size)
            if tuple(s.shape) != expected:
                raise RuntimeError(
                    f"Expected hidden[{k}] size {expected}, got {list(s.shape)}"
                    if len(states) > 1
                    else f"Expected hidden size {expected}, got {list(s.shape)}"
                )

    def _run(self, input: Any, states: tuple[Tensor, ...] | None) -> tuple[Any, tuple[Tensor, ...]]:
        """The output and the final states of an input in any of its forms."""
        packed = input if isinstance(input, PackedSequence) else None
        lengths: tuple[Tensor, ...] = ()
        if packed is not None:
            x, sizes = pad_packed(packed)
            lengths = (sizes,)
            if states is not None and packed.sorted_indices is not None:
                states = tuple([s.index_select(1, packed.sorted_indices) for s in states])
        else:
            if input.ndim not in (2, 3):
                raise ValueError(f"{self._get_name()}: Expected input to be 2D or 3D, got {input.ndim}D instead")
            x = input.unsqueeze(1) if input.ndim == 2 else input.transpose(0, 1) if self.batch_first else input  # (T, N, in)
            if states is not None and input.ndim == 2:
                if any(s.ndim != 2 for s in states):
                    raise RuntimeError(f"For unbatched 2-D input, hx should also be 2-D but got {states[0].ndim}-D tensor")
                states = tuple([s.unsqueeze(1) for s in states])
            elif states is not None and any(s.ndim != 3 for s in states):
                raise RuntimeError(f"For batched 3-D input, hx should also be 3-D but got {states[0].ndim}-D tensor")
        n, layers = x.shape[1], self.num_layers * len(self._suffixes())
        if states is None:
            widths = (self.proj_size or self.hidden_size, self.hidden_size)[: MODES[self.mode][1]]
            states = tuple([ops.zeros(layers, n, w, dtype=x.dtype, device=x.device) for w in widths])
        self._check(x, states, n)
        finals: list[tuple[Tensor, ...]] = []
        for layer in range(self.num_layers):
            outs = []
            for suffix in self._suffixes():
                out, final = self._direction(x, layer, suffix, tuple([s[len(finals)] for s in states]), lengths)
                outs.append(out)
                finals.append(final)
            x = ops.cat(outs, -1) if len(outs) > 1 else outs[0]
            if self.dropout and self.training and layer < self.num_layers - 1:
                x = ops.dropout(x, self.dropout, True)
        last = tuple([ops.stack(parts) for parts in zip(*finals, strict=True)])
        if packed is not None:
            if packed.unsorted_indices is not None:
                last = tuple([s.index_select(1, packed.unsorted_indices) for s in last])
            return pack_padded(x, packed), last
        if input.ndim == 2:
            return x.squeeze(1), tuple([s.squeeze(1) for s in last])
        return x.transpose(0, 1) if self.batch_first else x, last

    def _direction(
        self, x: Tensor, layer: int, suffix: str, first: tuple[Tensor, ...], lengths: tuple[Tensor, ...]
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One layer in one direction: its outputs (T, N, out) and final states."""

        def get(name: str) -> Tensor:
            return getattr(self, f"{name}_l{layer}{suffix}")  # type: ignore[no-any-return]

        w_hh, reverse = get("weight_hh"), bool(suffix)
        gates = ops.linear(x, get("weight_ih"), get("bias_ih") if self.bias else None)
        b_hh = get("bias_hh") if self.bias else ops.zeros(w_hh.shape[0], dtype=w_hh.dtype, device=w_hh.device)
        if self.proj_size:
            return self._projected(gates, w_hh, b_hh, get("weight_hr"), first, lengths, reverse)
        initial = ops.stack(first)
        keep = is_grad_enabled() and any(t.requires_grad for t in (gates, w_hh, b_hh, initial))
        states = apply(recurrent_, (gates, w_hh, b_hh, initial, *lengths), (self.mode, reverse, keep))
        return states[0], tuple([states[k, 0 if reverse else -1] for k in range(len(first))])

    def _projected(
        self, gates: Tensor, w_hh: Tensor, b_hh: Tensor, w_hr: Tensor, first: tuple[Tensor, ...], lengths: tuple[Tensor, ...], reverse: bool
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """An LSTM whose hidden state is projected to `proj_size`, step by step (Sak et al. 2014)."""
        h, c = first
        outs: list[Tensor] = []
        steps = range(gates.shape[0])
        for t in reversed(steps) if reverse else steps:
            i, f, g, o = (gates[t] + ops.linear(h, w_hh, b_hh)).chunk(4, -1)
            new_c = ops.sigmoid(f) * c + ops.sigmoid(i) * ops.tanh(g)
            new_h = ops.linear(ops.sigmoid(o) * ops.tanh(new_c), w_hr)
            if lengths:
                alive = (lengths[0] > t).unsqueeze(-1)
                new_h, new_c = ops.where(alive, new_h, h), ops.where(alive, new_c, c)
            h, c = new_h, new_c
            outs.append(h)
        return ops.stack(outs[::-1] if reverse else outs), (h, c)

    def extra_repr(self) -> str:
        """The arguments of construction."""
        text = f"{self.input_size}, {self.hidden_size}"
        for name, usual in (
            ("proj_size", 0),
            ("num_layers", 1),
            ("bias", True),
            ("batch_first", False),
            ("dropout", 0),
            ("bidirectional", False),
        ):
            value = getattr(self, name)
            text += f", {name}={value}" if value != usual else ""
        return text


class RNN(RNNBase):
    """h = tanh(x W_ihᵀ + b_ih + h W_hhᵀ + b_hh), or ReLU (Elman 1990)."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        nonlinearity: str = "tanh",
        bias: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        if nonlinearity not in ("tanh", "relu"):
            raise ValueError(f"Unknown nonlinearity '{nonlinearity}'. Select from 'tanh' or 'relu'.")
        self.__dict__["nonlinearity"] = nonlinearity
        super().__init__(f"RNN_{nonlinearity.upper()}", input_size, hidden_size, num_layers, bias, *args, **kwargs)

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """The outputs of the last layer at every step, and the final state of each layer: (layers * directions, N, hidden_size)."""
        out, states = self._run(input, None if hx is None else (hx,))
        return out, states[0]


class GRU(RNNBase):
    """Gated recurrent units (Cho et al. 2014)."""

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any) -> None:
        super().__init__("GRU", input_size, hidden_size, *args, **kwargs)

    def forward(self, input: Any, hx: Tensor | None = None) -> tuple[Any, Tensor]:
        """The outputs of the last layer at every step, and the final state of each layer: (layers * directions, N, hidden_size)."""
        out, states = self._run(input, None if hx is None else (hx,))
        return out, states[0]


class LSTM(RNNBase):
    """Long short-term memory (Hochreiter & Schmidhuber 1997)."""

    def __init__(self, input_size: int, hidden_size: int, *args: Any, **kwargs: Any) -> None:
        super().__init__("LSTM", input_size, hidden_size, *args, **kwargs)

    def forward(self, input: Any, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Any, tuple[Tensor, Tensor]]:
        """The outputs of the last layer at every step, and the final hidden and cell states of each layer."""
        out, states = self._run(input, None if hx is None else tuple(hx))
        return out, (states[0], states[1])


# ------------------------------------------------------------------------------------------------ cells


class RNNCellBase(Module):
    """One step of a recurrent network: (N, input_size) or (input_size)."""

    def __init__(
        self, input_size: int, hidden_size: int, bias: bool, num_chunks: int, device: Any = None, dtype: dtype_type | None = None
    ) -> None:
        super().__init__()
        self.input_size = input_size
        self.hidden_size = hidden_size
        self.bias = bias
        gates = num_chunks * hidden_size
        self.weight_ih: Parameter = fresh_parameter(ops.empty(gates, input_size, device=device, dtype=dtype))
        self.weight_hh: Parameter = fresh_parameter(ops.empty(gates, hidden_size, device=device, dtype=dtype))
        for name in ("bias_ih", "bias_hh"):
            self.register_parameter(name, fresh_parameter(ops.empty(gates, device=device, dtype=dtype)) if bias else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """All uniform within 1 / sqrt(hidden_size)."""
        bound = 1 / math.sqrt(self.hidden_size)
        for p in self.parameters():
            init.uniform_(p, -bound, bound)

    def _parts(self, x: Tensor, h: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What the input and the state contribute to the gates, and the state."""
        if x.ndim not in (1, 2):
            raise ValueError(f"{self._get_name()}: Expected input to be 1D or 2D, got {x.ndim}D instead")
        if h is None:
            h = ops.zeros(*x.shape[:-1], self.hidden_size, dtype=x.dtype, device=x.device)
        return ops.linear(x, self.weight_ih, self.bias_ih), ops.linear(h, self.weight_hh, self.bias_hh), h

    def extra_repr(self) -> str:
        """The arguments of construction."""
        text = f"{self.input_size}, {self.hidden_size}" + (f", bias={self.bias}" if self.bias is not True else "")
        kind = getattr(self, "nonlinearity", "tanh")
        return text + (f", nonlinearity={kind}" if kind != "tanh" else "")


class RNNCell(RNNCellBase):
    """h' = tanh(x W_ihᵀ + b_ih + h W_hhᵀ + b_hh), or ReLU."""

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: Any = None,
        dtype: dtype_type | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, 1, device, dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state."""
        a, b, _ = self._parts(input, hx)
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return ops.tanh(a + b) if self.nonlinearity == "tanh" else ops.relu(a + b)


class LSTMCell(RNNCellBase):
    """One step of an LSTM."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: dtype_type | None = None) -> None:
        super().__init__(input_size, hidden_size, bias, 4, device, dtype)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """The next hidden and cell state."""
        a, b, h = self._parts(input, None if hx is None else hx[0])
        i, f, g, o = (a + b).chunk(4, -1)
        c = ops.sigmoid(f) * (ops.zeros_like(h) if hx is None else hx[1]) + ops.sigmoid(i) * ops.tanh(g)
        return ops.sigmoid(o) * ops.tanh(c), c


class GRUCell(RNNCellBase):
    """One step of a GRU."""

    def __init__(self, input_size: int, hidden_size: int, bias: bool = True, device: Any = None, dtype: dtype_type | None = None) -> None:
        super().__init__(input_size, hidden_size, bias, 3, device, dtype)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """The next state."""
        a, b, h = self._parts(input, hx)
        (ar, az, an), (br, bz, bn) = a.chunk(3, -1), b.chunk(3, -1)
        z = ops.sigmoid(az + bz)
        n = ops.tanh(an + ops.sigmoid(ar + br) * bn)
        return n + z * (h - n)
