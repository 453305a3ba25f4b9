"""GPU models that a run can be planned for, with their makers' figures, not measured ones."""

import re
from dataclasses import dataclass, replace

from ds_rvqvae.errors import UserError
from ds_rvqvae.text import MIB

_UNITS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclass(frozen=True)
class Card:
    """One GPU model."""

    name: str
    memory_bytes: int
    """Total as `nvidia-smi` shows it."""
    bf16_flops: float
    """Dense bf16 tensor-core operations per second, accumulated in fp32, without sparsity."""
    fp32_flops: float
    """fp32 operations per second outside the tensor cores; this trainer leaves TF32 off."""
    memory_bandwidth: float
    """Bytes per second of the GPU's own memory."""
    link_bandwidth: float
    """Bytes per second to other GPUs, in one direction."""
    link: str
    source: str

    def with_memory(self, memory_bytes: int) -> "Card":
        """The same GPU model with a different amount of memory."""
        return replace(self, memory_bytes=memory_bytes)


_PCIE_4 = 31.5e9
"""PCIe 4.0 x16: 16 GT/s on 16 lanes in 128b/130b coding, one direction."""
_NO_PEERS = "PCIe 4.0 x16, no NVLink, no peer-to-peer: through the host"

CARDS = {
    "4090": Card(
        *("RTX 4090", 24_564 * MIB, 165.2e12, 82.6e12, 1_008e9, _PCIE_4, _NO_PEERS),
        source="NVIDIA Ada GPU architecture whitepaper, table of GeForce RTX 4090",
    ),
    "3090": Card(
        *("RTX 3090", 24_576 * MIB, 71e12, 35.6e12, 936e9, _PCIE_4, "PCIe 4.0 x16, without an NVLink bridge"),
        source="NVIDIA Ampere GA102 GPU architecture whitepaper, table of GeForce RTX 3090",
    ),
    "a100": Card(
        *("A100 SXM 80GB", 81_920 * MIB, 312e12, 19.5e12, 2_039e9, 300e9, "NVLink 3, 600 GB/s both directions"),
        source="NVIDIA A100 80GB data sheet, SXM",
    ),
    "h100": Card(
        *("H100 SXM 80GB", 81_559 * MIB, 989.4e12, 67e12, 3_350e9, 450e9, "NVLink 4, 900 GB/s both directions"),
        source="NVIDIA H100 data sheet, SXM",
    ),
    "h200": Card(
        *("H200 SXM 141GB", 143_771 * MIB, 989.4e12, 67e12, 4_800e9, 450e9, "NVLink 4, 900 GB/s both directions"),
        source="NVIDIA H200 data sheet, SXM",
    ),
}
"""Presets by the name that `--card` takes."""


def parse_bytes(text: str) -> int:
    """Bytes of a size such as `24GiB` (powers of 1,024) or `24GB` (powers of 1,000).

    Raises:
        UserError: the text is not a size with a unit, or less than one byte.
    """
    match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(?:([KMGT])(i)?B|B)", text.strip(), re.IGNORECASE)
    size = int(float(match[1]) * (1024 if match[3] else 1000) ** _UNITS[(match[2] or "").upper()]) if match else 0
    if size < 1:
        raise UserError(
            f"--gpu_memory {text}: give a size with its unit, 24GiB (25,769,803,776 bytes, as a 24 GB GPU has), "
            "24GB (24,000,000,000 bytes) or 24564MiB"
        )
    return size
