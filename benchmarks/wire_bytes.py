"""Counts the bytes that one training step hands to torch.distributed, and compares them with arithmetic.

    DS_ACCELERATOR=cpu LOCAL_SIZE=2 deepspeed --include localhost:0,1 benchmarks/wire_bytes.py \
        --profile baseline --data_path MOTION --batch_size 2 [--json [FILE]]

It takes the flags of training. It counts collectives and their payloads per rank, which are the sizes of the tensors
that are reduced or gathered, on the third step.
"""

import argparse
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ds_rvqvae.process.command import begin_program, run_program

if __name__ == "__main__":
    begin_program()  # before the slow imports

import torch
import torch.distributed as dist

from ds_rvqvae.cli.common import add_json_flag, print_result
from ds_rvqvae.config.flags import add_training_flags
from ds_rvqvae.config.request import flags_of
from ds_rvqvae.data.dataset import MotionData
from ds_rvqvae.gpu.sizes import transfers_of

COLLECTIVES = (
    "all_reduce",
    "all_gather_into_tensor",
    "all_gather_single",
    "reduce_scatter_tensor",
    "reduce",
    "broadcast",
)


def count_payloads(payloads: Counter[str], calls: Counter[str] | None = None) -> None:
    """Wraps the collectives so that each adds its tensors' bytes to `payloads`, and 1 to `calls`."""
    inside: list[str] = []

    def wrapped(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            tensors = [value for value in (*arguments, *keywords.values()) if isinstance(value, torch.Tensor)]
            if not inside:
                payloads[name] += max((tensor.numel() * tensor.element_size() for tensor in tensors), default=0)
                if calls is not None:
                    calls[name] += 1
            inside.append(name)
            try:
                return function(*arguments, **keywords)
            finally:
                inside.pop()

        return call

    for name in COLLECTIVES:
        if hasattr(dist, name):
            setattr(dist, name, wrapped(name, getattr(dist, name)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training_flags(parser)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    add_json_flag(parser)
    args = parser.parse_args()
    profile = flags_of(args).request().profile
    payloads: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    count_payloads(payloads, calls)
    # Imported only now, because DeepSpeed keeps the functions that it finds when it is imported.
    from ds_rvqvae.train.trainer import Trainer

    data = MotionData.open(profile.rvqvae.data)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer.build(profile, data, Path(folder))
        trainer.initialize_codebooks()
        for _ in range(3):
            payloads.clear()
            calls.clear()
            trainer.step()
        codebooks = trainer.model.quantizer.staged.nbytes
        sizes = [parameter.numel() for parameter in trainer.model.parameters()]
        trainer.close()
    if dist.get_rank() == 0:
        world_size = dist.get_world_size()
        result = {
            "world_size": world_size,
            "counted": dict(sorted(payloads.items())),
            "calls": dict(sorted(calls.items())),
            "parameters": sizes,
            "codebooks": codebooks,
            "by_arithmetic": [asdict(transfer) for transfer in transfers_of(profile, data.in_features, world_size)],
        }
        print_result(args, result, text(result))
    dist.barrier()
    dist.destroy_process_group()


def text(result: dict[str, Any]) -> str:
    """Returns the counted bytes beside those by arithmetic."""
    lines = [f"{name:24} {size:>14,} bytes, calls: {result['calls'][name]}" for name, size in result["counted"].items()]
    lines += [f"{'including codebooks':24} {result['codebooks']:>14,} bytes", "by arithmetic:"]
    lines += [
        f"{transfer['name']:24} {transfer['payload_bytes']:>14,} bytes, {transfer['collective']}"
        for transfer in result["by_arithmetic"]
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    run_program(main)
