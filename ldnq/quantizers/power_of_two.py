"""Rounding with a straight-through gradient."""

from torch import Tensor

from ldnq.quantizers.parametrized import Quantizer

# How far from the level towards the edge of its cell a latent value may start.
MARGIN = 0.9


class Rounding(Quantizer):
    """Latent values in units of the scale to `scale · level`; the gradient passes the rounding as if it were not there
    (Bengio et al., arXiv 1308.3432).

    Latent values start as near to the float weight as the cells of their codes allow: what lies near the edge of a cell
    changes first. `clamp` brings back those that have left the range of the levels (BinaryConnect, arXiv 1511.00363,
    section 2.4), after every step.
    """

    def forward(self, latent: Tensor) -> Tensor:
        levels = self.codebook.values(self.codebook.nearest(latent.detach()), latent.dtype)
        return self.log_scale.exp() * (latent + (levels - latent).detach())

    def start(self, codes: Tensor, weight: Tensor) -> Tensor:
        levels = self.codebook.values(codes, weight.dtype)
        lower, upper = self.codebook.cell(codes, weight.dtype)
        return levels + MARGIN * (weight.clamp(lower, upper) - levels)

    def codes(self, latent: Tensor) -> Tensor:
        return self.codebook.nearest(latent)

    def clamp(self, latent: Tensor) -> None:
        """Keep latent values between the outermost levels, in place."""
        latent.clamp_(self.codebook.levels[0], self.codebook.levels[-1])
