"""Networks of EDM's and EDM2's checkpoints, which diffusers lacks."""

from instructors.families.family import KL, Family
from instructors.families.unet import forward

SONG_UNET = Family(
    "SongUNet",
    forward,
    library="instructors.nvidia.song_unet",
    classes=lambda config: config.num_class_embeds or 0,
)
EDM2_UNET = Family(
    "EDM2UNet",
    forward,
    library="instructors.nvidia.edm2_unet",
    classes=lambda config: config.num_class_embeds or 0,
    autoencoders=KL,
    unit_images=True,
)
