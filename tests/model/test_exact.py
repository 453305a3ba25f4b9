"""Settings around a tokenizer do not change its results, and are restored afterwards."""

import contextlib
import threading

import numpy as np
import pytest
import torch

from ds_rvqvae import MotionTokenizer
from tests.second_stage import FRAMES, NETS, Seen, save_tokenizer, steps


@pytest.fixture(scope="module", params=NETS, ids=lambda name: name.replace(" ", "_"))
def seen(request, tmp_path_factory):
    return Seen(save_tokenizer(tmp_path_factory.mktemp("tokenizers") / "tokenizer", request.param))


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    return Seen(save_tokenizer(tmp_path_factory.mktemp("tokenizers") / "tokenizer"))


@contextlib.contextmanager
def defaults(dtype=None, device=None):
    try:
        torch.set_default_dtype(dtype or torch.float32)
        torch.set_default_device(device)
        yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@contextlib.contextmanager
def precision(owner, value):
    before = owner.fp32_precision
    owner.fp32_precision = value
    try:
        yield
    finally:
        owner.fp32_precision = before


@contextlib.contextmanager
def matmul_precision(value):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(value)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextlib.contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


AROUND_IT = {
    "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
    "autocast to half": lambda: torch.autocast("cpu", torch.float16),
    "inference mode": torch.inference_mode,
    "gradients": torch.enable_grad,
    "anomaly detection": torch.autograd.detect_anomaly,
    "default bfloat16": lambda: defaults(torch.bfloat16),
    "default float64": lambda: defaults(torch.float64),
    "default meta": lambda: defaults(device="meta"),
    "meta": lambda: torch.device("meta"),
    "matmul medium": lambda: matmul_precision("medium"),
    "matmul high": lambda: matmul_precision("high"),
    "deterministic": deterministic,
}


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("around", AROUND_IT.values(), ids=AROUND_IT)
def test_what_is_set_around_it_changes_nothing(seen, around):
    loaded_outside = seen.stage().tokenizer
    given = seen.motion.numpy(), seen.codes.numpy()
    with around():
        codes, decoded = loaded_outside.encode(given[0]), loaded_outside.decode(given[1], FRAMES)
        loaded_inside = MotionTokenizer.from_pretrained(seen.folder)
        assert np.array_equal(loaded_inside.encode(given[0]), given[1])
        with torch.autocast("cpu", torch.bfloat16):
            assert np.array_equal(loaded_inside.encode(given[0]), given[1])
    assert np.array_equal(codes, given[1]) and np.array_equal(decoded, seen.decoded.numpy())
    seen.check(loaded_outside)
    seen.check(loaded_inside)


def test_without_this_autocast_would_change_codes(seen):
    """Autocast changes codes here; with nets so small that nothing rounds, the tests above would prove nothing."""
    tokenizer = seen.stage().tokenizer
    normalised = ((seen.motion - tokenizer.mean) / tokenizer.std)[None, : FRAMES // 4 * 4]
    plain = tokenizer.model.encode(normalised)
    with torch.autocast("cpu", torch.bfloat16):
        assert not torch.equal(tokenizer.model.encode(normalised), plain)


BY_OPERATION = hasattr(torch.backends, "fp32_precision")
SETTINGS = [torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv] if BY_OPERATION else []
by_operation = pytest.mark.skipif(not BY_OPERATION, reason="before torch 2.9 there is one setting, for matmul")


def inside_of(tokenizer, one, read):
    """The results of `read` while the tokenizer's modules compute."""
    found = []
    hook = torch.nn.modules.module.register_module_forward_hook(lambda *_: found.append(read()))
    try:
        tokenizer.encode(one.motion)
        tokenizer.decode(one.codes)
    finally:
        hook.remove()
    return found


@by_operation
@pytest.mark.parametrize("number", [0, 1], ids=["matmul", "convolution"])
def test_reduced_precision_is_off_inside_and_back_afterwards(one, number):
    """Few CPUs reduce the precision of fp32, so the test checks the setting instead of the result."""
    owner = SETTINGS[number]
    with precision(owner, "bf16"):
        inside = inside_of(one.stage().tokenizer, one, lambda: {setting.fp32_precision for setting in SETTINGS})
        assert owner.fp32_precision == "bf16"
    assert inside and all("bf16" not in settings for settings in inside)


@pytest.mark.skipif(BY_OPERATION, reason="since torch 2.9 there is a setting per operation")
@pytest.mark.parametrize("value", ["medium", "high"])
def test_reduced_precision_of_older_torch_is_off_inside_and_back_afterwards(one, value):
    with matmul_precision(value):
        assert set(inside_of(one.stage().tokenizer, one, torch.get_float32_matmul_precision)) == {"highest"}
        assert torch.get_float32_matmul_precision() == value


@by_operation
def test_what_the_whole_process_is_set_to_is_followed_again_afterwards(one):
    tokenizer = one.stage().tokenizer
    before = [setting.fp32_precision for setting in SETTINGS]
    with precision(torch.backends, "bf16"):
        during = [setting.fp32_precision for setting in SETTINGS]
        tokenizer.encode(one.motion)
        assert during == [setting.fp32_precision for setting in SETTINGS] and "bf16" in during
    assert before == [setting.fp32_precision for setting in SETTINGS]


def test_threads_do_not_undo_each_others_settings(one):
    tokenizer, failed = one.stage().tokenizer, []

    def use():
        try:
            for _ in range(3):
                one.check(tokenizer)
        except BaseException as error:
            failed.append(error)

    with matmul_precision("medium"):
        threads = [threading.Thread(target=use) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if BY_OPERATION:
            assert SETTINGS[0].fp32_precision == "bf16"
        else:
            assert torch.get_float32_matmul_precision() == "medium"
    assert not failed


def test_compiled_parents_leave_it_as_it_is(one):
    stage = one.stage()
    steps(torch.compile(stage, backend="aot_eager"), one.motion)
    encode = torch.compile(lambda motion: stage.tokenizer.encode(motion) + 0, backend="aot_eager")
    decode = torch.compile(lambda codes: stage.tokenizer.decode(codes, FRAMES) * 1, backend="aot_eager")
    assert torch.equal(encode(one.motion), one.codes) and torch.equal(decode(one.codes), one.decoded)
    one.check(stage.tokenizer)


def test_streams_run_over_a_change_of_what_is_around_them(one):
    tokenizer = one.stage().tokenizer
    stream, back = tokenizer.encoder_stream(), tokenizer.decoder_stream()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        codes, motion = [stream.push(one.motion[:200])], [back.push(one.codes[:50])]
    with defaults(torch.float64, "meta"):
        codes.append(stream.push(one.motion[200:].numpy()))
        motion.append(back.push(one.codes[50:].numpy()))
    codes.append(stream.finish())
    motion.append(back.finish())
    assert torch.equal(torch.cat(codes), one.codes)
    assert torch.equal(torch.cat(motion)[:FRAMES], one.decoded)


def test_motion_that_a_trainer_rounded_is_refused(one):
    tokenizer = one.stage().tokenizer
    for dtype in (torch.bfloat16, torch.float16):
        with pytest.raises(TypeError, match=rf"motion is {dtype}.*motion\.float\(\)"):
            tokenizer.encode(one.motion.to(dtype))
    # Of a file.
    stored = one.motion.numpy().astype(np.float16)
    assert np.array_equal(tokenizer.encode(stored), tokenizer.encode(stored.astype(np.float32)))


def test_arrays_may_lie_in_memory_as_they_like(one):
    tokenizer = one.stage().tokenizer
    motion, codes = one.motion.numpy(), one.codes.numpy()
    backwards = np.ascontiguousarray(motion[::-1, ::-1])[::-1, ::-1]
    assert np.array_equal(tokenizer.encode(backwards), codes)
    assert np.array_equal(tokenizer.encode(motion.astype(">f4")), codes)
    assert np.array_equal(tokenizer.encode(np.asfortranarray(motion)), codes)
    flipped = np.ascontiguousarray(codes[::-1, ::-1])[::-1, ::-1]
    assert np.array_equal(tokenizer.decode(flipped, FRAMES), one.decoded.numpy())
