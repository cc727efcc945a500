"""Generators and weight files as people have them: the settings each needs.

`python -m tests.students.forms` writes the table of `docs/refine-your-gan.md`.
"""

import argparse
from pathlib import Path

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

PAGE = Path(__file__).parents[2] / "docs" / "refine-your-gan.md"
START, END = "<!-- forms: written by tests/students/forms.py -->\n", "<!-- end of forms -->\n"


class Net(nn.Module):
    """8x8 grey images in [-1, 1] of a z of length 16."""

    def __init__(self, length=16):
        super().__init__()
        self.z_dim = 16
        self.net = nn.Sequential(nn.Linear(length, 32), nn.BatchNorm1d(32), nn.ReLU())
        self.last = nn.Linear(32, 64)

    def image(self, z):
        return self.last(self.net(z)).view(-1, 1, 8, 8).tanh()

    def forward(self, z):
        return self.image(z)


class Convolutions(nn.Module):
    """As the DCGAN tutorial: no attribute says the length of z, which has two more axes."""

    def __init__(self):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(16, 8, 4, 1, 0, bias=False),
            nn.BatchNorm2d(8),
            nn.ConvTranspose2d(8, 1, 4, 2, 1, bias=False),
            nn.Tanh(),
        )

    def forward(self, z):
        return self.main(z)


class Listed(Net):
    """As rosinality's StyleGAN2: latents in a list, noise drawn inside, a tuple out."""

    def __init__(self):
        super().__init__()
        self.style_dim = self.z_dim
        del self.z_dim

    def forward(self, styles, return_latents=False):
        x = self.image(styles[0])
        noise = x.new_empty(x.shape[0], 1, 8, 8).normal_()
        return x + 0.1 * noise, None


class Growing(Net):
    """As progressive GANs: keyword arguments say how far it has grown."""

    def forward(self, z, step=0):
        assert step == 6
        return self.image(z)


class EmptyLabels(Net):
    """As StyleGAN: called with labels of no class."""

    def __init__(self):
        super().__init__()
        self.c_dim = 0

    def forward(self, z, c, truncation_psi=1):
        assert c.shape[1] == self.c_dim
        return self.image(z)


class Numbers(Net):
    """As most conditional GANs: class numbers."""

    def __init__(self):
        super().__init__(32)
        self.num_classes, self.label = 10, nn.Embedding(10, 16)

    def forward(self, z, y):
        return self.image(torch.cat([z, self.label(y)], 1))


class Embedded(Net):
    """As BigGAN-PyTorch: the caller embeds the class numbers."""

    def __init__(self):
        super().__init__(32)
        self.dim_z, self.n_classes, self.shared = 16, 10, nn.Embedding(10, 16)

    def forward(self, z, y):
        return self.image(torch.cat([z, y], 1))


class Soft(Net):
    """As pytorch-pretrained-biggan: class vectors and a truncation."""

    def __init__(self):
        super().__init__(32)
        self.config = argparse.Namespace(z_dim=16, num_classes=10)
        self.embeddings = nn.Linear(10, 16, bias=False)

    def forward(self, z, class_label, truncation):
        assert 0 < truncation <= 1
        return truncation * self.image(torch.cat([z, self.embeddings(class_label)], 1))


class Bytes(Net):
    def forward(self, z):
        return 127.5 * self.image(z) + 127.5


class Last(Net):
    def forward(self, z):
        return {"images": self.image(z).permute(0, 2, 3, 1), "z": z}


class Flat(Net):
    def forward(self, z):
        return self.image(z).flatten(1)


class Pyramid(Net):
    """As FastGAN: a small and a large image."""

    def forward(self, z):
        return [self.image(z)[..., ::2, ::2], self.image(z)]


class Noisy(Net):
    def forward(self, z):
        return self.image(z + 0.1 * torch.randn_like(z))


class Dropping(Net):
    def forward(self, z):
        return self.image(nn.functional.dropout(z, 0.25, training=True))


class OnGpu(Net):
    def __init__(self):
        super().__init__()
        self.net.cuda()

    def forward(self, z):
        return self.image(z.to("cuda"))


class Constant(Net):
    """Adds a constant that its state_dict lacks."""

    def __init__(self):
        super().__init__()
        self.register_buffer("texture", 0.2 * torch.randn(1, 1, 8, 8), persistent=False)

    def forward(self, z):
        return self.image(z) + self.texture


# What the network is, its class, the settings it needs, and its images of z, noises and labels.
CALLS = {
    "`G(z)` with `z_dim`, `nz`, `latent_dim`, …": (Net, {}, lambda g, z: g(z)),
    "z of the shape (n, 1, 1), as DCGAN": (Convolutions, {}, lambda g, z: g(z)),
    "`G([z])` that returns `(images, None)` and draws noise, as rosinality's StyleGAN2": (
        Listed, {}, lambda g, z, noise: g.image(z) + 0.1 * noise,
    ),
    "`G(z, c)` without classes, as StyleGAN": (EmptyLabels, {}, lambda g, z: g.image(z)),
    "`G(z, class number)`": (Numbers, {}, lambda g, z, label: g(z, label)),
    "`G(z, G.shared(class number))`, as BigGAN-PyTorch": (
        Embedded, {}, lambda g, z, label: g(z, g.shared(label)),
    ),
    "`G(z, class vector, truncation)`, as pytorch-pretrained-biggan": (
        Soft, {"truncation": 0.4}, lambda g, z, label: g(z, torch.eye(10)[label], 0.4),
    ),
    "keyword arguments, as progressive GANs": (
        Growing, {"options": {"step": 6}}, lambda g, z: g.image(z),
    ),
    "uniform z": (Net, {"prior": "uniform"}, lambda g, z: g(z)),
    "images in 0…255": (Bytes, {"range": [0, 255]}, lambda g, z: g.image(z)),
    "several outputs, one of them images; channels last": (Last, {}, lambda g, z: g.image(z)),
    "several images, as FastGAN": (Pyramid, {"output": 1}, lambda g, z: g.image(z)),
    "flat images": (Flat, {"shape": [1, 8, 8]}, lambda g, z: g.image(z)),
    "noise drawn by the network": (Noisy, {}, lambda g, z, noise: g.image(z + 0.1 * noise)),
    "dropout that is never off, as pix2pix": (
        Dropping, {}, lambda g, z, kept: g.image(z * (kept >= 0.25) / 0.75),
    ),
    "a network that moves itself to a GPU": (OnGpu, {}, lambda g, z: g.image(z)),
    "a buffer that its `state_dict` lacks": (Constant, {}, lambda g, z: g(z)),
}  # fmt: skip


def under(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


def averaged(net):
    return AveragedModel(net).state_dict()


def inner(net):
    return {name.replace("net.", "net._orig_mod."): v for name, v in net.state_dict().items()}


def lightning(net):
    both = under("generator.", net.state_dict()) | under("discriminator.", {"a": torch.ones(3)})
    return {"state_dict": both, "epoch": 3, "hyper_parameters": {"lr": 1e-3}}


def counted(net):
    return {n: v for n, v in net.state_dict().items() if "num_batches" not in n}


def settings(net):
    return {"g": net.state_dict(), "g_ema": net.state_dict(), "args": argparse.Namespace(size=8)}


def halves(net):
    return {n: v.half() if v.is_floating_point() else v for n, v in net.state_dict().items()}


# What a file holds, its name, the object saved of a network, and the settings it needs.
FILES = {
    "`module.…` of DataParallel": ("a.pth", lambda net: under("module.", net.state_dict()), {}),
    "`_orig_mod.…` of torch.compile, around the whole or a part": ("a.bin", inner, {}),
    "AveragedModel": ("a.pt", averaged, {}),
    "`generator.…` in a Lightning checkpoint": ("a.ckpt", lightning, {}),
    "several generators; settings beside them, as rosinality's": (
        "a.pt", settings, {"key": "g_ema"},
    ),
    "nested mappings": (
        "a.pth.tar", lambda net: {"models": {"G": net.state_dict(), "E": averaged(net)}},
        {"key": "models.G"},
    ),
    "further tensors": (
        "a.pt", lambda net: net.state_dict() | {"step.count": torch.ones(1)},
        {"ignore": "*.count"},
    ),
    "a whole pickled module": ("a.pth", lambda net: net, {}),
    "no `num_batches_tracked`, no suffix": ("a", counted, {}),
    "float16": ("a.pt", halves, {}),
}  # fmt: skip


def table():
    """The rows of the documented table."""

    def row(words, given):
        told = " ".join(
            f"{key}={value}".replace("'", "").replace(", ", ",") for key, value in given.items()
        )
        return f"| {words} | {f'`{told}`' if told else 'nothing'} |\n"

    head = "| {} | setting it needs |\n| --- | --- |\n"
    files = "".join(row(words, given) for words, (_, _, given) in FILES.items())
    calls = "".join(row(words, given) for words, (_, given, _) in CALLS.items())
    return f"{head.format('weights')}{files}\n{head.format('network')}{calls}"


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(START)
    PAGE.write_text(f"{before}{START}{table()}{END}{rest.split(END)[1]}", encoding="utf-8")
