"""cuDNN's settings by role. They can be set without a GPU."""

import subprocess
import sys

import pytest
import torch

from ds_rvqvae.model.exact import CudnnSettings, Role, _full_precision, in_role, take_role


@pytest.fixture(autouse=True)
def _settings_stay():
    with in_role(Role.PEER):  # afterwards they are as before
        yield


def settings():
    return CudnnSettings(*(getattr(torch.backends.cudnn, name) for name in CudnnSettings._fields))


def test_the_plain_loop_has_what_torch_has_by_default():
    code = "import torch; c = torch.backends.cudnn; print((c.allow_tf32, c.benchmark, c.deterministic))"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == str(tuple(Role.PEER.value))


def test_a_role_inside_another_ends_with_its_block_also_after_an_error():
    take_role(Role.TRAINING)
    with pytest.raises(ZeroDivisionError), in_role(Role.PEER):
        assert settings() == Role.PEER.value
        _ = 1 / 0
    assert settings() == Role.TRAINING.value


@pytest.mark.parametrize("role", [Role.TRAINING, Role.PEER])
def test_inference_on_a_gpu_has_its_own_settings_in_any_role(role):
    take_role(role)
    torch.backends.cudnn.benchmark = True
    by_operation = hasattr(torch.backends, "fp32_precision")
    with _full_precision("cuda"):
        assert (torch.backends.cudnn.benchmark, torch.backends.cudnn.deterministic) == (False, True)
        if by_operation:
            assert torch.backends.cudnn.conv.fp32_precision != "tf32"
            assert torch.backends.cuda.matmul.fp32_precision != "tf32"
    assert settings() == role.value._replace(benchmark=True)
    with _full_precision("cpu"):
        assert settings() == role.value._replace(benchmark=True)  # a CPU has none of them
