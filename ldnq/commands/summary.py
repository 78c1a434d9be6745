"""What a run came to, in a few lines."""

from collections.abc import Mapping
from typing import Any


def summary(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of a table: accuracies, sizes, images and time."""
    rows = []
    if metrics["quantized_top1"] is None:
        rows.append(("accuracy", "not measured: no labelled test images"))
    else:
        if metrics["teacher_top1"] is not None:
            rows.append(("float top-1 / top-5", _percent(metrics, "teacher")))
        rows.append(("quantized top-1 / top-5", _percent(metrics, "quantized")))
    if metrics.get("top1_at"):
        rows.append(("top-1 by width", ", ".join(f"{bits}: {top1:.2f}%" for bits, top1 in metrics["top1_at"].items())))
    if metrics["top1_drop"] is not None:
        rows.append(("top-1 drop", f"{metrics['top1_drop']:.2f} points"))
    smaller = metrics["float_bytes"] / metrics["packed_bytes"]
    rows.append(("size", f"{metrics['packed_bytes']:,} bytes, {smaller:.1f}x smaller than {metrics['float_bytes']:,}"))
    rows.append(("bits a weight", f"{metrics['bits_per_weight']:.2f}" if metrics["kbits"] else "32, none is quantized"))
    rows.append(_images(metrics))
    doing = "training" if "train_images" in metrics else "quantizing"
    rows.append(("time", f"{metrics['seconds']:.1f} s, of which {metrics['quantizing_seconds']:.1f} s {doing}"))
    return rows


def _percent(metrics: Mapping[str, Any], which: str) -> str:
    return f"{metrics[f'{which}_top1']:.2f}% / {metrics[f'{which}_top5']:.2f}%"


def _images(metrics: Mapping[str, Any]) -> tuple[str, str]:
    if "train_images" in metrics:
        return "training images", f"{metrics['train_images']:,}, {metrics['epochs']} times"
    images = f"{metrics['calibration_samples']:,}"
    if metrics["synthesized_samples"]:
        images += f", and {metrics['synthesized_samples']:,} synthesized"
    return "calibration images", images
