"""A generator of one's own, made better by a diffusion model, without data."""

import torch
from torch import Tensor, nn

import instil


class Generator(nn.Module):
    """z and a label in, an 8x8 digit in [-1, 1] out: the code that somebody's weights belong to."""

    z_dim, num_classes = 16, 10

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(10, 32)
        self.layers = nn.Sequential(
            nn.Linear(16 + 32, 256), nn.SiLU(), nn.Linear(256, 256), nn.SiLU(), nn.Linear(256, 64)
        )

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        """Map (B, 16) and (B,) to (B, 1, 8, 8)."""
        x = self.layers(torch.cat([z, self.label(label)], dim=1))
        return x.tanh().view(-1, 1, 8, 8)


def train_it(steps: int = 600) -> Generator:
    """Train it as somebody may have: by the energy distance of pixels, which leaves it blurred."""
    images = instil.load_images("digits")
    pixels = images.pixels.flatten(1) / 127.5 - 1
    torch.manual_seed(0)
    generator = Generator()
    optimizer = torch.optim.Adam(generator.parameters(), 2e-3)
    for _ in range(steps):
        digit = int(torch.randint(10, ()))
        real = pixels[images.labels == digit]
        fake, other = generator(torch.randn(128, 16), torch.full((128,), digit)).flatten(1).chunk(2)
        loss = 2 * torch.cdist(fake, real).mean() - torch.cdist(fake, other).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return generator


if __name__ == "__main__":
    torch.save(train_it().state_dict(), "generator.pt")
    gan = {"kind": "gan", "weights": "generator.pt", "factory": "own_gan:Generator"}
    run = instil.distil("digits-gan", student=gan, steps=300, name="own-gan")
    report = run.finish()
    print(f"{report['start']['fd']['mean']:.2f} -> {report['student']['fd']['mean']:.2f}")
