"""Fixtures. Helpers live here only: torch-fidelity installs a top-level package `tests`."""

import os
import subprocess
import sys
import types
from pathlib import Path
from string import ascii_lowercase

import pytest
import torch
from accelerate.state import AcceleratorState
from diffusers import ConsistencyModelPipeline, EDMEulerScheduler, UNet2DModel
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _global_state(monkeypatch, tmp_path):
    """One thread, a cache of its own, and no test may leave torch's global state changed."""
    torch.set_num_threads(1)
    monkeypatch.setenv("INSTIL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    torch.manual_seed(0)
    AcceleratorState._reset_state(reset_partial_state=True)
    before = (torch.get_default_dtype(), torch.is_grad_enabled())
    yield
    assert before == (torch.get_default_dtype(), torch.is_grad_enabled())


@pytest.fixture
def unet():
    """A tiny random diffusers UNet, by channels, classes, output channels and widths."""

    def build(channels=1, classes=None, out=None, size=8, widths=(8, 16)):
        return UNet2DModel(
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

    return build


@pytest.fixture
def on_tiny(unet, tmp_path):
    """The first words of a command line that distils a tiny instructor of three classes."""
    torch.manual_seed(0)
    pipeline = ConsistencyModelPipeline(unet(classes=3), EDMEulerScheduler())
    pipeline.save_pretrained(tmp_path / "instructor")
    return ["digits", f"instructor={tmp_path / 'instructor'}", f"output={tmp_path / 'runs'}"]


@pytest.fixture
def weights():
    """Every tensor of the newest checkpoint of a run, by file and name."""

    def read(run):
        folder = sorted((run / "checkpoints").glob("step-*"))[-1]
        return {
            f"{file.name}/{name}": tensor
            for file in folder.glob("*.safetensors")
            for name, tensor in load_file(file).items()
        }

    return read


@pytest.fixture
def assert_same():
    """Compare tensors by name, to the bit."""

    def compare(one, two):
        assert one.keys() == two.keys()
        for name, tensor in one.items():
            assert torch.equal(tensor, two[name]), name

    return compare


@pytest.fixture
def persistent(monkeypatch):
    """Make an object that pickles as NVIDIA's persistent classes do.

    Called with a class name, tensors by dotted name, recorded arguments, further attributes and the
    source text that their own loader would run.
    """

    def reconstruct(meta):
        exec(meta["module_src"], {})
        return meta

    module = types.ModuleType("torch_utils.persistence")
    reconstruct.__module__ = module.__name__
    reconstruct.__qualname__ = "_reconstruct_persistent_obj"
    module._reconstruct_persistent_obj = reconstruct
    monkeypatch.setitem(sys.modules, "torch_utils", types.ModuleType("torch_utils"))
    monkeypatch.setitem(sys.modules, module.__name__, module)

    class Persistent:
        def __init__(self, class_name, state, source):
            self.meta = {
                "type": "class",
                "version": 6,
                "module_src": source,
                "class_name": class_name,
                "state": state,
            }

        def __reduce__(self):
            return reconstruct, (self.meta,)

    def make(class_name, tensors=None, arguments=None, source="", **attributes):
        own = torch.nn.Module()  # for the attributes a torch module has
        children = {}
        for name, tensor in (tensors or {}).items():
            first, _, rest = name.partition(".")
            if not rest:
                own._parameters[first] = torch.nn.Parameter(tensor, requires_grad=False)
            else:
                children.setdefault(first, {})[rest] = tensor
        modules = {name: make("Module", inside, {}) for name, inside in children.items()}
        recorded = {"_init_args": (), "_init_kwargs": arguments or {}}
        state = own.__dict__ | {"_modules": modules} | recorded | attributes
        return Persistent(class_name, state, source)

    return make


@pytest.fixture
def python():
    """Run python in a subprocess from the repository root; `processes` > 1 through torchrun."""

    def run(*arguments, processes=1, env=None, check=True, cwd=ROOT, timeout=300):
        command = [sys.executable, *map(str, arguments)]
        extra = {"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
        if processes > 1:
            command[1:1] = ["-m", "torch.distributed.run", "--standalone"]
            command[4:4] = [f"--nproc_per_node={processes}"]
        done = subprocess.run(
            command,
            cwd=cwd,
            env=os.environ | extra | (env or {}),
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode:
            raise AssertionError(f"{command}\n{done.stdout}\n{done.stderr}")
        return done

    return run


@pytest.fixture
def data_root():
    """The folder INSTIL_DATA names, or a skip."""
    root = os.environ.get("INSTIL_DATA")
    if not root or not Path(root).is_dir():
        pytest.skip("needs the data folder named by INSTIL_DATA")
    return Path(root)


@pytest.fixture
def tiny_pipeline(unet, tmp_path):
    """Save a tiny random pipeline of a family, as diffusers does; returns its folder."""

    def autoencoder(**options):
        from diffusers import AutoencoderKL

        return AutoencoderKL(
            block_out_channels=(4,) * 4,  # images are eight times as large, as everywhere
            norm_num_groups=2,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            layers_per_block=1,
            **options,
        )

    def unet_text(**options):
        from diffusers import UNet2DConditionModel

        return UNet2DConditionModel(
            sample_size=4,
            block_out_channels=(8, 16),
            layers_per_block=1,
            norm_num_groups=4,
            attention_head_dim=4,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
            **options,
        )

    def clip(projection=False):
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

    def t5():
        pytest.importorskip("transformers")
        from transformers import T5Config, T5EncoderModel, T5TokenizerFast

        config = T5Config(vocab_size=40, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2)
        letters = [("▁", -1.0), *((letter, -2.0) for letter in ascii_lowercase)]
        vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *letters]
        tokenizer = T5TokenizerFast(vocab=vocabulary, extra_ids=0, model_max_length=16)
        return T5EncoderModel(config), tokenizer

    def build(kind):
        import diffusers as d

        ddpm = d.DDPMScheduler
        stable = {
            "beta_schedule": "scaled_linear",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "steps_offset": 1,
        }
        flow = d.FlowMatchEulerDiscreteScheduler(shift=3.0)
        if kind == "unconditional":
            return d.DDPMPipeline(unet(channels=3), ddpm())
        if kind == "labels":
            return d.ConsistencyModelPipeline(unet(channels=3, classes=5), ddpm())
        if kind == "learned variance":
            schedule = ddpm(beta_schedule="squaredcos_cap_v2", variance_type="learned_range")
            return d.DDPMPipeline(unet(channels=3, out=6), schedule)
        if kind == "ncsnpp":
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
        if kind in ("pixart", "pixart 1024"):
            network = d.PixArtTransformer2DModel(
                num_attention_heads=2,
                attention_head_dim=12,
                in_channels=4,
                out_channels=8,
                num_layers=2,
                cross_attention_dim=24,
                sample_size=128 if kind == "pixart 1024" else 4,  # the former is told sizes
                caption_channels=16,
                norm_num_groups=4,
            )
            encoder, tokenizer = t5()
            schedule = d.DPMSolverMultistepScheduler()
            kinds = {"pixart": d.PixArtSigmaPipeline, "pixart 1024": d.PixArtAlphaPipeline}
            return kinds[kind](tokenizer, encoder, autoencoder(), network, schedule)
        if kind == "sana":
            pytest.importorskip("transformers")
            from transformers import Gemma2Config, Gemma2Model

            layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
            config = Gemma2Config(
                vocab_size=40, hidden_size=16, intermediate_size=16, head_dim=8, **layers
            )
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
        if kind == "dit":
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
        if kind == "sd":
            return d.StableDiffusionPipeline(
                autoencoder(),
                *clip(),
                unet_text(cross_attention_dim=8),
                d.PNDMScheduler(skip_prk_steps=True, **stable),
                None,
                None,
                requires_safety_checker=False,
            )
        if kind == "sdxl":
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
                d.EulerDiscreteScheduler(**stable),
                add_watermarker=False,
            )
        if kind == "sd3":
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
            parts = (*clip(projection=True), *clip(projection=True), *t5())
            codec = autoencoder(scaling_factor=1.5305, shift_factor=0.0609)
            return d.StableDiffusion3Pipeline(network, flow, codec, *parts)
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
        dynamic = d.FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True)
        return d.FluxPipeline(dynamic, codec, *clip(), *t5(), network)

    def save(kind):
        torch.manual_seed(0)
        folder = tmp_path / kind.replace(" ", "-")
        pipeline = build(kind)
        with torch.no_grad():  # zero-initialised layers would hide what is wrong before them
            for component in pipeline.components.values():
                if isinstance(component, torch.nn.Module):
                    for parameter in component.parameters():
                        parameter.add_(0.05 * torch.randn_like(parameter))
        pipeline.save_pretrained(folder)
        return folder

    return save
