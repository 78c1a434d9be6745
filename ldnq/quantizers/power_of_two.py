"""The power-of-two codebook, with a straight-through gradient."""

from dataclasses import dataclass

from torch import Tensor, nn

from ldnq.codebook import Codebook
from ldnq.config import FLOAT
from ldnq.problem import project
from ldnq.quantizers.lsq import StepInputs, StepWeight
from ldnq.quantizers.methods import Method, methods
from ldnq.quantizers.parametrized import ScaledQuantizer

# How far from the level towards the edge of its cell a latent value may start.
MARGIN = 0.9


@methods.register("pot")
@dataclass(frozen=True)
class PowerOfTwo(Method):
    """The levels of 'ldnq quantize', `{0, ±α, ±2α, …}`, `kbits` of them, with learned scales, trained straight through;
    activations of `abits` as in LSQ (TTQ, arXiv 1612.01064, with equal scales on both sides)."""

    kbits: int = 3
    scale: str = "layer"
    abits: int = FLOAT

    def weights(self, layer: nn.Module) -> StepWeight:
        """Starts at the nearest levels."""
        weight = layer.weight.detach()
        codebook = Codebook.power_of_two(self.kbits)
        _, scale = project(weight.flatten(1).unsqueeze(0).double(), codebook, self.scale == "channel")
        return StepWeight(codebook, scale.view(-1, *[1] * (weight.dim() - 1)).float())

    def inputs(self, layer: nn.Module, normalized: bool) -> StepInputs | None:
        """Of `abits`."""
        return StepInputs(layer, self.abits) if self.abits < FLOAT else None


class Rounding(ScaledQuantizer):
    """Latent values in units of the scale to `scale · level`; the gradient passes the rounding as if it were not there
    (Bengio et al., arXiv 1308.3432).

    Latent values start as near to the float weight as the cells of their codes allow: what lies near the edge of a cell
    changes first. `clamp` brings back those that have left the range of the levels (BinaryConnect, arXiv 1511.00363,
    section 2.4), after every step.
    """

    def forward(self, latent: Tensor) -> Tensor:
        levels = self.codebook.rounded(latent.detach(), self.bounds)
        return self.log_scale.exp() * (latent + (levels - latent).detach())

    def start(self, codes: Tensor, weight: Tensor) -> Tensor:
        levels = self.codebook.values(codes, weight.dtype)
        lower, upper = self.codebook.cell(codes, weight.dtype)
        return levels + MARGIN * (weight.clamp(lower, upper) - levels)

    def codes(self, latent: Tensor) -> Tensor:
        return self.codebook.nearest(latent, self.bounds)

    def clamp(self, latent: Tensor) -> None:
        """Keep latent values between the outermost levels, or in the cells of the codes within bounds, in place."""
        if self.bounds is None:
            latent.clamp_(self.codebook.levels[0], self.codebook.levels[-1])
        else:
            least, _ = self.codebook.cell(self.bounds.lower, latent.dtype)
            _, greatest = self.codebook.cell(self.bounds.upper, latent.dtype)
            latent.clamp_(least, greatest)
