"""The arguments of networks that EDM's and EDM2's checkpoints record, typed and bounded.

Defaults are those of their classes, which record only what was given. The bounds keep a file from
asking for a network that no file of its size can fill.
"""

from typing import Annotated, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat

from instil.base.config import Config

Count = Annotated[int, Field(ge=1, le=4096)]
Few = Annotated[int, Field(ge=1, le=32)]
Labels = Annotated[int, Field(ge=0, le=100_000)]
Probability = Annotated[float, Field(ge=0, lt=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Sides = tuple[Annotated[int, Field(ge=0)], ...]
Multipliers = Annotated[tuple[Few, ...], Field(min_length=1, max_length=8)]


class NetworkArguments(Config):
    """The arguments of every network.

    Attributes:
        img_resolution: Height and width, pixels.
        img_channels: Channels of a sample.
        label_dim: Number of class labels.
        model_channels: Width that the multipliers multiply.
        channel_mult: Width of each resolution, finest first.
        num_blocks: Residual blocks of each resolution.
        attn_resolutions: Heights at which the blocks have self-attention.
        dropout: Probability, in training mode.
        use_fp16: Whether NVIDIA's code computes in half precision; not used here.
    """

    img_resolution: Count
    img_channels: Count
    label_dim: Labels = 0
    model_channels: Count
    channel_mult: Multipliers
    num_blocks: Few
    attn_resolutions: Sides
    dropout: Probability
    use_fp16: bool = False


class EDMNetworkArguments(NetworkArguments):
    """The arguments of both networks of EDM.

    Attributes:
        augment_dim: Length of the augmentation vector.
        channel_mult_emb: Length of the conditioning vector.
        label_dropout: How often the label was left out in training.
    """

    augment_dim: Annotated[int, Field(ge=0, le=4096)] = 0
    model_channels: Count = 128
    channel_mult: Multipliers = (1, 2, 2, 2)
    channel_mult_emb: Few = 4
    num_blocks: Few = 4
    attn_resolutions: Sides = (16,)
    dropout: Probability = 0.1
    label_dropout: Probability = 0.0


class SongArguments(EDMNetworkArguments):
    """DDPM++ and NCSN++; the options are those of `instructors.nvidia.song_unet.SongUNet`."""

    embedding_type: Literal["positional", "fourier"] = "positional"
    channel_mult_noise: Few = 1
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: Annotated[tuple[float, ...], Field(min_length=2, max_length=16)] = (1, 1)


class AdmArguments(EDMNetworkArguments):
    """ADM, with its own defaults."""

    model_channels: Count = 192
    channel_mult: Multipliers = (1, 2, 3, 4)
    num_blocks: Few = 3
    attn_resolutions: Sides = (32, 16, 8)


class EDM2Arguments(NetworkArguments):
    """The network of EDM2; the options are those of `instructors.nvidia.edm2_unet.EDM2UNet`.

    Attributes:
        logvar_channels: Width of a head that weighed the training loss; not used here.
    """

    model_channels: Count = 192
    channel_mult: Multipliers = (1, 2, 3, 4)
    channel_mult_noise: Few | None = None
    channel_mult_emb: Few | None = None
    num_blocks: Few = 3
    attn_resolutions: Sides = (16, 8)
    channels_per_head: Count = 64
    label_balance: Share = 0.5
    concat_balance: Share = 0.5
    dropout: Probability = 0.0
    res_balance: Share = 0.3
    attn_balance: Share = 0.3
    clip_act: PositiveFloat = 256.0
    use_fp16: bool = True
    logvar_channels: Count = 128


class EDMArguments(Config):
    """Arguments of `Karras`; the range is their sampler's, since the files name none."""

    sigma_min: NonNegativeFloat = 0.0
    sigma_max: PositiveFloat = 80.0
    sigma_data: PositiveFloat = 0.5


class VPArguments(Config):
    """`instructors.adapters.continuous.ContinuousVP`."""

    beta_d: PositiveFloat = 19.9
    beta_min: PositiveFloat = 0.1
    M: Annotated[int, Field(ge=2, le=100_000)] = 1000
    epsilon_t: Annotated[float, Field(gt=0, lt=1)] = 1e-5


class VEArguments(Config):
    """`instructors.adapters.continuous.ContinuousVE`."""

    sigma_min: PositiveFloat = 0.02
    sigma_max: PositiveFloat = 100.0


class IDDPMArguments(Config):
    """`instructors.adapters.discrete.DiscreteVP`; its levels are a buffer of the checkpoint."""

    C_1: PositiveFloat = 0.001
    C_2: PositiveFloat = 0.008
    M: Annotated[int, Field(ge=2, le=100_000)] = 1000
