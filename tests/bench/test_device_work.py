"""Kernels, busy time and convolutions in the profiler's events, as torch makes them of a trace of a GPU."""

import pytest
import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

from ds_rvqvae.bench.spans import QUANTIZER, device_work

BY_KIND = "activity_type" in FunctionEvent.__init__.__code__.co_varnames


class Trace:
    """A trace as `torch.autograd.profiler` builds it: operations nest by their times, a GPU's events stand apart."""

    def __init__(self):
        self.events = []

    def operation(self, name, start, end, *kernels, annotation=False):
        event = FunctionEvent(
            id=len(self.events) + 1,
            name=name,
            thread=1,
            start_us=start,
            end_us=end,
            use_device="cuda",
            is_user_annotation=annotation,
            **({"activity_type": "user_annotation" if annotation else "cpu_op"} if BY_KIND else {}),
        )
        self.events.append(event)
        for kernel, begun, ended in kernels:
            event.append_kernel(kernel, 0, ended - begun)
            self.on_gpu(kernel, begun, ended, "gpu_memcpy" if kernel.startswith("Memcpy") else "kernel")

    def on_gpu(self, name, start, end, kind):
        event = FunctionEvent(
            id=len(self.events) + 1,
            name=name,
            thread=7,  # the stream
            start_us=start,
            end_us=end,
            use_device="cuda",
            device_type=DeviceType.CUDA,
            is_user_annotation=kind == "gpu_user_annotation",
            **({"activity_type": kind} if BY_KIND else {}),
        )
        self.events.append(event)

    def read(self):
        events = EventList(self.events, use_device="cuda")
        events._build_tree()
        return events


def a_step():
    """Two convolutions, one of them for the quantizer; a copy, an all-reduce beside them, and annotations."""
    trace = Trace()
    trace.operation("ProfilerStep#1", 0, 1000, annotation=True)
    trace.operation("aten::conv1d", 10, 50)
    trace.operation("aten::convolution", 12, 48)
    kernels = ("sm90_xmma_fprop_implicit_gemm_conv_tf32", 100, 160), ("nchwToNhwcKernel", 160, 170)
    trace.operation("aten::cudnn_convolution", 15, 45, *kernels)
    trace.operation("cudaLaunchKernel", 20, 25)
    trace.operation(QUANTIZER, 60, 90, annotation=True)
    trace.operation("aten::convolution", 65, 80, ("conv_of_the_quantizer", 170, 190))
    trace.operation("aten::to", 92, 95, ("Memcpy HtoD (Pinned -> Device)", 195, 200))
    trace.operation("triton_poi_fused_convolution_relu_0", 96, 98, ("triton_poi_fused_convolution_relu_0", 210, 220))
    trace.operation("nccl:all_reduce", 99, 120, annotation=True)
    trace.on_gpu("ncclDevKernel_AllReduce_Sum_f32_RING_LL", 150, 180, "kernel")
    # Annotations cover the kernels that were launched inside of them.
    trace.on_gpu("ProfilerStep#1", 100, 1000, "gpu_user_annotation")
    trace.on_gpu(QUANTIZER, 170, 190, "gpu_user_annotation")
    trace.on_gpu("nccl:all_reduce", 150, 180, "gpu_user_annotation")
    return trace.read()


def test_a_kernel_counts_once_and_an_annotation_not_at_all():
    work = device_work(a_step(), on_gpu=True)
    assert work.kernels == 5  # two of the convolution, the quantizer's, triton's, NCCL's


def test_the_busy_time_is_that_of_all_streams_together():
    work = device_work(a_step(), on_gpu=True)
    # 100 to 190 on two streams, the copy's 5, triton's 10.
    assert work.busy_seconds == pytest.approx((90 + 5 + 10) / 1e6)


def test_time_in_convolutions_is_that_of_their_operations():
    work = device_work(a_step(), on_gpu=True)
    assert work.conv_seconds == pytest.approx(70e-6)  # neither the quantizer's nor a fused kernel with such a name


@pytest.mark.skipif(not BY_KIND, reason="this torch does not tell kinds")
def test_an_event_that_only_waits_is_no_work():
    trace = Trace()
    trace.operation("aten::add", 0, 10, ("vectorized_elementwise_kernel", 20, 30))
    trace.on_gpu("Stream Wait Event", 0, 500, "cuda_sync")
    work = device_work(trace.read(), on_gpu=True)
    assert work == (0.0, pytest.approx(10e-6), 1)


def test_older_profilers_tell_annotations_and_copies_apart_too():
    events = a_step()
    for event in events:
        event.activity_type = None
    assert device_work(events, on_gpu=True) == device_work(a_step(), on_gpu=True)


def test_on_a_cpu_operations_without_others_inside_count():
    motion, weight = torch.randn(2, 4, 32), torch.randn(4, 4, 3)
    with profile(activities=[ProfilerActivity.CPU]) as found:
        with record_function(QUANTIZER):
            torch.nn.functional.conv1d(motion, weight)
        convolved = torch.nn.functional.conv1d(motion, weight)
        convolved.add(1.0).mul(2.0)
    events = found.events()
    work, alone = device_work(events, on_gpu=False), [event for event in events if event.name == "aten::conv1d"]
    assert 0 < work.conv_seconds <= alone[1].cpu_time_total / 1e6 * 1.001
    assert work.busy_seconds == 0 and 4 <= work.kernels < len(events)
