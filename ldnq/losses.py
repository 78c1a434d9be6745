"""Losses that networks learn by."""

import torch.nn.functional as F
from torch import Tensor


def objective(
    outputs: Tensor,
    labels: Tensor,
    label_smoothing: float = 0.0,
    targets: Tensor | None = None,
    share: float = 0.0,
    temperature: float = 1.0,
) -> Tensor:
    """Cross-entropy of `outputs` (n, classes), of which the divergence from a teacher's outputs `targets` takes a
    `share` where there are any (Hinton et al., arXiv 1503.02531)."""
    loss = F.cross_entropy(outputs, labels, label_smoothing=label_smoothing)
    return loss if targets is None else (1 - share) * loss + share * divergence(outputs, targets, temperature)


def supervised(mode: str, widest: Tensor, wider: Tensor) -> Tensor | None:
    """What the next narrower width learns from, as constants: no outputs but labels ("hard"), those of the `widest`
    ("soft") or of the next `wider` ("recursive") (Yu et al., arXiv 1911.07346)."""
    return {"hard": None, "soft": widest.detach(), "recursive": wider.detach()}[mode]


def divergence(outputs: Tensor, targets: Tensor, temperature: float = 1.0) -> Tensor:
    """Kullback-Leibler divergence of `outputs` from `targets` (n, classes, …), both softened, in units that do not
    depend on the temperature; the relative error where there are no classes to choose from."""
    if outputs.dim() < 2 or outputs.shape[1] == 1:
        return relative_error(outputs, targets)
    ours, theirs = (
        (logits.float() / temperature).log_softmax(1).movedim(1, -1).flatten(0, -2) for logits in (outputs, targets)
    )
    return temperature**2 * F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


def mean_relative_error(outputs: dict[str, Tensor], targets: dict[str, Tensor]) -> Tensor | float:
    """Of those called alike that are tensors; 0 of none."""
    errors = [relative_error(outputs[name], target) for name, target in targets.items() if isinstance(target, Tensor)]
    return sum(errors) / max(1, len(errors))


def relative_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """`‖Y_t − Y‖² / ‖Y_t‖²`; a target of nothing counts as one of almost nothing."""
    outputs, targets = outputs.float(), targets.float()
    return (outputs - targets).square().sum() / targets.square().sum().clamp(min=1e-12)
