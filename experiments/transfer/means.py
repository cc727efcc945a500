"""Means of transfer compared: 000.9 flow against diffusion, 000.11 ways to find the embedding."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from eval.answer import Rows
from eval.transfer.compare import embedding_gap
from experiments.experiment import Experiment
from experiments.families import FAMILIES, batch_of
from experiments.tasks import Exact, P, R, Task, source_head, waves
from experiments.transfer.laws import jacobian_angles
from instil.base.draws import Draws
from instil.base.optimizer import Adam
from instructors.denoiser import Condition, Denoiser
from instructors.mlp import perceptron
from instructors.sampler import heun

Found = tuple[Rows, dict[str, Any]]
HEUN = 18


def kept_by_backward(forward: Callable[[], Any]) -> int:
    """Bytes that one update keeps for its backward pass, each tensor once."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(sizes.values())


def measured(name: str, features: int, count: int, steps: int) -> dict[str, Any]:
    """CPU seconds per fit and per 1,000 samples, bytes, parameters, evaluations and excess KL."""
    family, task = FAMILIES[name], Task(0.0, waves(features), features)
    x, known = task.sample(count, seed=1)
    began = time.process_time()
    model = family.fit(family.blank(features, P, 0), x, known, steps, 0, None)
    seconds = time.process_time() - began
    rows, fresh = slice(batch_of(count)), family.blank(features, P, 0)
    unit = Draws.of_range(5, 0, 0, 1000).normal("unit", (features,))
    given = task.sample(1000, seed=6)[1]
    if isinstance(model, Denoiser):
        update = partial(fresh, x[rows], torch.ones(len(x[rows])), known.rows(rows))
        sample, nfe = partial(heun, model, unit, HEUN, given), 2 * HEUN - 1
    else:
        update, nfe = partial(fresh.log_prob, x[rows], known.rows(rows)), 1
        sample = partial(model, (unit,), given)
    memory = kept_by_backward(update)
    began = time.process_time()
    with torch.no_grad():
        sample()
    return {
        "seconds": seconds,
        "sampling": time.process_time() - began,
        "memory": memory,
        "nfe": nfe,
        "parameters": sum(p.numel() for p in model.parameters()),
        "excess": family.excess(model, task),
    }


def cost(scale: float) -> Found:
    """000.9."""
    rows, facts = [], {}
    count, steps = max(500, round(4000 * scale)), max(150, round(600 * scale))
    lengths = (2, 16, 64) if scale == 1 else (2, 16)
    for features in lengths:
        for name in FAMILIES:
            each = measured(name, features, count, steps)
            rows.append(
                {
                    "d": str(features),
                    "family": name,
                    "seconds per fit": f"{each['seconds']:.1f}",
                    "NFE": str(each["nfe"]),
                    "ms per 1000 samples": f"{1000 * each['sampling']:.0f}",
                    "parameters": f"{each['parameters']:,}",
                    "kept for backward, KB": f"{each['memory'] / 1024:.0f}",
                    "excess KL": str(each["excess"]),
                }
            )
            facts[f"{name} {features}"] = each | {"excess": each["excess"].value}
    one, other = (facts[f"{name} {lengths[-1]}"] for name in ("flow", "diffusion"))
    dearer = one["memory"] > other["memory"]
    return rows, facts | {"holds": dearer and one["nfe"] < other["nfe"]}


def train(module: nn.Module, steps: int, count: int, loss: Callable[[Tensor], Tensor]) -> None:
    """So many updates of 256 rows of `count`; `loss` is of their numbers."""
    adam = Adam(lr=3e-3, betas=(0.9, 0.99), schedule="cosine")
    optimizer = adam.build(module)
    for step in range(steps):
        loss(Draws.of_range(3, step, 0, 256).integers("row", count)).backward()
        adam.update(optimizer, step, steps)
    module.eval().requires_grad_(False)


def regression(x: Tensor, z: Tensor, steps: int) -> nn.Sequential:
    """E[x | z] through an embedding of length R, by squared error."""
    model = nn.Sequential(perceptron(P, 64, R), perceptron(R, 64, x.shape[1]))
    train(model, steps, len(x), lambda rows: (model(z[rows]) - x[rows]).square().mean())
    return model


def contrastive(x: Tensor, z: Tensor, steps: int) -> nn.Module:
    """The embedding that tells a pair (x, z) from mixed ones (InfoNCE, arXiv 1807.03748)."""
    embed, critic = perceptron(P, 64, R), perceptron(R, 64, 16)
    pair = nn.ModuleList([embed, critic, perceptron(x.shape[1], 64, 16)])

    def loss(rows: Tensor) -> Tensor:
        scores = critic(embed(z[rows])) @ pair[2](x[rows]).mT
        return nn.functional.cross_entropy(scores, torch.arange(len(rows)))

    train(pair, steps, len(x), loss)
    return embed


def autoencoder(z: Tensor, steps: int) -> nn.Module:
    """The embedding from which z is restored best; it never sees x."""
    embed, decode = perceptron(P, 64, R), perceptron(R, 64, P)
    pair = nn.Sequential(embed, decode)
    train(pair, steps, len(z), lambda rows: (pair(z[rows]) - z[rows]).square().mean())
    return embed


def leading_directions(model: nn.Module, z: Tensor) -> nn.Module:
    """The projection on the R directions of z that a regression depends on most."""
    leaf = z[:2000].clone().requires_grad_()
    rows = [torch.autograd.grad(each, leaf, retain_graph=True)[0] for each in model(leaf).sum(0)]
    axes = torch.linalg.svd(torch.cat(rows), full_matrices=False)[2][:R]
    linear = nn.Linear(P, R, bias=False)
    linear.weight.data = axes
    return linear.requires_grad_(False)


def finding_the_embedding(scale: float) -> Found:
    """000.11."""
    count, steps = max(2000, round(8000 * scale)), max(400, round(1000 * scale))
    x, known = Task(0.0, source_head).sample(count, seed=1)
    z = known["context"]
    torch.manual_seed(0)
    supervised = regression(x, z, steps)
    found: dict[str, Any] = {
        "the true one": lambda z: (1.5 * Task().seen(z)).tanh(),
        "supervised: regression": supervised[0],
        "supervised: its Jacobian": leading_directions(supervised, z),
        "contrastive": contrastive(x, z, steps),
        "autoencoder of z": autoencoder(z, steps),
        "random": perceptron(P, 64, R).requires_grad_(False),
    }
    kind, target = FAMILIES["diffusion"], Task()
    many, given = target.sample(count, seed=4)
    held_out, asked = target.sample(1000, seed=5)

    def nats(embed: Any) -> Tensor:
        def seen(condition: Condition) -> Condition:
            h = embed(condition["context"])
            return Condition(context=(h - center) / spread)

        first = embed(given["context"])
        center, spread = first.mean(0), first.std(0)
        model = kind.fit(kind.blank(2, R, 0), many, seen(given), steps, 0, None)
        return kind.nats(model, held_out, seen(asked))

    seeing = kind.nats(Exact(target), held_out, asked)
    other = regression(many, given["context"], steps)
    rows, facts = [], {}
    for name, embed in found.items():
        lost = embedding_gap(nats(embed), seeing)
        angles = "" if name == "the true one" else _angles(embed, other, z)
        rows.append({"embedding": name, "gap on the target": str(lost), "angles": angles})
        facts[name] = {"gap": lost.value, "stderr": lost.stderr}
    floor = facts["the true one"]["gap"]  # what estimating the head alone costs
    over = {name: each["gap"] - floor for name, each in facts.items()}
    useful = max(over[name] for name in list(found)[1:4])
    useless = min(over[name] for name in list(found)[4:])
    return rows, facts | {"over_the_true": over, "holds": useful < 0.6 and useless > 1}


def _angles(embed: Any, other: nn.Module, z: Tensor) -> str:
    """Principal angles of what an embedding and a regression of the target depend on."""
    found = jacobian_angles(embed, other, z[:1000], R)
    return " ".join(f"{angle:.2f}" for angle in found.tolist())


EXPERIMENTS = {
    "000.9": Experiment(
        "an update of a flow costs more than one of a diffusion, a sample less",
        cost,
        3.0,
    ),
    "000.11": Experiment(
        "an embedding must be found through x: by regression or by contrast, not by autoencoding",
        finding_the_embedding,
        2.0,
    ),
}
