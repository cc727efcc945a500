"""Coupling flows: students that know their own density.

A coupling layer changes half of the coordinates by an increasing function of each, whose parameters
a network computes from the other half and the condition. Its inverse and the determinant of its
Jacobian are then exact and cheap, and so are samples and log-densities of a stack of layers.

Source:
    Dinh et al. 2014, arXiv 1410.8516 (NICE); Dinh et al. 2016, arXiv 1605.08803 (RealNVP); Durkan
    et al. 2019, arXiv 1906.04032 (spline). The layers are zuko's.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from instil.base.draws import Draws
from instil.base.early_stopping import EarlyStopping
from instil.base.errors import InstilError
from instil.base.optimizer import Adam
from instructors.denoiser import UNCONDITIONAL, Condition
from instructors.mlp import perceptron
from students.pretrained import Pretrained
from students.student import Latent, Student, one_hot

Kind = Literal["additive", "affine", "spline"]


class CouplingFlow(Student, Pretrained):
    """x = center + exp(log_spread) T(z, condition), z ~ N(0, I), T a stack of coupling layers.

    Args:
        shape: One sample without the batch axis; flattened inside.
        kind: The map of one coordinate in a layer: `additive` shifts it (NICE), `affine` scales
            and shifts it (RealNVP), `spline` is a monotone rational-quadratic spline on [-5, 5]
            and the identity outside.
        classes: Number of class labels; 0 for none.
        context: Length of the vector `context` in the condition; 0 for none.
        embedding: Widths of a network it passes first, the last being the length of what the
            layers see: an embedding that two tasks may share. Empty takes it as it is.
        transforms: Coupling layers; neighbours change complementary halves.
        hidden: Widths of the hidden layers of each network; none makes it linear.
        bins: Number of bins of a spline.
        spread: Standard deviation the student is started at; `fit` takes the data's.

    Raises:
        InstilError: The kind is unknown.
    """

    nfe = 1

    def __init__(
        self,
        shape: tuple[int, ...],
        kind: Kind = "spline",
        classes: int = 0,
        context: int = 0,
        embedding: tuple[int, ...] = (),
        transforms: int = 4,
        hidden: tuple[int, ...] = (64, 64),
        bins: int = 8,
        spread: float = 1.0,
    ) -> None:
        from zuko.flows import NICE
        from zuko.transforms import (
            AdditiveTransform,
            MonotonicAffineTransform,
            MonotonicRQSTransform,
        )

        super().__init__()
        self.shape, self.classes, self.context = tuple(shape), classes, context
        size = torch.Size(self.shape).numel()
        self.embed = perceptron(context, *embedding)
        kinds: dict[str, tuple[Any, list[tuple[int, ...]]]] = {
            "additive": (AdditiveTransform, [()]),
            "affine": (MonotonicAffineTransform, [(), ()]),
            "spline": (MonotonicRQSTransform, [(bins,), (bins,), (bins - 1,)]),
        }
        if kind not in kinds:
            raise InstilError(f"kind: {kind!r} is not one of {', '.join(kinds)}")
        univariate, shapes = kinds[kind]
        self.flow = NICE(
            size,
            classes + (embedding[-1] if embedding else context),
            transforms,
            univariate=univariate,
            shapes=shapes,
            hidden_features=hidden,
            activation=nn.SiLU,
        )
        self.center = nn.Parameter(torch.zeros(size))
        self.log_spread = nn.Parameter(torch.full((size,), spread).log())

    def prior(self, draws: Draws) -> Latent:
        return (draws.normal("latent", self.shape, self.center.dtype),)

    def forward(self, latent: Latent, condition: Condition = UNCONDITIONAL) -> Tensor:
        (unit,) = latent
        flat = unit.flatten(1)
        x = self.flow(self._given(condition, flat)).transform.inv(flat)
        return (self.center + self.log_spread.exp() * x).view_as(unit)

    def log_prob(self, x: Tensor, condition: Condition = UNCONDITIONAL) -> Tensor:
        """(B,) log-density at x (B, *shape), in nats; exact.

        Raises:
            ValueError: The condition lacks a label or a context, or holds an unexpected one.
        """
        flat = (x.flatten(1) - self.center) / self.log_spread.exp()
        return self.flow(self._given(condition, flat)).log_prob(flat) - self.log_spread.sum()

    def _given(self, condition: Condition, like: Tensor) -> Tensor | None:
        """The condition as one vector per sample."""
        label, context = one_hot(condition, self.classes, like), condition.get("context")
        wanted = (len(like), self.context) if self.context else None
        if (None if context is None else tuple(context.shape)) != wanted:
            got = "none" if context is None else f"shape {tuple(context.shape)}"
            raise ValueError(f"context: expected {wanted or 'none'}, got {got}")
        given = (
            label if context is None else torch.cat([label, self.embed(context.to(like))], dim=1)
        )
        return given if given.shape[1] else None


def fit(
    flow: CouplingFlow,
    samples: Tensor,
    condition: Condition = UNCONDITIONAL,
    steps: int = 1000,
    batch: int = 256,
    optimizer: Adam = Adam(lr=5e-3, betas=(0.9, 0.999), schedule="cosine"),  # noqa: B008, frozen
    sigma: float = 0.0,
    seed: int = 0,
    stopping: EarlyStopping | None = None,
    anchor: Callable[[], Tensor] | None = None,
) -> float:
    """Fit a flow to samples by maximum likelihood, from their mean and standard deviation on.

    Args:
        flow: Trained in place.
        samples: (N, *shape), data units.
        condition: The condition of each sample.
        steps: Updates.
        batch: Samples per update, drawn with replacement; all of them from N on.
        optimizer: And its schedule.
        sigma: Fit the law of samples + sigma * noise instead. Images need some: coordinates that
            never change, or take few values, have no density.
        seed: Seed of rows and noise.
        stopping: Which samples decide when to stop; None trains on all to the end.
        anchor: A penalty () on the weights, added to the mean loss.

    Returns:
        Mean negative log-likelihood of all the samples, once noised, in nats per sample.

    Raises:
        InstilError: Samples of another shape, not finite, fewer than two, or constant in a
            coordinate.
        FloatingPointError: The likelihood is no longer finite.
    """
    _check(flow, samples, sigma)
    device = samples.device
    everything = torch.arange(len(samples), device=device)
    seen, deciding = stopping.split(len(samples), seed) if stopping else (everything, everything)
    with torch.no_grad():
        flat = samples[seen].flatten(1)
        flow.center.copy_(flat.mean(0))
        flow.log_spread.copy_((flat.var(0, unbiased=False) + sigma**2).log() / 2)
    adam = optimizer.build(flow)

    def loss(rows: Tensor, draws: Draws) -> Tensor:
        x = samples[rows]
        if sigma:
            x = x + sigma * draws.normal("noise", flow.shape, x.dtype)
        return -flow.log_prob(x, condition.rows(rows)).mean()

    @torch.no_grad()
    def final(rows: Tensor) -> float:
        return loss(rows, Draws.of_range(seed, steps, 0, len(rows), device)).item()

    def updates() -> Iterator[None]:
        count = len(seen)
        for step in range(steps):
            draws = Draws.of_range(seed, step, 0, min(batch, count), device)
            nats = loss(seen[draws.integers("row", count)] if batch < count else seen, draws)
            (nats if anchor is None else nats + anchor()).backward()
            optimizer.update(adam, step, steps)
            yield

    if stopping:
        stopping.run(flow, updates(), lambda: final(deciding))
    else:
        for _ in updates():
            pass
    nats = final(everything)
    if not math.isfinite(nats):
        raise FloatingPointError(f"the flow's likelihood is {nats}; try a lower learning rate")
    return nats


def _check(flow: CouplingFlow, samples: Tensor, sigma: float) -> None:
    if samples.shape[1:] != flow.shape or len(samples) < 2:
        raise InstilError(
            f"samples of the shape {tuple(samples.shape)}: expected (N, "
            f"{', '.join(map(str, flow.shape))}), N at least 2"
        )
    if not samples.isfinite().all():
        raise InstilError("samples: some values are not finite; remove those rows")
    constant = (samples.flatten(1).amax(0) == samples.flatten(1).amin(0)).sum().item()
    if constant and not sigma:
        raise InstilError(
            f"samples: {constant} coordinate(s) never change, so they have no density; "
            "drop them or give sigma"
        )
