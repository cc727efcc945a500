"""Feature extractors: Inception from torch-fidelity, and small offline ones trained here.

A distance is called FID only with Inception. With an offline extractor it is called
`FD-<name>-<hash of its weights>`, since it can be compared with nothing else.
"""

import hashlib
import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import torch
import torch_fidelity
from pydantic import Field
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from eval.quality.extractor import Extractor as Extractor
from eval.quality.inception import ALIASES, inception, registered
from instil.base import checkpoint, data
from instil.base.config import Config, own, validate
from instil.base.draws import Draws
from instil.base.errors import InstilError
from instil.base.untrusted import parse_json

EMBEDDED = Path(str(files("eval") / "extractors"))
Side = Annotated[int, Field(ge=1, le=4096)]


class SmallCNN(nn.Module):
    """A classifier of small images whose penultimate layer is the feature vector.

    Args:
        shape: (C, H, W) of the images.
        classes: Number of classes.
        features: Length of the feature vector.
    """

    def __init__(self, shape: tuple[int, ...], classes: int, features: int = 64) -> None:
        super().__init__()
        channels, side, width = shape[0], max(shape[1:]), 32
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
        while side > 4:
            layers += [nn.Conv2d(width, 2 * width, 3, stride=2, padding=1), nn.ReLU()]
            side, width = (side + 1) // 2, 2 * width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(side), nn.Flatten())
        self.features = nn.Sequential(nn.Linear(width * side * side, features), nn.ReLU())
        self.head = nn.Linear(features, classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Map images (B, C, H, W) in [-1, 1] to features (B, features) and logits (B, classes)."""
        features = self.features(self.body(images))
        return features, self.head(features)


class Made(Config):
    """What a file says of the `SmallCNN` in it."""

    shape: tuple[Side, Side, Side]
    classes: Annotated[int, Field(ge=1, le=100_000)]


def load(
    source: str, weights: Path | None = None, device: str = "cpu", protocol: str = "tf1-compat"
) -> Extractor:
    """Load an extractor.

    Args:
        source: `inception`, `dinov2`, `clip` or another name that torch-fidelity knows, an
            embedded name, a `.safetensors` file made by `python -m eval extractor`, or
            `package.module:Class`: code of the user's own, called without arguments, that makes an
            `Extractor` or a network as in `of_network`.
        weights: Weight file of a network of torch-fidelity, to use without a download.
        device: Where it runs.
        protocol: Tool whose resizing `inception` follows, a key of `inception.PROTOCOLS`.

    Raises:
        InstilError: Nothing there, the file is no extractor, or the download failed.
    """
    if source == "inception":
        return inception(protocol, weights, device)
    if source in ALIASES or source in torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY:
        return registered(source, weights, device)
    if weights is not None:
        raise InstilError(f"weights {weights}: extractor {source} takes no weight file")
    if own.is_name(source):
        made = own.load(source)()
        return made if isinstance(made, Extractor) else of_network(made, device)
    path = Path(source) if source.endswith(".safetensors") else EMBEDDED / f"{source}.safetensors"
    if not path.exists():
        names = ", ".join(sorted(p.stem for p in EMBEDDED.glob("*.safetensors")))
        raise InstilError(
            f"extractor {source}: expected inception, dinov2, clip, an embedded one ({names}), a "
            ".safetensors file made by `python -m eval extractor`, or package.module:Class"
        )
    about, network = _read(path)
    network, shape = network.to(device), tuple(about["shape"])

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        if tuple(pixels.shape[1:]) != shape:
            raise InstilError(
                f"extractor {source}: made for images of the shape {shape}, "
                f"got {tuple(pixels.shape[1:])}"
            )
        features, logits = network(data.to_float(pixels.to(device)))
        return features.cpu(), logits.cpu()

    sha = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return Extractor(f"FD-{path.stem}-{sha}", True, forward)


def of_network(network: nn.Module, device: str = "cpu") -> Extractor:
    """Make an extractor of a classifier of the user's own.

    Args:
        network: Maps images (B, C, H, W) in [-1, 1] to features (B, d) and logits (B, K); set to
            eval mode.
        device: Where it runs.

    Returns:
        The extractor; its distance is called `FD-<class>-<hash of the weights>`.

    Raises:
        InstilError: It is no module, or, when it is called, returns something else.
    """
    kind = type(network).__name__
    if not isinstance(network, nn.Module):
        raise InstilError(f"extractor: expected an Extractor or a torch module, got a {kind}")
    network = network.eval().to(device)

    def forward(pixels: Tensor) -> tuple[Tensor, Tensor]:
        found = network(data.to_float(pixels.to(device)))
        pair = isinstance(found, tuple) and [type(part) for part in found] == [Tensor, Tensor]
        if not pair or any(part.dim() != 2 or len(part) != len(pixels) for part in found):
            raise InstilError(
                f"extractor {kind}: expected it to return features (B, d) and logits (B, K)"
            )
        features, logits = found
        return features.float().cpu(), logits.float().cpu()

    return Extractor(f"FD-{kind}-{checkpoint.digest(network)}", True, forward)


def _read(path: Path) -> tuple[dict[str, Any], SmallCNN]:
    """An extractor's description, as `train` wrote it, and its network."""
    try:
        with safe_open(path, "pt") as file:
            about = parse_json((file.metadata() or {})["extractor"], f"{path}: its description")
        made = validate(Made, {name: about[name] for name in Made.model_fields})
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise InstilError(f"{path}: not an extractor ({error})") from None
    with torch.device("meta"):  # no memory yet: the file may not hold what it says
        network = SmallCNN(made.shape, made.classes).eval().requires_grad_(False)
    tensors = checkpoint.read_tensors(path)
    checkpoint.compare(str(path), tensors, network.state_dict())
    network.load_state_dict(tensors, assign=True)
    return about, network


def train(images: data.Images, held_out: data.Images, out: Path, seed: int = 0) -> dict[str, Any]:
    """Train an offline extractor as a classifier and write it as one safetensors file.

    Args:
        images: Training images with labels; shifted by up to one pixel as they are drawn.
        held_out: Images for the accuracy that is reported.
        out: The file to write, ending in .safetensors.
        seed: Fixes initial weights and every batch.

    Returns:
        What is also in the file's metadata: shape, classes, data, seed, accuracy.

    Raises:
        InstilError: The images have no labels.
    """
    if images.labels is None or held_out.labels is None:
        raise InstilError(f"{images.source}: an extractor is a classifier and needs classes")
    torch.manual_seed(seed)
    network = SmallCNN(images.shape, len(images.classes))
    steps, batch = 1500, 64
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for step in range(steps):
        draws = Draws.of_range(seed, step, 0, batch)
        rows = draws.integers("row", len(images))
        shift = draws.integers("shift", 3, (2,))[0] - 1
        shifted = torch.roll(data.to_float(images.pixels[rows]), tuple(shift.tolist()), (2, 3))
        loss = nn.functional.cross_entropy(network(shifted)[1], images.labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    network.eval()
    with torch.no_grad():
        guesses = network(data.to_float(held_out.pixels))[1].argmax(1)
    about = {
        "shape": list(images.shape),
        "classes": len(images.classes),
        "data": f"{images.source} ({len(images)} images, {images.digest()})",
        "seed": seed,
        "held_out": held_out.source,
        "accuracy": round((guesses == held_out.labels).double().mean().item(), 4),
    }
    checkpoint.write_tensors(out, network.state_dict(), {"extractor": json.dumps(about)})
    return about
