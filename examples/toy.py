"""Four Gaussians become a one-step generator, in seconds: the method without a trained network.

The instructor is exact, a mixture of Gaussians; student and fake score are small MLPs. W2 is the
Wasserstein distance of 1,000 samples; two samples of the mixture itself are 0.65 apart.
"""

import torch
from accelerate import Accelerator

from distill.recipe import FakeScore, Method, Train
from distill.trainer import State, train
from eval.distances import wasserstein2
from instil import Draws, LogUniform, OneStep
from instil.base.optimizer import Adam
from instructors.adapters.karras import Karras
from instructors.analytic import mixture
from instructors.mlp import MLP

torch.manual_seed(0)
means = 3 * torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
instructor = mixture(torch.ones(4), means, 0.04 * torch.eye(2).expand(4, 2, 2))
adam = Adam(lr=2e-3, schedule="linear")
method = Method(
    levels=LogUniform(sigma_min=0.05, sigma_max=10.0),
    optimizer=adam,
    fake=FakeScore(updates=2, optimizer=adam),
    train=Train(steps=1200, batch=256),
)
student, fake = (Karras(MLP(2), (2,), sigma_data=2.0) for _ in range(2))
state = State.fresh(OneStep(student, sigma=10.0), fake, method)
draws = Draws.of_range(seed=1, step=0, start=0, count=1000)
truth = instructor.sample(draws.normal("truth", (2,)), draws.uniform("component"))
print(f"W2 before {wasserstein2(state.student(state.student.prior(draws)), truth):.2f}")
for _ in train(state, instructor, method, Accelerator(cpu=True)):
    pass
print(f"W2 after {wasserstein2(state.student(state.student.prior(draws)), truth):.2f}")
