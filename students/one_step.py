"""A denoiser read once at a fixed noise level."""

from torch import Tensor

from instil.base.draws import Draws
from instil.base.errors import InstilError
from instructors.denoiser import UNCONDITIONAL, Condition, Denoiser
from students.student import Latent, Student


class OneStep(Student):
    """x = D(z scaled to level sigma, sigma), z ~ N(0, I).

    Args:
        denoiser: Trained from here on; usually a copy of the instructor's.
        sigma: The level it is read at. Diff-Instruct starts at 1.0, SiD at 2.5, DMD2 at 80.

    Raises:
        InstilError: The denoiser was not trained at that level.

    Source:
        Luo et al. 2023, arXiv 2305.18455 (Diff-Instruct).
    """

    nfe = 1

    def __init__(self, denoiser: Denoiser, sigma: float) -> None:
        super().__init__()
        if not denoiser.sigma_min <= sigma <= denoiser.sigma_max:
            raise InstilError(
                f"student.sigma: {sigma} lies outside the instructor's range "
                f"[{denoiser.sigma_min:g}, {denoiser.sigma_max:g}]"
            )
        self.denoiser = denoiser
        self.sigma = denoiser.nearest(sigma)
        self.shape, self.classes = denoiser.shape, denoiser.classes

    def prior(self, draws: Draws) -> Latent:
        return (draws.normal("latent", self.shape, next(self.parameters()).dtype),)

    def forward(self, latent: Latent, condition: Condition = UNCONDITIONAL) -> Tensor:
        (unit,) = latent
        sigma = unit.new_full((len(unit),), self.sigma)
        return self.denoiser(self.denoiser.start(unit, self.sigma), sigma, condition)
