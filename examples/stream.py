"""Encode motion that arrives frame by frame, and see when its codes come out.

    python examples/stream.py                                       # the tokenizer and the motion of train_on_bvh.py
    python examples/stream.py runs/mine/run/tokenizer stores/mine --clip walk --chunk 4

The codes of the stream equal those of one pass over the complete clip. The nets look ahead, so a code comes out later
than its frames; a smaller chunk shortens that wait and costs time.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from train_on_bvh import FOLDER, trained

from ds_rvqvae import MotionTokenizer
from ds_rvqvae.data import open_store


def main(argv: list[str] | None = None) -> None:
    """Run the example."""
    parser = argparse.ArgumentParser(description="Encode motion that arrives frame by frame.")
    parser.add_argument("tokenizer", nargs="?", help="folder of a tokenizer (default: that of train_on_bvh.py)")
    parser.add_argument("store", nargs="?", type=Path, default=FOLDER / "store", help="motion (default: %(default)s)")
    parser.add_argument("--clip", help="the clip of the store (default: the first)")
    parser.add_argument("--chunk", type=int, default=8, help="codes computed at a time (default: %(default)s)")
    parser.add_argument("--piece", type=int, default=5, help="frames that arrive at a time (default: %(default)s)")
    args = parser.parse_args(argv)

    tokenizer = MotionTokenizer.from_pretrained(args.tokenizer or trained())
    tokenizer.chunk = args.chunk  # the same for the stream and the complete clip, so that their codes are equal
    store = open_store(args.store)
    # The store's own array is read-only, so this is a copy: [frames, columns]. Live frames come from a camera.
    motion = np.array(store.clip(args.clip or store.clip_names[0]))
    expected = tokenizer.encode(motion)

    stream = tokenizer.encoder_stream()
    codes, seconds, worst = [], 0.0, 0
    for start in range(0, len(motion), args.piece):
        began = time.perf_counter()
        codes.append(stream.push(motion[start : start + args.piece]).numpy())
        seconds = max(seconds, time.perf_counter() - began)
        done = sum(map(len, codes))
        worst = max(worst, min(start + args.piece, len(motion)) - done * tokenizer.code_stride)
        if len(codes[-1]):
            print(f"frame {start + args.piece:5}: {len(codes[-1])} codes, {done} so far")
    codes.append(stream.finish().numpy())

    assert np.array_equal(np.concatenate(codes), expected), "the stream gives the codes of one pass"
    print(f"{len(expected)} codes of {len(motion)} frames, equal to those of one pass")
    print(f"latency {stream.latency} frames ({stream.latency / tokenizer.fps:.1f} s) at --chunk {args.chunk}")
    print(f"frames without a code yet: {worst} at most, the latency and an incomplete code")
    print(f"the slowest push took {1000 * seconds:.0f} ms")


if __name__ == "__main__":
    main()
