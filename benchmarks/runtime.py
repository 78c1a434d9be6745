"""ResNet-18 in onnxruntime on the processor: float, with integer weights, and with integer weights and activations.

    pip install ".[onnx]"
    python benchmarks/runtime.py --data-root DIR

writes `runtime.md`: Imagenette at 128 pixels, five levels, one scale a layer, 500 images and a random view of each,
preset fast. Latencies are ratios to the float network's, medians of runs that take turns, on one thread.
"""

import copy
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import click
import numpy as np
import onnxruntime
import torch
from rows import FEW, SAMPLES, data_of, data_root_option, looking, publish, quick_option
from workbench import Workbench

from ldnq.config import RecipeConfig
from ldnq.datasets.images import Prepared, in_memory
from ldnq.export import export
from ldnq.formats import formats
from ldnq.presets import fill_in
from ldnq.quantized import QuantizationState, QuantizedModel
from ldnq.recipe import apply_recipe
from ldnq.stages.activations import ActivationRanges

BATCHES = (1, 32)
ROUNDS = 40


@click.command()
@quick_option
@data_root_option("The folder of Imagenette.")
@click.option("--samples", default=SAMPLES, show_default=True, help="Calibration images.")
def main(quick: bool, data_root: str | None, samples: int) -> None:
    """Quantize, export, measure and write the table."""
    bench = Workbench("resnet20" if quick else "resnet18", data_of("imagenette", data_root, image_size=128))
    calibration = bench.calibration(FEW if quick else samples, seed=0)
    images, labels = in_memory(Prepared(bench.data.test, bench.network.preprocessing))
    inputs = bench.network.preprocessing.normalize(images)
    with TemporaryDirectory() as folder:
        sessions, lines = {}, []
        for name, (model, form) in models(bench, calibration).items():
            path = Path(folder) / f"{name}.onnx"
            size = export(model, path, form, inputs[:32]).bytes
            integer = dict(form.remarks(path, model)).get("integer layers", "")
            sessions[name] = session(path)
            lines.append([name, f"{size:,}", f"{top1(sessions[name], inputs, labels):.2f}", integer.partition(",")[0]])
            click.echo(lines[-1])
        for batch in BATCHES:
            for line, ratio in zip(lines, latencies(list(sessions.values()), inputs[:batch].numpy())):
                line.append(f"{ratio:.2f}")
    head = [
        f"| network in onnxruntime {onnxruntime.__version__} | bytes | top-1 | integer layers "
        f"| {' | '.join(f'time, batch {batch}' for batch in BATCHES)} |",
        f"|{'---|' * (4 + len(BATCHES))}",
    ]
    publish("runtime.md", "\n".join(head + [f"| {' | '.join(line)} |" for line in lines]) + "\n")


def models(bench: Workbench, calibration) -> dict:
    """What is compared, and the format it is written in."""
    teacher = bench.network.module
    less = {"solver": "nearest", "views": 0} if looking() else {"views": 1}
    state = apply_recipe(teacher, calibration, fill_in(RecipeConfig(kbits=5, preset="fast", **less)), seed=0)
    rounded = QuantizationState(copy.deepcopy(state.student), teacher, dict(state.weights))
    rounded = ActivationRanges()(rounded, calibration, torch.Generator())
    quantized = QuantizedModel(state.student, state.weights)
    onnx, folded = formats.get("onnx"), formats.get("onnx")(weight_type="float")
    return {
        "float": (QuantizedModel(teacher, {}), folded),
        "5 levels, folded into float weights": (quantized, folded),
        "5 levels, int8 weights": (quantized, onnx()),
        "5 levels, int8 weights, `--abits 8`": (
            QuantizedModel(rounded.student, rounded.weights, folded=True, grids=rounded.grids),
            onnx(),
        ),
    }


def session(path: Path) -> onnxruntime.InferenceSession:
    """The file in onnxruntime as it comes, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def top1(session: onnxruntime.InferenceSession, inputs: torch.Tensor, labels: torch.Tensor) -> float:
    """In percent."""
    outputs = [session.run(None, {"input": batch.numpy()})[0] for batch in inputs.split(32)]
    return 100 * float((np.concatenate(outputs).argmax(1) == labels.numpy()).mean())


def latencies(sessions: list[onnxruntime.InferenceSession], batch: np.ndarray) -> list[float]:
    """The time of each as a multiple of the first one's, by medians over rounds in which they take turns."""
    seconds = [[] for _ in sessions]
    for _ in range(ROUNDS):
        for taken, runtime in zip(seconds, sessions):
            started = time.perf_counter()
            runtime.run(None, {"input": batch})
            taken.append(time.perf_counter() - started)
    medians = [statistics.median(taken[1:]) for taken in seconds]
    return [median / medians[0] for median in medians]


if __name__ == "__main__":
    main()
