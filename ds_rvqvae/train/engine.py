"""The DeepSpeed engine for an RVQ-VAE, its monitors, and communication between ranks."""

import functools
import logging
import math
import os
import socket
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.monitor.comet import CometMonitor
from deepspeed.monitor.config import get_monitor_config
from deepspeed.monitor.csv_monitor import csvMonitor
from deepspeed.monitor.monitor import MonitorMaster
from deepspeed.monitor.tensorboard import TensorBoardMonitor
from deepspeed.monitor.wandb import WandbMonitor
from deepspeed.utils import safe_get_full_fp32_param, safe_set_full_fp32_param
from numpy.typing import NDArray
from torch._C._distributed_c10d import Store, TCPStore
from torch.distributed.rendezvous import register_rendezvous_handler
from torch.utils.checkpoint import checkpoint as torch_checkpoint

from ds_rvqvae.config.profile import Profile
from ds_rvqvae.config.training import ScheduleConfig
from ds_rvqvae.errors import UserError
from ds_rvqvae.files import utf8_path
from ds_rvqvae.gpu.sizes import recomputes_at_once
from ds_rvqvae.model.exact import Role, take_role
from ds_rvqvae.model.nets import Checkpoint
from ds_rvqvae.model.rvqvae import RVQVAE
from ds_rvqvae.process.compiling import check_compiler
from ds_rvqvae.process.interfaces import is_loopback, settle_interfaces
from ds_rvqvae.process.tolerance import tolerated
from ds_rvqvae.process.torch_build import numbers_of
from ds_rvqvae.runs.heartbeat import HEARTBEAT_VARIABLE
from ds_rvqvae.runs.tokenizers import open_single
from ds_rvqvae.runs.variables import on_several_machines
from ds_rvqvae.train.zero.recomputation import recompute
from ds_rvqvae.train.zero.step import install


class Monitors(MonitorMaster):  # type: ignore[misc]
    """The profile's monitors, such as TensorBoard, on rank 0. If one cannot be created or fails, there is one warning
    and it gets no more data; the training continues.

    Args:
        config: a complete DeepSpeed config.
    """

    _KINDS: ClassVar = {
        "tb_monitor": ("tensorboard", TensorBoardMonitor),
        "wandb_monitor": ("wandb", WandbMonitor),
        "csv_monitor": ("csv_monitor", csvMonitor),
        "comet_monitor": ("comet", CometMonitor),
    }

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__(get_monitor_config(without_monitors(config)))
        asked = get_monitor_config(config)
        self.enabled = asked.enabled
        for name, (section, kind) in self._KINDS.items():
            own = getattr(asked, section)
            if own.enabled and dist.get_rank() == 0:
                with tolerated(f"{section}: cannot be written"):
                    setattr(self, name, kind(own))

    def write_events(self, event_list: list[tuple[str, float, int]]) -> None:
        """Writes scalars, `(tag, value, sample)` each, to all monitors."""
        for name in self._KINDS:
            if (monitor := getattr(self, name)) is not None:
                self.attempt(name, functools.partial(monitor.write_events, event_list))

    def attempt(self, name: str, write: Callable[[], None]) -> None:
        """Writes to one monitor, if it is there; after a failure it gets no more data."""
        if getattr(self, name) is None:
            return
        done = False
        with tolerated(f"{self._KINDS[name][0]}: gets no more data until a restart"):
            write()
            done = True
        if not done:
            setattr(self, name, None)


def without_monitors(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the DeepSpeed config with its monitors off."""
    sections = {section for section, _ in Monitors._KINDS.values()} & config.keys()
    return {**config, **{section: {**config[section], "enabled": False} for section in sections}}


def start_distributed() -> None:
    """Joins the ranks that the launcher started; without a launcher, starts a world of one rank."""
    if "RANK" not in os.environ:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        alone = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in alone.items()})
    _silence_libraries()
    # A shared-memory collective for CPUs: it compiles for minutes in every new home folder, and is never used here.
    # Where DeepSpeed has no table of its operations yet, reading it would try to compile all of them.
    vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
    take_role(Role.TRAINING)
    get_accelerator().set_device(int(os.environ["LOCAL_RANK"]))
    deepspeed.init_distributed(auto_mpi_discovery=False, verbose=False, init_method=_meeting_place())


def _silence_libraries() -> None:
    """Drops messages of torch and DeepSpeed that every run would print and that ask nothing of its user."""
    # DeepSpeed calls a collective under a name that newer torch versions deprecate.
    warnings.filterwarnings("ignore", message=".*all_gather_into_tensor.*", category=FutureWarning)
    # A barrier of one rank on a GPU. DeepSpeed ties a process group to its GPU only if there are several ranks.
    warnings.filterwarnings("ignore", message="(?i).*device.id.*init_process_group", category=UserWarning)
    deepspeed.utils.logger.addFilter(_is_of_use)
    logging.getLogger("torch.utils.flop_counter").addFilter(_is_of_use)


def _is_of_use(record: logging.LogRecord) -> bool:
    """Returns False for three messages: one at a resume on another number of ranks, which have no tensor parallelism;
    one in an environment without Triton, about a counter of operations that training does not use; and one at a step
    that is skipped, which the trainer reports with its clips."""
    unused = ("MPU is not provided", "triton not found", "[Rank 0] [deepspeed] OVERFLOW!")
    return not str(record.msg).startswith(unused)


def _meeting_place() -> str:
    """The init method, for torch, by which ranks find each other. Ranks of one machine use only its loopback address;
    torch itself would listen on all addresses."""
    several = on_several_machines(os.environ)
    # A host's name may resolve to the loopback address on that host, and to another one on other hosts.
    if (
        several
        or not is_loopback(os.environ["MASTER_ADDR"])
        or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    ):
        return "env://"
    settle_interfaces(os.environ, several)
    with suppress(RuntimeError):  # it is registered already
        register_rendezvous_handler("loopback", _meet_on_loopback)  # type: ignore[no-untyped-call]
    return "loopback://"


def _meet_on_loopback(_url: str, timeout: timedelta, **_others: Any) -> Iterator[tuple[Store, int, int]]:
    rank, world_size, port = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "MASTER_PORT"))
    address = os.environ["MASTER_ADDR"]
    first = rank == 0
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    listener = socket.create_server((address, port), family=family).detach() if first else None
    uses_libuv = numbers_of(torch.__version__) >= (2, 8)  # before, torch's server by libuv takes no open socket
    store = TCPStore(
        *(address, port, world_size, first),
        timeout=timeout, multi_tenant=True, master_listen_fd=listener, use_libuv=uses_libuv,
    )  # fmt: skip
    yield store, rank, world_size


def own_device() -> torch.device:
    """The device of this rank, on which its engine will be."""
    return torch.device(get_accelerator().current_device_name())


def build_engine(
    profile: Profile,
    in_features: int,
    run_folder: Path,
    universal: bool = False,
    init_from: Path | None = None,
    normalisation: Sequence[NDArray[np.float32]] = (),
) -> deepspeed.DeepSpeedEngine:
    """Builds a DeepSpeed engine whose module is the profile's RVQ-VAE, equal on all ranks.

    Args:
        universal: whether it will load a checkpoint that a different number of ranks saved.
        init_from: folder of a tokenizer or of a checkpoint, from which weights, codebooks and averages come; rank 0
            reads it.
        normalisation: mean and std, float32 `[C]`, that this start has read from that tokenizer.

    Raises:
        UserError: the tokenizer cannot be loaded, or was replaced since it was read; there is no compiler, if the
            profile asks for one.
        RuntimeError: DeepSpeed changed the codebooks' dtype.
    """
    training = profile.rvqvae.training
    if training.compile and HEARTBEAT_VARIABLE not in os.environ:  # our launcher has checked it
        check_compiler(own_device().type == "cpu", "rvqvae.training.compile")
    torch.manual_seed(training.seed)
    model = RVQVAE(in_features, profile.rvqvae.model)
    if init_from is not None:
        on_rank_zero_first(lambda: _load_tokenizer(model, init_from, normalisation))
    weights = [parameter.detach().clone() for parameter in model.parameters()] if init_from is not None else []
    config = profile.deepspeed_config()
    if not config["tensorboard"]["output_path"]:
        config["tensorboard"]["output_path"] = str(utf8_path(run_folder))
    config["checkpoint"]["load_universal"] = universal
    # Its speed is printed only every `steps_per_print` steps, but it waits for the device twice per step.
    config["timers"] = {"throughput": {"enabled": profile.steps_per_print is not None}}
    model.set_checkpointing(checkpoint_function(profile))
    engine, *_ = deepspeed.initialize(
        model=model, model_parameters=model.parameters(), config=without_monitors(config), dist_init_required=False
    )
    quantizer = engine.module.quantizer
    for name, buffer in quantizer.named_buffers():
        if buffer.is_floating_point() and buffer.dtype != torch.float32:
            raise RuntimeError(f"{name} is {buffer.dtype}, not fp32: deepspeed {deepspeed.__version__}?")
    broadcast_buffers(engine.module)
    if weights:
        set_fp32_weights(engine, weights)
    engine.monitor = Monitors(config)
    # The engine would write and flush the learning rate at every step; `Board` writes it with the other values.
    engine.monitor.enabled = profile.wall_clock_breakdown and engine.monitor.enabled
    install(engine, profile)
    if training.compile:
        # Its random draws and staged statistics are Python code: compiled, it would be recompiled at every step.
        disable: Callable[..., Any] = torch.compiler.disable
        quantizer.forward = disable(quantizer.forward)
        mode = training.compile_mode
        engine.compile(compile_kwargs={} if mode == "default" else {"mode": mode})
    return engine


def _load_tokenizer(model: RVQVAE, folder: Path, normalisation: Sequence[NDArray[np.float32]]) -> None:
    tokenizer = open_single(folder)
    for taken, now in zip(normalisation, (tokenizer.mean, tokenizer.std), strict=False):
        if not np.array_equal(taken, now.numpy()):
            raise UserError(f"--init_from {folder}: was replaced by another tokenizer since this start; start again")
    model.load_state_dict(tokenizer.model.state_dict())


def set_fp32_weights(engine: deepspeed.DeepSpeedEngine, weights: list[torch.Tensor]) -> None:
    """Sets the optimizer's fp32 weights to rank 0's `weights`; DeepSpeed itself makes them from the bf16 weights.

    The weights that the model computes with do not change. Every rank calls it.
    """
    for parameter, weight in zip(engine.module.parameters(), weights, strict=True):
        weight = weight.to(engine.device)
        dist.broadcast(weight, src=0)
        safe_set_full_fp32_param(parameter, weight)


def broadcast_buffers(module: torch.nn.Module) -> None:
    """Copies rank 0's buffers to every rank; DeepSpeed does this for parameters only."""
    for buffer in module.buffers():
        plain = buffer.to(torch.uint8) if buffer.dtype == torch.bool else buffer
        dist.broadcast(plain, src=0)
        buffer.copy_(plain)


def checkpoint_function(profile: Profile) -> Checkpoint | None:
    """The function that recomputes residual stacks; None if the profile does not recompute them.

    It is `recompute`, or torch's non-reentrant checkpointing if `recomputes_at_once` does not hold, unless DeepSpeed's
    section asks for a feature that only DeepSpeed's own has. With the reentrant kind of both, a stack whose input is
    raw data would get no gradients.
    """
    if not profile.rvqvae.training.gradient_checkpointing:
        return None
    section = profile.activation_checkpointing
    if section.cpu_checkpointing:
        # Not DeepSpeed's own: 0.19.8 frees a stack's input before the recomputation needs it.
        return _checkpoint_on_cpu
    if section.partition_activations or section.synchronize_checkpoint_boundary or section.profile:
        deepspeed.checkpointing.configure(None, deepspeed_config=profile.deepspeed_config())
        own: Checkpoint = deepspeed.checkpointing.non_reentrant_checkpoint
        return own
    return recompute if recomputes_at_once(profile) else functools.partial(torch_checkpoint, use_reentrant=False)


def _checkpoint_on_cpu(function: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor) -> torch.Tensor:
    with torch.autograd.graph.save_on_cpu(pin_memory=hidden.is_cuda):
        output: torch.Tensor = torch_checkpoint(function, hidden, use_reentrant=False)
        return output


def fp32_model(engine: deepspeed.DeepSpeedEngine) -> RVQVAE:
    """Returns a copy of the model in eval mode, with the optimizer's fp32 weights. Every rank calls it."""
    module = engine.module
    with torch.device(engine.device):
        model = RVQVAE(module.in_features, module.config)
    with torch.no_grad():
        for parameter, trained in zip(model.parameters(), module.parameters(), strict=True):
            parameter.copy_(safe_get_full_fp32_param(trained))
        for buffer, source in zip(model.buffers(), module.buffers(), strict=True):
            buffer.copy_(source)
    return model.eval()


def on_rank_zero_first(task: Callable[[], Any]) -> Any:
    """Runs `task` on rank 0; returns its result, or raises its error, on every rank."""
    outcome: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            outcome[0] = task()
        except UserError as error:
            outcome[1] = error
        except Exception as error:  # of any type, which other ranks may not be able to unpickle
            outcome[1] = RuntimeError(f"{type(error).__name__}: {error}")
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0]


def of_this_host(own: Any) -> Any:
    """Returns the `own` of this host's first rank; raises a UserError if the first rank of any host passes one."""
    first = os.environ["LOCAL_RANK"] == "0"
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (socket.gethostname(), own) if first else None)
    by_host = dict(filter(None, found))
    for given in by_host.values():
        if isinstance(given, UserError):
            raise given
    return by_host.get(socket.gethostname())


def of_all_ranks(own: Any) -> list[tuple[str, Any]]:
    """Returns the host and the `own` of every rank, in rank order."""
    found: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(found, (socket.gethostname(), own))
    return found


def learning_rate(step: int, base: float, schedule: ScheduleConfig, total_iter: int) -> float:
    """Learning rate of optimizer step `step`, counted from 0, of `total_iter`.

    It rises linearly over `warm_up_iter` steps. Then it is `base` times `gamma` for each milestone passed (T2M-GPT's
    schedule), or follows half a cosine wave that reaches 0 at `total_iter` (Loshchilov and Hutter 2017).
    """
    warm_up = schedule.warm_up_iter
    if step < warm_up:
        return base * (step + 1) / (warm_up + 1)
    if schedule.kind == "cosine":
        return base * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(total_iter - warm_up, 1)))
    return base * schedule.gamma ** bisect_right(schedule.milestones, step)
