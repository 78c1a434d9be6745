"""How much the outputs of a network feel what its modules give: second moments of the gradients that reach them."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ldnq import graph, ranks
from ldnq.graph import Layer
from ldnq.soundness import finite, unusable

# Samples whose activations are all held at once, for the way back.
SAMPLES = 32
# Entries of those samples: of inputs over 128 pixels there are fewer, since activations grow with the area.
ENTRIES = SAMPLES * 3 * 128 * 128


def channel_curvature(network: nn.Module, name: str, batches: Iterable[Tensor], generator: torch.Generator) -> Tensor:
    """The mean squared gradient of each channel of the output of the module called `name` (the diagonal of the Fisher
    matrix, BRECQ, section 3.3), (channels, 1, …), of mean 1."""
    total = None
    for batch in _parts(batches):
        for gradients in output_gradients(network, [name], batch, 1, generator):
            for gradient in gradients[name]:
                squares = gradient.float().square().sum((0, *range(2, gradient.dim())), keepdim=True)[0]
                total = squares if total is None else total + squares
    # A module that the outputs do not depend on may do as it likes.
    return torch.ones(()) if total is None else total / total.mean()


def sensitivities(
    network: nn.Module, layers: Sequence[Layer], batches: Iterable[Tensor], draws: int, generator: torch.Generator
) -> dict[str, Tensor]:
    """Second moments S = E[g gᵀ] of the gradients of each layer's outputs by the layer's name, (groups, rows, rows),
    float64, of mean diagonal 1: the factor that K-FAC (arXiv 1503.05671) and YAQA (arXiv 2505.22988) put beside the
    Gram matrix of the inputs. Layers that the outputs do not depend on are left out. Every process works on its own of
    the `batches`."""
    totals = {layer.name: _zeros(network.get_submodule(layer.name)) for layer in layers}
    for number, batch in enumerate(batches):
        for part in _parts([batch]):
            if number % ranks.size() != ranks.rank():
                _skip(network, part, draws, generator)
                continue
            for gradients in output_gradients(network, list(totals), part, draws, generator):
                for name, total in totals.items():
                    for gradient in gradients[name]:
                        g = graph.as_matrix(network.get_submodule(name), gradient.float())
                        total += g @ g.mT
    ranks.sum_(*totals.values())
    means = {name: total.diagonal(dim1=-2, dim2=-1).mean() for name, total in totals.items()}
    return {name: total / means[name] for name, total in totals.items() if means[name] > 0}


def output_gradients(
    network: nn.Module, names: Sequence[str], batch: Tensor, draws: int, generator: torch.Generator
) -> Iterator[dict[str, list[Tensor]]]:
    """For each of `draws`: gradients by the outputs of the modules called `names`, one for each of their calls, of a
    random projection of the network's outputs. The second moments are those of the log-likelihood of classes drawn as
    the network believes in them, if the outputs are classes. Raises `NetworkError` where they are not finite."""
    outputs: dict[str, list[Tensor]] = defaultdict(list)

    def hook(name: str) -> RemovableHandle:
        def keep(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            outputs[name].append(output if output.requires_grad else output.detach().requires_grad_(True))
            # What follows may work in place; what is kept must stay what the module gave.
            return outputs[name][-1].clone()

        return network.get_submodule(name).register_forward_hook(keep)

    handles = [hook(name) for name in names]
    try:
        with torch.enable_grad():
            logits = graph.forward(network, batch)
    finally:
        for handle in handles:
            handle.remove()
    if not finite(logits):
        raise unusable(next((f"layer {name}" for name in names if not finite(*outputs[name])), "the network's output"))
    places = [(name, output) for name in names for output in outputs[name]]
    for draw in range(draws if logits.requires_grad else 0):
        found = torch.autograd.grad(
            logits,
            [output for _, output in places],
            _draw(logits.detach().float(), generator).to(logits),
            retain_graph=draw + 1 < draws,
            allow_unused=True,
        )
        gradients: dict[str, list[Tensor]] = {name: [] for name in names}
        for (name, _), gradient in zip(places, found):
            if gradient is not None:
                gradients[name].append(gradient)
        yield gradients


def _parts(batches: Iterable[Tensor]) -> Iterator[Tensor]:
    for batch in batches:
        yield from batch.split(max(1, min(SAMPLES, ENTRIES // batch[0].numel())))


def _zeros(layer: nn.Module) -> Tensor:
    groups = getattr(layer, "groups", 1)
    rows = layer.weight.shape[0] // groups
    return torch.zeros(groups, rows, rows, dtype=torch.float64, device=layer.weight.device)


@torch.no_grad()
def _skip(network: nn.Module, batch: Tensor, draws: int, generator: torch.Generator) -> None:
    """Draw what another process draws for `batch`, so that all go on alike."""
    logits = graph.forward(network, batch[:1])
    for _ in range(draws):
        _signs(torch.Size([len(batch), *logits.shape[1:]]), generator)


def _draw(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Gradients by the outputs whose second moments are those of the log-likelihood of classes drawn as the network
    believes in them, `diag(p) − p pᵀ`; random signs if the outputs are not classes."""
    signs = _signs(logits.shape, generator).to(logits.device, non_blocking=True)
    if logits.dim() != 2 or logits.shape[1] < 2:
        return signs
    # A class drawn from p would hardly ever be one that is not believed in, and then weigh much: this varies less.
    root = logits.softmax(1).sqrt()
    return root * (signs - root * (root * signs).sum(1, keepdim=True))


def _signs(size: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randint(2, size, generator=generator) * 2.0 - 1
