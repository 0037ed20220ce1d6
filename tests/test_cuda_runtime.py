"""The CUDA runtime on a stand-in driver: memory, streams, launches, graphs, eager and compiled tensors, and what bad luck looks like."""

from __future__ import annotations

import copy
import ctypes
import gc
import importlib.util
import io
import json
import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from standin import CC, StandIn, stand_in

import torchlet as torch
from torchlet import nn
from torchlet.compiler import launch, winners
from torchlet.compiler.codegen.triton import TritonKernel
from torchlet.config import config
from torchlet.op import OPS, apply
from torchlet.ops.place import make
from torchlet.runtime import cuda as runtime
from torchlet.runtime.cuda import CudaError, DriverError, Function, Launch, LaunchGraph, LaunchInfo, OutOfMemoryError, devices, driver
from torchlet.runtime.cuda import launch as kernels
from torchlet.tensor import Tensor, wrap

F = nn.functional
pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler to build the stand-in driver with")


@pytest.fixture
def gpu() -> Iterator[StandIn]:
    with stand_in() as s:
        yield s


def counts() -> tuple[int, int]:
    return launch.COUNTS["graph_launches"], launch.COUNTS["launches"]


# ------------------------------------------------------------------------------------------------ devices and memory


def test_without_a_driver_there_is_no_device_and_the_error_says_what_to_do() -> None:
    with stand_in(), config(libcuda="/nonexistent/libcuda.so.1"):
        assert not torch.cuda.is_available() and torch.cuda.device_count() == 0
        with pytest.raises(DriverError, match=r"no NVIDIA driver on this machine(.|\n)*is_available"):
            torch.zeros(2).cuda()
        assert (torch.ones(2) + 1).tolist() == [2, 2]


def test_a_driver_without_devices_is_not_available(gpu: StandIn) -> None:
    gpu.set(devices=0)
    assert not torch.cuda.is_available()
    with pytest.raises(DriverError, match=r"no CUDA device is visible(.|\n)*CUDA_VISIBLE_DEVICES"):
        torch.zeros(2, device="cuda")


def test_a_device_number_that_is_not_there_is_named(gpu: StandIn) -> None:
    with pytest.raises(DriverError, match="device 3; expected one of the 1 devices"):
        torch.zeros(2, device="cuda:3")


def test_an_architecture_without_a_target_is_refused_by_name(gpu: StandIn) -> None:
    gpu.set(major=7, minor=5)
    with pytest.raises(RuntimeError, match=r"compute capability 7\.5; expected one of 8\.0"):
        torch.ones(3, device="cuda")
    assert torch.tensor([1.0]).cuda().cpu().tolist() == [1.0]  # memory works all the same


def test_properties_and_names_are_the_drivers(gpu: StandIn) -> None:
    assert torch.cuda.is_available() and torch.cuda.device_count() == 1 and torch.cuda.current_device() == 0
    assert torch.cuda.get_device_name() == "Stand-in GPU" and torch.cuda.get_device_capability("cuda:0") == (9, 0)
    assert torch.cuda.get_device_properties(0).multi_processor_count == 132 and torch.cuda.is_bf16_supported()


def test_memory_is_counted_and_comes_back_when_tensors_die(gpu: StandIn) -> None:
    before = torch.cuda.memory_allocated()
    x = torch.zeros(1000).cuda()
    assert torch.cuda.memory_allocated() - before == 4096  # in units of 256 bytes
    y = x[10:]  # a view keeps the memory
    del x
    assert torch.cuda.memory_allocated() - before == 4096
    del y
    assert torch.cuda.memory_allocated() == before and torch.cuda.max_memory_allocated() >= before + 4096
    torch.cuda.reset_peak_memory_stats()
    assert torch.cuda.max_memory_allocated() == before


def test_nothing_is_left_on_the_device_when_all_is_dropped() -> None:
    with stand_in() as gpu:
        torch.compile(lambda x: (x @ x).sum())(torch.randn(4, 4, device="cuda", requires_grad=True)).backward()
    gc.collect()
    assert gpu.library.stub_live() == 0


def test_out_of_memory_names_the_largest_buffers_and_their_lines(gpu: StandIn) -> None:
    gpu.library.stub_limit(1 << 20)
    big = torch.zeros(200_000).cuda()
    with pytest.raises(
        OutOfMemoryError, match=r"out of memory on cuda:0: 488.50 KiB asked for(.|\n)*781.25 KiB .*test_cuda_runtime.py:\d+"
    ) as caught:
        torch.zeros(125_000).cuda()
    assert "live buffers" in str(caught.value) and isinstance(caught.value, RuntimeError)
    del big
    assert torch.zeros(125_000).cuda().shape == (125_000,)  # the process goes on


def test_memory_in_reference_cycles_is_found_before_giving_up(gpu: StandIn) -> None:
    gpu.library.stub_limit(1 << 20)
    gc.disable()
    try:
        cycle: list[Any] = [torch.zeros(200_000).cuda()]
        cycle.append(cycle)
        del cycle
        assert torch.zeros(200_000).cuda().numel() == 200_000
    finally:
        gc.enable()


def test_copies_keep_values_strides_and_dtypes(gpu: StandIn) -> None:
    for d in (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool):
        x = torch.arange(12).reshape(3, 4).to(d)
        on = x.to("cuda")
        assert on.dtype is d and on.device == torch.device("cuda:0") and on.is_cuda
        assert on.t().cpu().tolist() == x.t().tolist() and on[:, 1:3].cpu().tolist() == x[:, 1:3].tolist()
    assert torch.zeros(0, 3).cuda().cpu().shape == (0, 3)
    assert torch.tensor(2.5).cuda().item() == 2.5


def test_to_the_same_place_is_the_tensor_itself(gpu: StandIn) -> None:
    x = torch.ones(2, device="cuda")
    assert x.to("cuda") is x and x.cuda() is x and x.to("cuda:0") is x and x.cpu().to("cpu") is not x


def test_pinned_memory_is_known_and_copied_without_waiting(gpu: StandIn) -> None:
    x = torch.randn(5, 3)
    p = x.pin_memory()
    assert p.is_pinned() and not x.is_pinned() and p.pin_memory() is p
    assert p.cuda(non_blocking=True).cpu().tolist() == x.tolist() and p[1:].to("cuda", non_blocking=True).cpu().tolist() == x[1:].tolist()
    with pytest.raises(RuntimeError, match="only dense CPU tensors can be pinned"):
        x.cuda().pin_memory()


def test_numpy_never_touches_device_memory(gpu: StandIn) -> None:
    x = torch.ones(2, device="cuda")
    for look in (lambda: x.numpy(), lambda: np.asarray(x), lambda: np.asarray(x._np)):
        with pytest.raises(TypeError, match=r"can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu\(\)"):
            look()
    assert repr(x) == "tensor([1., 1.], device='cuda:0')" and x.tolist() == [1, 1]


def test_copy_pickle_and_save_of_device_tensors(gpu: StandIn) -> None:
    x = torch.randn(3, 2, device="cuda")
    for y in (copy.deepcopy(x), pickle.loads(pickle.dumps(x))):
        assert y.device == x.device and y.tolist() == x.tolist() and y.data_ptr() != x.data_ptr()
    model = nn.Linear(3, 2).cuda()
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    assert torch.load(file)["weight"].tolist() == model.weight.tolist()


HEADER = r"""
#include <stddef.h>
#include "cuda.h"
_Static_assert(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR == %(major)d && CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR == %(minor)d, "");
_Static_assert(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT == %(processors)d && CU_DEVICE_ATTRIBUTE_WARP_SIZE == %(warp)d, "");
_Static_assert(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE == %(l2)d && CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED == %(pools)d, "");
_Static_assert(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR == %(threads)d, "");
_Static_assert(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN == %(optin)d, "");
_Static_assert(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR == %(shared)d, "");
_Static_assert(CU_MEMPOOL_ATTR_RELEASE_THRESHOLD == %(threshold)d && CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT == %(reserved)d, "");
_Static_assert(CU_MEMPOOL_ATTR_RESERVED_MEM_HIGH == %(high)d, "");
_Static_assert(CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES == %(dynamic)d && CU_FUNC_ATTRIBUTE_NUM_REGS == %(registers)d, "");
_Static_assert(CU_FUNC_ATTRIBUTE_LOCAL_SIZE_BYTES == %(local)d && CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED == %(cluster16)d, "");
_Static_assert(CU_LAUNCH_ATTRIBUTE_COOPERATIVE == %(cooperative)d && CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION == %(cluster)d, "");
_Static_assert(CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE == %(policy)d, "");
_Static_assert(CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION == %(pdl)d, "");
_Static_assert(CUDA_ERROR_OUT_OF_MEMORY == 2 && CUDA_ERROR_NOT_READY == 600 && CUDA_ERROR_ILLEGAL_ADDRESS == 700, "");
_Static_assert(CUDA_ERROR_MISALIGNED_ADDRESS == 716 && CUDA_ERROR_LAUNCH_FAILED == 719 && CUDA_ERROR_NO_BINARY_FOR_GPU == 209, "");
_Static_assert(CU_STREAM_NON_BLOCKING == 1 && CU_EVENT_DISABLE_TIMING == 2, "");
_Static_assert(CU_EVENT_BLOCKING_SYNC == 1 && CU_MEMHOSTALLOC_PORTABLE == 1, "");
_Static_assert(sizeof(CUlaunchAttribute) == 72 && offsetof(CUlaunchAttribute, value) == 8, "");
_Static_assert(sizeof(CUlaunchConfig) == 56 && offsetof(CUlaunchConfig, sharedMemBytes) == 24, "");
_Static_assert(offsetof(CUlaunchConfig, hStream) == 32, "");
_Static_assert(offsetof(CUlaunchConfig, attrs) == 40 && offsetof(CUlaunchConfig, numAttrs) == 48, "");
_Static_assert(sizeof(CUDA_KERNEL_NODE_PARAMS_v2) == 72 && offsetof(CUDA_KERNEL_NODE_PARAMS_v2, blockDimX) == 20, "");
_Static_assert(offsetof(CUDA_KERNEL_NODE_PARAMS_v2, sharedMemBytes) == 32 && offsetof(CUDA_KERNEL_NODE_PARAMS_v2, kernelParams) == 40, "");
"""


def test_numbers_and_layouts_are_those_of_cuda_h(tmp_path: Path) -> None:
    """Triton's wheel carries the header, which makes this a check against NVIDIA's own text."""
    spec = importlib.util.find_spec("triton")
    include = Path(spec.origin).parent / "backends" / "nvidia" / "include" if spec and spec.origin else None
    if include is None or not (include / "cuda.h").exists():
        pytest.skip("this Triton carries no cuda.h")
    d, k = devices, kernels
    numbers = dict(
        major=d._COMPUTE_MAJOR, minor=d._COMPUTE_MINOR, processors=d._PROCESSORS, warp=d._WARP, l2=d._L2, pools=d._POOLS,
        threads=d._THREADS,
        optin=d._SHARED_OPTIN, shared=d._SHARED_PROCESSOR, threshold=d._RELEASE_THRESHOLD, reserved=d._RESERVED, high=d._RESERVED_HIGH,
        dynamic=k._MAX_SHARED, registers=k._REGISTERS, local=k._LOCAL, cluster16=k._NON_PORTABLE_CLUSTER, cooperative=k._COOPERATIVE,
        cluster=k._CLUSTER, policy=k._CLUSTER_POLICY, pdl=k._PDL,
    )  # fmt: skip
    source = tmp_path / "check.c"
    names = driver._SIGNATURES
    uses = "\n".join(f"void *use_{n} = (void *)&{n};" for n in names if n not in ("cuEventElapsedTime",))
    source.write_text("#define __CUDA_API_VERSION_INTERNAL\n" + HEADER % numbers + uses)
    assert CC is not None
    done = subprocess.run([CC, f"-I{include}", "-fsyntax-only", str(source)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-3000:]


# ------------------------------------------------------------------------------------------------ streams and events


def test_work_goes_to_the_current_stream_and_a_closed_one_is_refused(gpu: StandIn) -> None:
    x = torch.ones(3, device="cuda")
    s = torch.cuda.Stream()
    with torch.cuda.stream(s):
        assert torch.cuda.current_stream() is s
        y = x + 1
    torch.cuda.current_stream().wait_stream(s)
    assert torch.cuda.current_stream() is torch.cuda.default_stream() and y.tolist() == [2, 2, 2] and s.query()
    s.close()
    with pytest.raises(CudaError, match="this stream was closed"), torch.cuda.stream(s):
        x + 1
    with pytest.raises(CudaError, match="this stream was closed"):
        s.synchronize()
    del y  # its memory belonged to the closed stream
    assert (x + 1).tolist() == [2, 2, 2]


def test_events_tell_the_time_between_them(gpu: StandIn) -> None:
    a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    with pytest.raises(RuntimeError, match="must be recorded"):
        a.elapsed_time(b)
    a.record()
    b.record()
    b.synchronize()
    assert a.elapsed_time(b) == 1 and b.query()  # the stand-in counts records
    with pytest.raises(ValueError, match="enable_timing=True"):
        a.elapsed_time(torch.cuda.Event())


# ------------------------------------------------------------------------------------------------ launches


def kernel(name: str, **signature: str) -> TritonKernel:
    return TritonKernel(name, "", signature, {}, (3, 1, 1), 4, 1, {})


def test_parameters_are_packed_as_a_c_caller_would(gpu: StandIn) -> None:
    device = runtime.device()
    f = Function(device, b"\x7fELF", LaunchInfo("k", 4))
    gpu.kernels[f.handle] = kernel("k", a="*fp32", n="i32", x="fp64", b="*bf16", m="i64", c="i8", h="fp32")
    call = Launch(f, (3, 1, 1), ["*fp32", "i32", "fp64", "*bf16", "i64", "i8", "fp32"])
    call.bind((0x1000, -7, 2.5, 0x2000, 2**40, 5, 0.5))
    packed = bytes(call._memory)[call._skip : call._skip + 80]
    expected = np.zeros(80, np.uint8)  # offsets by natural alignment: 0 8 16 24 32 40 44, then two pointers at 48 and 56
    for at, value in (
        (0, np.uint64(0x1000)),
        (8, np.int32(-7)),
        (16, np.float64(2.5)),
        (24, np.uint64(0x2000)),
        (32, np.int64(2**40)),
        (40, np.int8(5)),
        (44, np.float32(0.5)),
    ):
        raw = np.frombuffer(value.tobytes(), np.uint8)
        expected[at : at + len(raw)] = raw
    assert packed[:64] == expected.tobytes()[:64]
    assert [p - call._parameters[0] for p in call._parameters] == [0, 8, 16, 24, 32, 40, 44, 48, 56]


def test_launch_attributes_follow_the_metadata(gpu: StandIn) -> None:
    device = runtime.device()
    info = LaunchInfo("k", 4, num_ctas=2, launch_pdl=True, launch_cooperative_grid=True, global_scratch_size=128)
    f = Function(device, b"\x7fELF", info)
    gpu.library.stub_on_launch(None, None)
    call = Launch(f, (3, 1, 1), [])
    call.bind(())
    call(device.stream.cuda_stream)
    assert call.grid == (6, 1, 1) and call._tail[0] % 256 == 0 and call._scratch is not None and call._scratch.nbytes == 768
    assert list((ctypes.c_int * 4).in_dll(gpu.library, "stub_attributes")) == [6, 2, 4, 5]
    LaunchGraph(device, [call, call])(device.stream.cuda_stream)
    assert gpu.graph_launches == 1 and gpu.launches == 3


def test_too_much_shared_memory_is_refused_before_the_launch(gpu: StandIn) -> None:
    with pytest.raises(CudaError, match="needs 300000 bytes of shared memory; Stand-in GPU has 232448"):
        Function(runtime.device(), b"\x7fELF", LaunchInfo("k", 4, shared=300_000))


def test_a_cubin_that_the_driver_refuses_says_to_update_it(gpu: StandIn) -> None:
    with pytest.raises(CudaError, match=r"cuModuleLoadData(.|\n)*newer CUDA than this driver's \(13.0\)"):
        Function(runtime.device(), b"nonsense", LaunchInfo("k", 4))


def test_a_graph_is_refused_after_close(gpu: StandIn) -> None:
    device = runtime.device()
    f = Function(device, b"\x7fELF", LaunchInfo("k", 4))
    gpu.library.stub_on_launch(None, None)
    graph = LaunchGraph(device, [Launch(f, (1, 1, 1), [])])
    graph.close()
    with pytest.raises(CudaError, match="graph was closed"):
        graph(device.stream.cuda_stream)


def test_an_illegal_access_names_recent_kernels_and_the_cpu_goes_on(gpu: StandIn) -> None:
    x = torch.ones(3, device="cuda")
    y = x * 2
    gpu.fail("cuStreamSynchronize", 700)
    with pytest.raises(CudaError, match=r"read or wrote outside its memory(.|\n)*mul(.|\n)*TORCHLET_CUDA_SYNC=1"):
        y.tolist()
    assert (torch.ones(2) * 3).tolist() == [3, 3]


def test_with_cuda_sync_the_failing_kernel_is_named_with_its_lines(gpu: StandIn) -> None:
    x = torch.ones(3, device="cuda")
    f = torch.compile(lambda a: torch.exp(a) + 1)
    with config(cuda_sync=True):
        assert f(x).shape == (3,)
        gpu.fail("cuCtxSynchronize", 716)
        with pytest.raises(CudaError, match=r"kernel \w*exp\w* \(lines .*test_cuda_runtime.py:\d+\) failed(.|\n)*misaligned address"):
            f(x)


# ------------------------------------------------------------------------------------------------ eager


SAMPLED = [op for op in OPS.values() if op.samples is not None and not op.writes]


def tensors(values: tuple[Any, ...], place: str) -> list[Any]:
    made = [wrap(a.astype(np.float32) if a.dtype == np.float64 else a.copy()) if isinstance(a, np.ndarray) else a for a in values]
    return [t.to(place) if isinstance(t, Tensor) else t for t in made]


def test_every_operator_of_the_table_gives_on_the_device_what_it_gives_on_the_cpu(gpu: StandIn) -> None:
    wrong = []
    for op in SAMPLED:
        assert op.samples is not None
        for i, (inputs, attrs) in enumerate(op.samples()):
            here = tensors(inputs, "cpu")
            expected = apply(op, tuple(here), attrs)
            there = tensors(inputs, "cuda")
            is_made = not any(isinstance(t, Tensor) for t in there)
            got = make(op, tuple(there), attrs, "cuda") if is_made else apply(op, tuple(there), attrs)
            a, b = got.cpu()._np, expected._np
            if not (got.is_cuda and a.shape == b.shape and np.allclose(a, b, 1e-4, 1e-5, equal_nan=True)):
                wrong.append((op.name, i))
    assert wrong == []


def test_an_operator_without_loops_runs_on_the_host_and_is_counted(gpu: StandIn) -> None:
    without = next(op for op in SAMPLED if op.name == "cholesky")
    assert without.lower is None and without.samples is not None
    inputs, attrs = without.samples()[0]
    assert apply(without, tuple(tensors(inputs, "cuda")), attrs).is_cuda
    assert launch.HOST_CALLS == {"cholesky": 1}


def test_a_second_call_of_an_operator_compiles_nothing(gpu: StandIn) -> None:
    x, modules = torch.randn(4, 4, device="cuda"), 0
    for n in range(4):
        (x * (n + 0.5)).relu_()  # numbers are arguments of the kernel
        modules = modules or gpu.modules
    assert gpu.modules == modules


def test_tensors_on_two_devices_do_not_mix(gpu: StandIn) -> None:
    x, y = torch.ones(2, device="cuda"), torch.ones(2)
    for f in (lambda: x + y, lambda: torch.compile(lambda: y * x)(), lambda: torch.cat([x, y])):
        with pytest.raises(RuntimeError, match="Expected all tensors to be on the same device, but found at least two devices, c"):
            f()
    assert (x + torch.tensor(2.0)).tolist() == [3, 3]  # a 0-d CPU tensor goes anywhere
    assert x[[1]].is_cuda and x[torch.tensor([0])].tolist() == [1]  # and so does an index


def test_views_share_memory_and_in_place_writes_go_through_them(gpu: StandIn) -> None:
    x = torch.arange(12.0).cuda()
    y = x.view(3, 4).t()[1:]
    y.mul_(10)
    y[0] = 7
    expected = torch.arange(12.0)
    z = expected.view(3, 4).t()[1:]
    z.mul_(10)
    z[0] = 7
    assert x.tolist() == expected.tolist() and y.storage_offset() == 1 and y.stride() == z.stride()


def test_unaligned_views_get_kernels_that_do_not_assume_alignment(gpu: StandIn) -> None:
    x = torch.arange(9.0).cuda()
    f = torch.compile(lambda a: torch.exp(a * 0.1) + a)
    for start in (0, 1, 4, 3):
        here = np.arange(9.0)[start : start + 4]
        assert np.allclose(f(x[start : start + 4]).tolist(), np.exp(here * 0.1) + here)


def test_creation_on_the_device_has_the_numbers_of_the_cpu(gpu: StandIn) -> None:
    torch.manual_seed(3)
    here = [torch.rand(5), torch.randn(2, 3), torch.randint(0, 9, (4,)), torch.arange(5), torch.eye(3), torch.full((2,), 7)]
    torch.cuda.manual_seed_all(3)
    d = {"device": "cuda"}
    there = [
        torch.rand(5, **d),
        torch.randn(2, 3, **d),
        torch.randint(0, 9, (4,), **d),
        torch.arange(5, **d),
        torch.eye(3, **d),
        torch.full((2,), 7, **d),
    ]
    for a, b in zip(here, there, strict=True):
        assert b.is_cuda and np.allclose(a.tolist(), b.tolist(), atol=1e-6)
    assert torch.zeros_like(there[0]).is_cuda and there[0].new_ones(2).is_cuda and launch.HOST_CALLS == {}


# ------------------------------------------------------------------------------------------------ programs


def mlp(place: str, make_optimizer: Callable[[Any], Any]) -> Callable[[], Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.LayerNorm(16), nn.Dropout(0.1), nn.Linear(16, 4)).to(place)
    x, y = torch.randn(12, 8, device=place), torch.randint(0, 4, (12,), device=place)
    optimizer = make_optimizer(model.parameters())

    def step() -> Any:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        return loss

    return step


@pytest.mark.parametrize(
    "optimizer", [lambda p: torch.optim.AdamW(p, lr=1e-2), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)], ids=["adamw", "sgd"]
)
def test_training_on_the_device_has_the_losses_of_the_cpu_eager_and_compiled(gpu: StandIn, optimizer: Any) -> None:
    expected = [float(step()) for step in [mlp("cpu", optimizer)] for _ in range(8)]
    eager = [float(step()) for step in [mlp("cuda", optimizer)] for _ in range(8)]
    before = counts()
    compiled = [float(step()) for step in [torch.compile(mlp("cuda", optimizer))] for _ in range(8)]
    assert np.allclose(eager, expected, 1e-4) and np.allclose(compiled, expected, 1e-4)
    graphs, launches = counts()
    assert graphs - before[0] == 5, (
        "the first step makes the optimizer's state; of the seven alike, all from the third on are one graph each"
    )
    assert launches > before[1]
    assert launch.HOST_CALLS == {}


def test_a_replayed_step_launches_one_graph_and_changes_few_of_its_nodes(gpu: StandIn) -> None:
    step = torch.compile(mlp("cuda", lambda p: torch.optim.SGD(p, lr=0.1)))
    for _ in range(6):
        step()
    graphs, updates = gpu.graph_launches, gpu.graph_updates
    kernels = gpu.launches
    step()
    assert gpu.graph_launches == graphs + 1
    assert gpu.graph_updates - updates < (gpu.launches - kernels) / 2  # the dropout's offset, the loss's place


def test_equal_layers_share_their_kernels(gpu: StandIn) -> None:
    def loaded(layers: int) -> int:
        before = gpu.modules
        model = nn.Sequential(*[nn.Linear(8, 8) for _ in range(layers)]).to("cuda")
        optimizer = torch.optim.AdamW(model.parameters())
        x = torch.randn(4, 8, device="cuda")

        def step() -> None:
            optimizer.zero_grad()
            model(x).square().sum().backward()
            optimizer.step()

        compiled = torch.compile(step)
        compiled()
        compiled()
        return gpu.modules - before

    assert loaded(5) > 0
    assert loaded(7) <= 2


def test_graphs_can_be_switched_off(gpu: StandIn) -> None:
    with config(cuda_graphs=False):
        step = torch.compile(mlp("cuda", lambda p: torch.optim.SGD(p, lr=0.1)))
        for _ in range(5):
            step()
    assert gpu.graph_launches == 0


def test_a_graph_replays_with_the_addresses_and_numbers_of_each_call(gpu: StandIn) -> None:
    f = torch.compile(lambda a, k: (torch.softmax(a @ a, -1) * k).sum(0))
    kept = []
    for i in range(8):
        x = torch.randn(4, 4)
        got = f(x.cuda(), i + 0.5)
        kept.append((got, torch.softmax(x @ x, -1).mul(i + 0.5).sum(0)))
    assert all(np.allclose(a.tolist(), b.tolist(), 1e-4, 1e-6) for a, b in kept)
    assert gpu.graph_launches > 0


def test_a_backward_pass_outside_of_the_compiled_call_runs_on_the_device(gpu: StandIn) -> None:
    def run(place: str) -> tuple[list[float], list[float]]:
        torch.manual_seed(1)
        w, x = torch.randn(4, 3, device=place, requires_grad=True), torch.randn(5, 4, device=place)
        y = torch.compile(lambda: torch.tanh(x @ w).sum(1))()
        y.backward(torch.ones(5, device=place))
        return y.tolist(), w.grad.tolist()

    for a, b in zip(run("cuda"), run("cpu"), strict=True):
        assert np.allclose(a, b, 1e-4, 1e-6)


def test_moves_inside_a_compiled_call_are_part_of_its_segment(gpu: StandIn) -> None:
    w = torch.randn(4, 4)
    on = w.cuda()

    def f(x: Any) -> Any:
        y = x.to("cuda") @ on
        return y.cpu() + x, y

    for _ in range(4):
        x = torch.randn(4, 4)
        a, b = torch.compile(f)(x)
        assert not a.is_cuda and b.is_cuda
        assert np.allclose(a.tolist(), (x @ w + x).tolist(), 1e-4, 1e-5) and np.allclose(b.tolist(), (x @ w).tolist(), 1e-4, 1e-5)


def test_copies_between_devices_in_place_eager_and_compiled(gpu: StandIn) -> None:
    here, there, source = torch.zeros(3), torch.zeros(3, device="cuda"), torch.arange(3.0)
    there.copy_(source)
    here.copy_(there + 1)
    assert here.tolist() == [1, 2, 3]

    @torch.compile
    def f(target: Any, value: Any) -> Any:
        target.copy_(value)
        return target + 1

    for n in range(1, 4):
        assert f(there, source * n).tolist() == [1, n + 1, 2 * n + 1] and f(here, there * 2).tolist() == [1, 2 * n + 1, 4 * n + 1]
        assert here.tolist() == [0, 2 * n, 4 * n]


def test_gradients_flow_across_devices(gpu: StandIn) -> None:
    w = torch.ones(3, requires_grad=True)

    def f() -> Any:
        w.grad = None
        (w.cuda() * 2).sum().backward()

    for step in (f, torch.compile(f), torch.compile(f)):
        step()
        assert w.grad is not None and not w.grad.is_cuda and w.grad.tolist() == [2, 2, 2]


def test_threads_share_the_device(gpu: StandIn) -> None:
    found = []

    def work() -> None:
        x = torch.full((4, 4), 0.5, device="cuda")
        f = torch.compile(lambda q: (q @ q + 1).relu())
        for _ in range(5):
            found.append(f(x).tolist() == [[2.0] * 4] * 4)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert found == [True] * 15


def test_values_that_python_reads_end_a_segment(gpu: StandIn) -> None:
    def f(x: Any) -> Any:
        y = x * 2
        return y + 1 if y.sum() > 0 else y - 1

    g = torch.compile(f)
    for sign in (1.0, -1.0, 1.0):
        assert g(torch.full((3,), sign).cuda()).tolist() == f(torch.full((3,), sign)).tolist()


def test_explain_says_what_is_copied_to_the_host(gpu: StandIn) -> None:
    x = torch.randn(5, 3, device="cuda")
    text = str(torch.explain(lambda: torch.linalg.cholesky(x.t() @ x + 4 * torch.eye(3, device="cuda")) * 2)())
    assert "extern cholesky: it has no loops to compile and is copied to the host and back" in text


# ------------------------------------------------------------------------------------------------ cubins


@pytest.mark.slow
def test_a_kernel_of_the_cache_needs_no_triton(tmp_path: Path) -> None:
    """The first process compiles with Triton, the second finds its cubins and never imports it."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import torchlet as torch\nfrom standin import stand_in\nfrom torchlet.compiler import launch\n"
        "with stand_in(real_cubins=True):\n"
        "    x = torch.ones(4, 8, device='cuda')\n"
        "    got = torch.compile(lambda: torch.softmax(x * 2, -1).sum(0))().tolist()\n"
        "    print(got[0], launch.COUNTS['compiled'], 'triton' in sys.modules)\n"
    )
    tests = Path(__file__).parent
    env = {
        **os.environ,
        "TORCHLET_CACHE_DIR": str(tmp_path),
        "PYTHONPATH": os.pathsep.join([str(tests.parent), os.environ.get("PYTHONPATH", "")]),
    }
    runs = [
        subprocess.run(
            [sys.executable, "-c", code, str(tests)], env=env, capture_output=True, text=True, timeout=900, check=True
        ).stdout.split()
        for _ in range(2)
    ]
    assert [r[0] for r in runs] == ["0.5", "0.5"]
    assert int(runs[0][1]) >= 2 and runs[0][2] == "True"
    assert runs[1][1:] == ["0", "False"]


def test_a_damaged_cubin_is_compiled_again(gpu: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compiled(k: TritonKernel, target: str) -> tuple[bytes, LaunchInfo]:
        calls.append(target)
        return b"\x7fELF" + b"x" * 60, LaunchInfo(k.name, 4, shared=1024)

    monkeypatch.setattr(launch, "_compile", compiled)
    cubin_of = gpu.cubin_of
    with config(cache_dir=str(tmp_path)):
        k = kernel("k", a="*fp32")
        first = cubin_of(k, "cuda:90")
        assert cubin_of(k, "cuda:90") == first and calls == ["cuda:90"]
        assert cubin_of(replace(k, num_warps=8), "cuda:90") == (first[0], first[1]) and len(calls) == 2
        (path,) = {p for p in tmp_path.glob("*.cubin") if launch._key(k, "cuda:90") in p.name}
        path.write_bytes(b"\x7fELF damaged")
        assert cubin_of(k, "cuda:90") == first and len(calls) == 3


def test_a_real_cubin_has_the_entry_that_its_launch_names(gpu: StandIn, tmp_path: Path) -> None:
    torch.compile(lambda x: torch.softmax(x, -1))(torch.ones(4, 64, device="cuda"))
    with config(cache_dir=str(tmp_path)):
        k = next(k for k in gpu.kernels.values() if "tl.exp" in k.source)
        cubin, info = gpu.cubin_of(k, "cuda:90")
    assert cubin[:4] == b"\x7fELF" and b".text." + info.name.encode() + b"\0" in cubin
    assert (info.num_ctas, info.global_scratch_size, info.num_warps) == (1, 0, k.num_warps) and info.shared < 48 * 1024


@pytest.mark.slow
@pytest.mark.parametrize("sections", ["host", "correct,checks,tables,products,steps,host"])
def test_gpu_check_runs_dry_and_writes_its_tables(tmp_path: Path, sections: str) -> None:
    root = Path(__file__).parent.parent
    env, before = {**os.environ, "PYTHON": sys.executable}, winners.PATH.read_bytes()
    command = [str(root / "benchmarks" / "gpu_check.sh"), "--dry", "--out", str(tmp_path), "--sections", sections]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=900)
    assert "problem" not in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    (found,) = tmp_path.glob("gpu_*.json")
    rows = json.loads(found.read_text())["rows"]
    ok = {(r["section"], r.get("contender")) for r in rows if r.get("status") == "ok"}
    timed = [s for s in sections.split(",") if s not in ("correct", "checks")]
    assert not [r for r in rows if r["section"] == "checks" and r["status"] != "ok"]
    assert {x for x in ok if x[0] in timed} == {(s, c) for s in timed for c in ("torchlet", "torchlet eager")}
    assert "MLP step" in next(tmp_path.glob("*.md")).read_text()
    contests = [r for r in rows if r["section"] == "contests"]
    assert contests or "products" not in sections, "products are timed long enough to be hot"
    assert all(len(r["tiles"]) == len(r["ms"]) > 1 for r in contests)
    entered = json.loads((tmp_path / "winners.json").read_text())["targets"]
    classes, names = {r["problem"] for r in contests if r["problem"]}, set(entered.get("cuda:90", ()))
    assert names <= classes and len(names) >= len(classes) // 2, "all but classes whose members have no tile in common"
    assert winners.PATH.read_bytes() == before, "a dry run enters nothing into the package's table"
