"""Counts what one training step hands to torch.distributed, against arithmetic.

    DS_ACCELERATOR=cpu LOCAL_SIZE=2 deepspeed --include localhost:0,1 benchmarks/wire_bytes.py \
        --profile baseline --data_path MOTION --batch_size 2 [--json [FILE]]

Takes the flags of training. Counts payloads a rank, the size of the tensors reduced or gathered, on the third step.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from ds_rvqvae.data.motion_data import MotionData
from ds_rvqvae.flags import add_training_flags, profile_from_flags
from ds_rvqvae.gpu.wire import Transfer, transfers_of
from ds_rvqvae.heartbeat import Heartbeat

COLLECTIVES = (
    "all_reduce",
    "all_gather_into_tensor",
    "all_gather_single",
    "reduce_scatter_tensor",
    "reduce",
    "broadcast",
)


def count_payloads(calls: Counter) -> None:
    """Wraps the collectives so that each adds its tensors' bytes to `calls`."""
    inside = []

    def wrapped(name, function):
        def call(*arguments, **keywords):
            tensors = [value for value in (*arguments, *keywords.values()) if isinstance(value, torch.Tensor)]
            if not inside:
                calls[name] += max((tensor.numel() * tensor.element_size() for tensor in tensors), default=0)
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
    parser.add_argument("--json", nargs="?", const="-", metavar="FILE")
    args = parser.parse_args()
    profile = profile_from_flags(args)
    calls: Counter = Counter()
    count_payloads(calls)
    # After that, since DeepSpeed keeps the functions that it finds when it is imported.
    from ds_rvqvae.train.engine import build_engine, start_distributed
    from ds_rvqvae.train.loop import Trainer
    from ds_rvqvae.train.preemption import Agreement

    start_distributed()
    data = MotionData.open(profile.rvqvae.data)
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder)
        engine = build_engine(profile, data.in_features, run)
        trainer = Trainer(engine, profile, data, run, {}, Agreement(), Heartbeat.start(dist.get_rank()))
        trainer._initialize_codebooks(trainer.loader.next())
        for _ in range(3):
            calls.clear()
            trainer._train_step(trainer.loader.next())
            trainer.step += 1
        codebooks = trainer.model.quantizer._staged
        trainer._close()
    if dist.get_rank() == 0:
        transfers = transfers_of(profile, data.in_features, dist.get_world_size())
        report(dict(calls), codebooks.numel() * codebooks.element_size(), transfers, args.json)
    dist.barrier()
    dist.destroy_process_group()


def report(calls: dict[str, int], codebooks: int, transfers: Sequence[Transfer], file: str | None) -> None:
    """Prints what was counted beside what arithmetic says; as JSON, too, where a file is named."""
    counted = {"counted": calls, "codebooks": codebooks, "world_size": dist.get_world_size()}
    result = json.dumps(counted | {"by_arithmetic": [asdict(transfer) for transfer in transfers]}, indent=2)
    if file == "-":
        print(result)
        return
    for name, size in sorted(calls.items()):
        print(f"{name:24} {size:>14,} bytes")
    print(f"{'of it the codebooks':24} {codebooks:>14,} bytes")
    print("by arithmetic:")
    for transfer in transfers:
        print(f"{transfer.name:24} {transfer.payload_bytes:>14,} bytes, {transfer.collective}")
    if file:
        Path(file).write_text(result + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
