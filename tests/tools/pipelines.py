"""Tiny random pipelines, one of each family, in the folders that diffusers writes.

`PIPELINES` is the table: a family's name and the function that builds one. `save` writes it.
"""

from collections.abc import Callable
from pathlib import Path
from string import ascii_lowercase
from typing import Any

import diffusers as d
import pytest
import torch

STABLE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "steps_offset": 1,
}


def unet(
    channels: int = 1,
    classes: int | None = None,
    out: int | None = None,
    size: int = 8,
    widths: tuple[int, ...] = (8, 16),
) -> d.UNet2DModel:
    """The smallest network of images that diffusers knows, of two blocks down and two up."""
    return d.UNet2DModel(
        sample_size=size,
        in_channels=channels,
        out_channels=out or channels,
        block_out_channels=widths,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        norm_num_groups=4,
        add_attention=False,
        num_class_embeds=classes,
    )


def unet_text(**options: Any) -> d.UNet2DConditionModel:
    """A network that attends to text."""
    return d.UNet2DConditionModel(
        sample_size=4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        **options,
    )


def autoencoder(**options: Any) -> d.AutoencoderKL:
    """Four channels; images are eight times as large, as everywhere."""
    return d.AutoencoderKL(
        block_out_channels=(4,) * 4,
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        layers_per_block=1,
        **options,
    )


def clip(projection: bool = False) -> tuple[Any, Any]:
    """A text encoder of CLIP and its tokenizer of single letters."""
    pytest.importorskip("transformers")
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection
    from transformers import CLIPTokenizer as Tokenizer

    config = CLIPTextConfig(
        vocab_size=54,
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=8,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    model = (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)
    words = ["<|startoftext|>", "<|endoftext|>", *ascii_lowercase]
    words += [f"{letter}</w>" for letter in ascii_lowercase]
    vocabulary = {word: number for number, word in enumerate(words)}
    return model, Tokenizer(vocab=vocabulary, merges=[], model_max_length=16)


def t5() -> tuple[Any, Any]:
    """A text encoder of T5 and its tokenizer of single letters."""
    pytest.importorskip("transformers")
    from transformers import T5Config, T5EncoderModel, T5TokenizerFast

    config = T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
    letters = [("▁", -1.0), *((letter, -2.0) for letter in ascii_lowercase)]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters]
    tokenizer = T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=16)
    return T5EncoderModel(config), tokenizer


def unconditional() -> d.DiffusionPipeline:
    return d.DDPMPipeline(unet(channels=3), d.DDPMScheduler())


def labels() -> d.DiffusionPipeline:
    return d.ConsistencyModelPipeline(unet(channels=3, classes=5), d.DDPMScheduler())


def learned_variance() -> d.DiffusionPipeline:
    schedule = d.DDPMScheduler(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
    return d.DDPMPipeline(unet(channels=3, out=6), schedule)


def ncsnpp() -> d.DiffusionPipeline:
    network = d.UNet2DModel(
        sample_size=8,
        block_out_channels=(32, 32),
        layers_per_block=1,
        down_block_types=("SkipDownBlock2D", "AttnSkipDownBlock2D"),
        up_block_types=("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        norm_num_groups=4,
        time_embedding_type="fourier",
        center_input_sample=True,
    )
    return d.ScoreSdeVePipeline(network, d.ScoreSdeVeScheduler())


def pixart(pipeline: Any = d.PixArtSigmaPipeline, side: int = 4) -> d.DiffusionPipeline:
    network = d.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=24,
        sample_size=side,
        caption_channels=16,
        norm_num_groups=4,
    )
    encoder, tokenizer = t5()
    return pipeline(tokenizer, encoder, autoencoder(), network, d.DPMSolverMultistepScheduler())


def pixart_1024() -> d.DiffusionPipeline:
    """A PixArt that is told the size of its images, as those of 1,024 pixels are."""
    return pixart(d.PixArtAlphaPipeline, 128)


def sana() -> d.DiffusionPipeline:
    pytest.importorskip("transformers")
    from transformers import Gemma2Config, Gemma2Model

    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    config = Gemma2Config(vocab_size=40, hidden_size=16, intermediate_size=16, head_dim=8, **layers)
    network = d.SanaTransformer2DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        num_cross_attention_heads=2,
        cross_attention_head_dim=8,
        cross_attention_dim=16,
        caption_channels=16,
        sample_size=8,
        timestep_scale=0.5,
    )
    codec = d.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types="ResBlock",
        decoder_block_types="ResBlock",
        encoder_block_out_channels=(4, 4, 4),
        decoder_block_out_channels=(4, 4, 4),
        encoder_layers_per_block=(1, 1, 1),
        decoder_layers_per_block=(1, 1, 1),
        encoder_qkv_multiscales=((),) * 3,
        decoder_qkv_multiscales=((),) * 3,
        downsample_block_type="conv",
        upsample_block_type="interpolate",
        decoder_norm_types="rms_norm",
        decoder_act_fns="silu",
        scaling_factor=0.41407,
    )
    schedule = d.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return d.SanaPipeline(t5()[1], Gemma2Model(config), codec, network, schedule)


def latent() -> d.DiffusionPipeline:
    """Unconditional latent diffusion."""
    codec = d.VQModel(
        block_out_channels=(8, 8, 8),
        norm_num_groups=4,
        latent_channels=3,
        num_vq_embeddings=16,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )
    schedule = d.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False)
    return d.LDMPipeline(codec, unet(channels=3), schedule)


def dit() -> d.DiffusionPipeline:
    network = d.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        sample_size=4,
        num_embeds_ada_norm=6,
        norm_num_groups=4,
    )
    return d.DiTPipeline(network, autoencoder(), d.DDIMScheduler(clip_sample=False))


def sd() -> d.DiffusionPipeline:
    return d.StableDiffusionPipeline(
        autoencoder(),
        *clip(),
        unet_text(cross_attention_dim=8),
        d.PNDMScheduler(skip_prk_steps=True, **STABLE),
        None,
        None,
        requires_safety_checker=False,
    )


def sdxl() -> d.DiffusionPipeline:
    (one, first), (two, second) = clip(), clip(projection=True)
    network = unet_text(
        cross_attention_dim=16,
        addition_embed_type="text_time",
        addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=8 + 6 * 4,
    )
    return d.StableDiffusionXLPipeline(
        autoencoder(),
        one,
        two,
        first,
        second,
        network,
        d.EulerDiscreteScheduler(**STABLE),
        add_watermarker=False,
    )


def sd3() -> d.DiffusionPipeline:
    network = d.SD3Transformer2DModel(
        sample_size=4,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=4,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=8,
        pooled_projection_dim=16,
        pos_embed_max_size=8,
    )
    flow = d.FlowMatchEulerDiscreteScheduler(shift=3.0)
    codec = autoencoder(scaling_factor=1.5305, shift_factor=0.0609)
    encoders = (*clip(projection=True), *clip(projection=True), *t5())
    return d.StableDiffusion3Pipeline(network, flow, codec, *encoders)


def flux() -> d.DiffusionPipeline:
    network = d.FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        pooled_projection_dim=8,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )
    codec = autoencoder(scaling_factor=0.3611, shift_factor=0.1159)
    flow = d.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
    return d.FluxPipeline(flow, codec, *clip(), *t5(), network)


PIPELINES: dict[str, Callable[[], d.DiffusionPipeline]] = {
    "unconditional": unconditional,
    "labels": labels,
    "learned variance": learned_variance,
    "ncsnpp": ncsnpp,
    "latent": latent,
    "dit": dit,
    "sd": sd,
    "sdxl": sdxl,
    "pixart": pixart,
    "pixart 1024": pixart_1024,
    "sana": sana,
    "sd3": sd3,
    "flux": flux,
}


def save(family: str, folder: Path) -> None:
    """Write the pipeline of a family; the same weights always, none of them zero."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        pipeline = PIPELINES[family]()
        for component in pipeline.components.values():
            if isinstance(component, torch.nn.Module):
                for parameter in component.parameters():  # zeros hide what is wrong before them
                    parameter.add_(0.05 * torch.randn_like(parameter))
    pipeline.save_pretrained(folder)
