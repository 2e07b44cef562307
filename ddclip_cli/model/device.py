"""Where the model runs, and in which arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ddclip_cli import console
from ddclip_cli.errors import UsageError

if TYPE_CHECKING:
    import torch


def kind_and_number(device: str) -> tuple[str, int | None]:
    """`auto`, `cpu`, `cuda` or `cuda:N` -> what stands before the colon, and N; needs no torch."""
    kind, colon, number = device.partition(":")
    if device not in ("auto", "cpu") and (kind != "cuda" or (colon and not number.isdecimal())):
        raise UsageError(f"unknown device {device!r}: it is auto, cpu, cuda or cuda:N")
    return kind, int(number) if colon else None


def choose_device(device: str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` -> the device; what `auto` chose is said on stderr."""
    import torch

    kind, number = kind_and_number(device)
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "auto":
        chosen = torch.device("cuda", torch.cuda.current_device()) if available else torch.device("cpu")
        console.log(f"device: {chosen}" + (f" ({torch.cuda.get_device_name(chosen)})" if available else ""))
        return chosen
    if kind == "cuda" and (number or 0) >= available:
        raise UsageError(f"there is no {device} here ({available} GPUs seen): use --device cpu or auto")
    return torch.device(device)


def choose_precision(precision: str, device: torch.device) -> str:
    """`auto`, `fp32`, `bf16` or `fp16` -> the arithmetic of the towers; what `auto` chose is said on stderr."""
    if precision == "auto":
        import torch

        chosen = "fp32"
        if device.type == "cuda":
            chosen = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        console.log(f"precision: {chosen}")
        return chosen
    if precision not in ("fp32", "bf16", "fp16"):
        raise UsageError(f"unknown precision {precision!r}: it is auto, fp32, bf16 or fp16")
    if precision == "fp16" and device.type == "cpu":
        raise UsageError("fp16 does not run on a CPU: use --precision bf16 or fp32")
    return precision
