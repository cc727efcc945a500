"""A network that no library knows, as an instructor; and a classifier that judges its students.

Used from `recipe.yaml` beside it: `instil distill recipe.yaml`. The page docs/own-network.md says
where the two files of weights come from.
"""

import os
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import instil

DATA = Path(os.environ.get("INSTIL_DATA", "data"))


def instructor() -> instil.Denoiser:
    """The instructor of the recipe."""
    network = Transformer()
    network.load_state_dict(
        torch.load(DATA / "mnist-vit-flow/DiffusionViT.pth", "cpu", weights_only=True)
    )
    return instil.Denoiser.of(
        network,
        shape=(1, 28, 28),
        predicts="x",  # the clean image, not the noise and not a velocity
        time="data at 1",  # x_t = t x + (1 - t) noise
        range=(0, 1),  # black is 0, white is 1
        classes=10,
        null_label=10,  # the label that means "no label"
    )


class Transformer(nn.Module):
    """The network as its author trained it: 16 patches and 4 tokens for time and label."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, 64, 7, stride=7)
        self.pos_embed = nn.Parameter(torch.zeros(1, 16, 64))
        self.y_encoder = nn.Embedding(11, 128)
        self.transformer = nn.ModuleList(
            nn.TransformerEncoderLayer(64, 4, 256, 0.0, "gelu", batch_first=True) for _ in range(4)
        )
        self.unpatch = nn.ConvTranspose2d(64, 1, 7, stride=7)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """Map noisy images (B, 1, 28, 28), times (B,) and labels (B,) to clean images."""
        angles = t[:, None] * 10_000 ** (-torch.arange(64, device=t.device) / 63)
        time = torch.cat([angles.sin(), angles.cos()], dim=1)
        tokens = self.patch_embed(x).flatten(2).mT + self.pos_embed
        extra = [each.view(-1, 2, 64) for each in (time, self.y_encoder(label))]
        tokens = torch.cat([tokens, *extra], dim=1)
        for layer in self.transformer:
            tokens = layer(tokens)
        return self.unpatch(tokens[:, :16].mT.reshape(-1, 64, 4, 4))


class LeNet(nn.Module):
    """The judge: LeNet-5, right about 99.1 % of MNIST's test images."""

    def __init__(self) -> None:
        super().__init__()
        sizes = {"c1": (1, 6), "c3": (6, 16), "c5": (16, 120)}
        self.convnet = nn.ModuleDict({k: nn.Conv2d(*size, 5) for k, size in sizes.items()})
        self.fc = nn.ModuleDict({"f6": nn.Linear(120, 84), "f7": nn.Linear(84, 10)})
        self.load_state_dict(torch.load(DATA / "mnist-mlp-gan/lenet.pth", "cpu", weights_only=True))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, 1, 28, 28) in [-1, 1] to features (B, 84) and logits (B, 10)."""
        x = functional.interpolate((images + 1) / 2, size=32, mode="bilinear")
        x = functional.max_pool2d(self.convnet["c1"](x).relu(), 2)
        x = functional.max_pool2d(self.convnet["c3"](x).relu(), 2)
        features = self.fc["f6"](self.convnet["c5"](x).relu().flatten(1)).relu()
        return features, self.fc["f7"](features)
