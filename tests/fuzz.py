"""Damaged and hostile files of every kind that ldnq reads: each is read, or refused in one line.

    python -m tests.fuzz --count 100000

Input number i of a kind is always the same: a valid file, damaged as a random generator with the seed i says. Children
read them, each within a bound of memory and time, so that a crash or a hang is counted too.
"""

import copy
import hashlib
import json
import multiprocessing
import re
import resource
import signal
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import click
import h5py
import numpy as np
import onnx
import safetensors.torch
import torch
from safetensors import safe_open

from ldnq import checkpoints, formats, hdf5
from ldnq.calibration import CalibrationSet
from ldnq.commands.quantize import quantize_command
from ldnq.config import RunConfig
from ldnq.errors import LdnqError
from ldnq.export import export
from ldnq.quantizers.inputs import rebuilt
from tests.formats.networks import SmallNet, small_model

MEMORY = 1 << 30
SECONDS = 20
IMAGES = torch.randn(2, 3, 9, 9, generator=torch.Generator().manual_seed(0))
HOSTILE = [
    None, True, -1, 0, 1, 2**31, 2**63, 10**30, -(10**18), 1e308, "", "x" * 10_000, "os:system", "../../etc/passwd", [],
    {}, [[]] * 100, {"a": {}}, [2**40, 2**40], [0, -1], ["float32"],
]  # fmt: skip

# How layers of the network round what they are given, as trained ones do.
INPUTS = {
    "features.3": {"kind": "sign", "norm": True, "scale": True},
    "head": {"kind": "step", "bits": 4, "signed": False},
}


def valid(folder: Path) -> dict[str, bytes]:
    """A file of every kind, by the name that tells its reader."""
    model = small_model(provenance={"kbits": 3, "dataset": "digits"})
    formats.h5.save(model, folder / "model.h5")
    rounding = rebuilt(copy.deepcopy(model.module), INPUTS)
    formats.h5.save(replace(model, module=rounding, inputs=INPUTS), folder / "trained.h5")
    export(model, folder / "model.onnx", formats.formats.get("onnx")(), IMAGES)
    export(model, folder / "model.safetensors", formats.formats.get("safetensors")(), IMAGES)
    state = model.module.state_dict()
    checkpoints.write(folder / "float.safetensors", state, {"model": "SmallNet", "num_classes": 4})
    torch.save({"state_dict": state, "epoch": 3}, folder / "float.pth")
    CalibrationSet(np.arange(0, 900, 9), "digits", "0123456789abcdef", 0.1, 0, False).save(folder / "calibration.h5")
    config = RunConfig.from_options({"model": "resnet20", "kbits": 5, "skip": ["conv*"]}).to_dict()
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def read(path: Path) -> None:
    """What ldnq does with a file of this name."""
    if path.name == "config.json":
        context = quantize_command.make_context("quantize", ["--config", str(path)])
        RunConfig.from_options(context.params)
    elif path.name == "calibration.h5":
        CalibrationSet.load(path)
    elif path.name.startswith("float"):
        tensors, _ = checkpoints.read(path)
        checkpoints.load_into(SmallNet(), tensors, str(path))
    else:
        formats.load(path, SmallNet())


def damaged(name: str, content: bytes, path: Path, rng: np.random.Generator) -> None:
    """Write `content` to `path` in a form that nobody's writer makes."""
    about = {
        "config.json": _json,
        "float.safetensors": _header_of_safetensors,
        "model.h5": _header_of_h5,
        "model.onnx": _header_of_onnx,
        "model.safetensors": _header_of_safetensors,
        "trained.h5": _header_of_h5,
    }.get(name)
    path.write_bytes(content)
    if about and rng.random() < 0.5:
        about(path, rng)
    if rng.random() < 0.6 or not about:
        path.write_bytes(_bytes(path.read_bytes(), name, rng))


def _bytes(content: bytes, name: str, rng: np.random.Generator) -> bytes:
    """Some bytes changed, cut out, put in twice or cut off; the seal of HDF5 taken off, or put on anew."""
    sealed = hdf5.SEAL in content
    parts = bytearray(content.split(hdf5.SEAL)[0])
    for _ in range(int(rng.integers(1, 4))):
        # Headers lie at either end.
        place = int(rng.choice([rng.integers(max(1, len(parts))), rng.integers(512), -rng.integers(1, 512)]))
        length = int(2 ** rng.integers(0, 9))
        place = min(max(0, place % max(1, len(parts))), max(0, len(parts) - 1))
        match int(rng.integers(6)):
            case 0 if parts:
                parts[place] ^= 1 << int(rng.integers(8))
            case 1:
                parts[place : place + length] = rng.bytes(length)
            case 2:
                width = int(rng.choice([1, 2, 4, 8]))
                parts[place : place + width] = bytes([int(rng.choice([0, 1, 0x7F, 0x80, 0xFF]))]) * width
            case 3:
                del parts[place : place + length]
            case 4:
                parts[place:place] = parts[place : place + length]
            case 5 if rng.random() < 0.3:
                del parts[place:]
    if sealed and rng.random() < 0.8:
        return _sealed(bytes(parts)) if rng.random() < 0.5 else bytes(parts)
    return bytes(parts) + (content[content.find(hdf5.SEAL) :] if sealed else b"")


def _sealed(content: bytes) -> bytes:
    return content + hdf5.SEAL + hashlib.sha256(content).digest()


def _lie(value, rng: np.random.Generator):
    """`value` with something else somewhere in it."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        name = str(rng.choice(list(value)))
        if rng.random() < 0.1:
            return {key: entry for key, entry in value.items() if key != name}
        return value | {name: _lie(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.9:
        place = int(rng.integers(len(value)))
        return [*value[:place], _lie(value[place], rng), *value[place + 1 :]]
    return HOSTILE[int(rng.integers(len(HOSTILE)))]


def _json(path: Path, rng: np.random.Generator) -> None:
    path.write_text(json.dumps(_lie(json.loads(path.read_text()), rng)))


def _header_of_h5(path: Path, rng: np.random.Generator) -> None:
    with h5py.File(path, "r+") as file:
        header = _lie(json.loads(zlib.decompress(file["header"][:].tobytes())), rng)
        del file["header"]
        file["header"] = np.frombuffer(zlib.compress(json.dumps(header).encode()), np.uint8)
        if rng.random() < 0.3:
            name = str(rng.choice(["codes", "scales", "levels", "tensors"]))
            shape = file[name].shape
            del file[name]
            file.create_dataset(
                name, (int(rng.choice([0, 1, *shape, 10**12])),), rng.choice(["u1", "<f4", "<f8", "S9"])
            )
    path.write_bytes(_sealed(path.read_bytes().split(hdf5.SEAL)[0]))


def _header_of_safetensors(path: Path, rng: np.random.Generator) -> None:
    with safe_open(path, "pt") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
    (key,) = metadata
    path.write_bytes(safetensors.torch.save(tensors, {key: json.dumps(_lie(json.loads(metadata[key]), rng))}))


def _header_of_onnx(path: Path, rng: np.random.Generator) -> None:
    proto = onnx.load(path)
    entry = next(entry for entry in proto.metadata_props if entry.key == formats.onnx.KEY)
    metadata = json.loads(entry.value)
    tensor = proto.graph.initializer[int(rng.integers(len(proto.graph.initializer)))]
    if rng.random() < 0.3:
        tensor.dims.append(int(rng.choice([0, 2, 2**40, -1])))
        metadata["graph_sha256"] = formats.onnx._digest_of_graph(proto)
    entry.value = json.dumps(_lie(metadata, rng))
    path.write_bytes(proto.SerializeToString())


def attempts(files: dict[str, bytes], folder: Path, numbers: range) -> Iterator[tuple[int, str, str]]:
    """(number, kind, outcome) of inputs; the outcome is `read`, `refused`, or what went wrong."""
    names = list(files)
    for number in numbers:
        name = names[number % len(names)]
        damaged(name, files[name], folder / name, np.random.default_rng(number))
        try:
            read(folder / name)
            outcome = "read"
        except (LdnqError, click.ClickException) as error:
            outcome = "refused" if "\n" not in str(error) else f"more than one line: {error}"
        except BaseException as error:
            outcome = f"{type(error).__name__}: {error}"
        yield number, name, outcome


def _child(files: dict[str, bytes], numbers: range, send: Callable) -> None:
    grown = resource.getrlimit(resource.RLIMIT_DATA)
    used = 1024 * int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    resource.setrlimit(resource.RLIMIT_DATA, (used + MEMORY, grown[1]))
    with tempfile.TemporaryDirectory() as folder:
        send((numbers.start - 1, "", "started"))
        signal.alarm(SECONDS)
        for result in attempts(files, Path(folder), numbers):
            send(result)
            signal.alarm(SECONDS)


def run(count: int, start: int = 0) -> tuple[Counter, list[str]]:
    """Read so many inputs in children; returns how each kind ended, and a line for each that ended badly."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        files = valid(Path(folder))
    ends: Counter = Counter()
    failures, number = [], start
    fork = multiprocessing.get_context("fork")
    while number < start + count:
        receive, send = fork.Pipe(duplex=False)
        child = fork.Process(target=_child, args=(files, range(number, start + count), send.send))
        child.start()
        send.close()
        try:
            while True:
                reached, name, outcome = receive.recv()
                number = reached + 1
                if outcome in ("read", "refused"):
                    ends[name, outcome] += 1
                elif name:
                    failures.append(f"{reached} {name}: {outcome}")
        except EOFError:
            child.join()
        if number < start + count:
            name = list(files)[number % len(files)]
            failures.append(f"{number} {name}: the process ended with {child.exitcode}")
            number += 1
    return ends, failures


@click.command()
@click.option("--count", default=100_000, show_default=True, help="Inputs.")
@click.option("--start", default=0, show_default=True, help="Number of the first.")
def main(count: int, start: int) -> None:
    """Read damaged files and count how that ends."""
    ends, failures = run(count, start)
    for (name, outcome), number in sorted(ends.items()):
        click.echo(f"{name:<20} {outcome:<8} {number}")
    for failure in failures[:50]:
        click.echo(failure)
    click.echo(f"{count} inputs, {len(failures)} failures")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
