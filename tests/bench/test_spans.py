"""Seconds by name: time in an inner span does not count for the outer one."""

import threading
import time

import pytest
import torch

from ds_rvqvae.bench.spans import Spans

CPU = torch.device("cpu")


def test_a_span_within_another_counts_for_itself_only():
    spans, began = Spans(CPU), time.perf_counter()
    with spans.span("outer"):
        time.sleep(0.02)
        with spans.span("inner"):
            time.sleep(0.05)
        time.sleep(0.02)
    passed = time.perf_counter() - began
    assert spans.seconds["inner"] >= 0.05 and spans.seconds["outer"] >= 0.04
    assert sum(spans.seconds.values()) <= passed


def test_a_span_ends_with_an_error_inside_it_and_what_follows_is_not_its_own():
    spans = Spans(CPU)
    with pytest.raises(ZeroDivisionError), spans.span("failing"):
        _ = 1 / 0
    before = spans.seconds["failing"]
    time.sleep(0.02)
    with spans.span("next"):
        time.sleep(0.02)
    assert spans.seconds["failing"] == before and spans.seconds["next"] >= 0.02


def test_a_function_keeps_its_arguments_and_result():
    spans = Spans(CPU)
    assert spans.around("power", pow)(3, exp=4, mod=5) == 1
    assert list(spans.seconds) == ["power"]


def test_communication_is_waited_for_and_nothing_else_is():
    spans, pending, arriving = Spans(CPU), torch.futures.Future(), torch.futures.Future()
    late = threading.Timer(5.0, pending.set_result, [3])
    late.start()
    assert not spans.around("forward", lambda: pending)().done()
    late.cancel()
    threading.Timer(0.05, arriving.set_result, [3]).start()
    assert spans.around("communication", lambda: arriving)().done()
    assert spans.seconds["communication"] >= 0.03
