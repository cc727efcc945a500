"""The files of a model's weights: which of the formats beside each other is read, and its hash."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from instil.base.errors import InstilError

STEMS = ("diffusion_pytorch_model", "model", "pytorch_model")  # of diffusers and transformers
SHARD = "-?????-of-?????"


@dataclass(frozen=True)
class Format:
    """A way in which diffusers and transformers write weights.

    Attributes:
        variant: The word in the names of its files, such as fp16; empty for none.
        suffix: `safetensors` or `bin`.
    """

    variant: str
    suffix: str

    @property
    def patterns(self) -> list[str]:
        """The names of its files, shards included."""
        dot = f".{self.variant}" if self.variant else ""
        ends = (dot, f"{dot}{SHARD}", *([f"{SHARD}{dot}"] if dot else []))
        return [f"{stem}{end}.{self.suffix}" for stem in STEMS for end in ends]

    @property
    def index_patterns(self) -> list[str]:
        """The names of the files that list the shards."""
        dot = f".{self.variant}" if self.variant else ""
        return [f"{stem}.{self.suffix}.index{dot}.json" for stem in STEMS]

    def files(self, folder: Path) -> list[Path]:
        """Its files in a folder, in the order of their names."""
        return sorted(path for pattern in self.patterns for path in folder.glob(pattern))


# The first that a folder holds is read.
FORMATS = tuple(
    Format(variant, suffix) for suffix in ("safetensors", "bin") for variant in ("", "fp16", "bf16")
)


def formats(variant: str | None = None) -> tuple[Format, ...]:
    """The formats in the order in which they are looked for; only one variant's if it is named."""
    if variant is None:
        return FORMATS
    return Format(variant, "safetensors"), Format(variant, "bin")


def format_of(folder: Path, variant: str | None = None) -> Format:
    """The format that is read from a folder.

    Raises:
        InstilError: There are no weights in it, or none of this variant.
    """
    for each in formats(variant):
        if each.files(folder):
            return each
    wanted = f"weights of the variant {variant}" if variant else "weights"
    names = sorted(path.name for path in folder.glob("*") if path.suffix != ".json")
    raise InstilError(
        f"weights cannot be loaded: {folder} holds no {wanted} ({', '.join(names[:4]) or 'none'} "
        f"there); expected {FORMATS[0].patterns[0]}, shards of it, a variant of it, or a .bin"
    )


def weights_hash(folder: Path, variant: str | None = None) -> str:
    """Twelve hexadecimal digits of the SHA-256 of the weights that are read from a folder.

    Raises:
        InstilError: As `format_of`.
    """
    sha = hashlib.sha256()
    for path in format_of(folder, variant).files(folder):
        with path.open("rb") as file:
            while block := file.read(1 << 24):
                sha.update(block)
    return sha.hexdigest()[:12]
