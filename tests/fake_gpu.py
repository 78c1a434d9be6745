"""Devices that know shapes but no numbers: what runs on them runs on a GPU, too, and what Python reads from them, or
moves to them and back, is counted."""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

import ldnq
from ldnq import codebook

PACKAGE = Path(ldnq.__file__).parent
aten = torch.ops.aten


class Traffic(TorchDispatchMode):
    """Counts by the functions of ldnq that cause them, `file.function`: `reads`, where Python waits for a number, and
    `moves` of tensors between devices. Numbers that are read are 1, of truths that hold for all True, for any False;
    of entries that are not zero there is one, the next time none."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: Counter[str] = Counter()
        self.moves: Counter[str] = Counter()
        self.truths = WeakIdKeyDictionary()
        self.asked = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet, kwargs = func.overloadpacket, kwargs or {}
        on_gpu = any(isinstance(entry, torch.Tensor) and entry.device.type != "cpu" for entry in args)
        if packet is aten._local_scalar_dense:
            self.reads[_caller()] += on_gpu
            return self.truths.get(args[0], 1)
        if packet is aten.nonzero:
            self.reads[_caller()] += on_gpu
            self.asked += 1
            return args[0].new_zeros(self.asked % 2, args[0].dim(), dtype=torch.long)
        if packet in (aten.allclose, aten.equal):
            self.reads[_caller()] += on_gpu
            return True
        found = func(*args, **kwargs)
        if packet in (aten.any, aten.all):
            self.truths[found] = packet is aten.all
        devices = {entry.device for entry in (*args, found) if isinstance(entry, torch.Tensor)}
        if packet in (aten._to_copy, aten.copy_) and len(devices) > 1:
            self.moves[_caller()] += 1
        return found


@contextmanager
def fake_gpu() -> Iterator[Traffic]:
    """Within the block tensors hold no numbers, and those on one device may not meet those on another. Of "cuda" all is
    counted, but only "meta" knows gradients."""
    traffic, autocast = Traffic(), torch.autocast

    def of_processor(device: str, *options, **more) -> torch.autocast:
        # The device of shapes has none of its own.
        return autocast("cpu" if device == "meta" else device, *options, **more)

    with pytest.MonkeyPatch.context() as patch, FakeTensorMode(allow_non_fake_inputs=True), traffic:
        patch.setattr(torch, "autocast", of_processor)
        codebook._tables.cache_clear()
        yield traffic
    codebook._tables.cache_clear()


def _caller() -> str:
    frame = sys._getframe(1)
    while frame and PACKAGE not in Path(frame.f_code.co_filename).parents:
        frame = frame.f_back
    return f"{Path(frame.f_code.co_filename).stem}.{frame.f_code.co_name}" if frame else "elsewhere"
