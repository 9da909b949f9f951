"""Architectures of diffusers: what denoises, and what codes and decodes."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import torch
from rows import BATCH, Build, given, images

TIME = torch.tensor([3, 7])
UNET = {"sample_size": 8, "block_out_channels": (8, 16), "layers_per_block": 1, "norm_num_groups": 4}
DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("AttnUpBlock2D", "UpBlock2D")
CROSS = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}


def made(name: str, **options: Any) -> torch.nn.Module:
    """Build a model of the library with random weights."""
    return getattr(import_module("diffusers"), name)(**options)


def denoiser(name: str, *shape: int, words: int = 0, **options: Any) -> Build:
    """Denoise batch × shape at some times, told by `words` numbers a word if that is not 0."""

    def build() -> Any:
        told = {"encoder_hidden_states": torch.randn(BATCH, 5, words)} if words else {}
        return given(made(name, **options), torch.randn(BATCH, *shape), timestep=TIME, **told)

    return build


def coder(name: str, *shape: int, **options: Any) -> Build:
    """Code and decode images, or what has another shape: batch × shape."""
    return lambda: given(made(name, **options), torch.randn(BATCH, *shape) if shape else images(16))


def unet(**options: Any) -> dict[str, Any]:
    """Give the sizes of a small U-Net, and what differs."""
    return {**UNET, **options}


def dit() -> Any:
    """Denoise images of a class."""
    model = made(
        "DiTTransformer2DModel",
        **HEADS,
        in_channels=4,
        num_layers=2,
        sample_size=8,
        norm_num_groups=4,
        num_embeds_ada_norm=10,
    )
    return given(model, torch.randn(BATCH, 4, 8, 8), timestep=TIME, class_labels=torch.tensor([1, 2]))


def pixart() -> Any:
    """Denoise images that words describe."""
    options = {
        "caption_channels": 12,
        "cross_attention_dim": 16,
        "num_layers": 2,
        "sample_size": 8,
        "use_additional_conditions": False,
    }
    model = made("PixArtTransformer2DModel", **HEADS, in_channels=4, out_channels=8, norm_num_groups=4, **options)
    told = {"encoder_hidden_states": torch.randn(BATCH, 5, 12), "timestep": TIME}
    return given(
        model, torch.randn(BATCH, 4, 8, 8), **told, added_cond_kwargs={"resolution": None, "aspect_ratio": None}
    )


def sd3() -> Any:
    """Denoise images and words in one stream each, which attend to each other."""
    options = {"caption_projection_dim": 16, "joint_attention_dim": 12, "pooled_projection_dim": 10, "out_channels": 4}
    model = made("SD3Transformer2DModel", **HEADS, sample_size=8, num_layers=2, in_channels=4, **options)
    told = {"encoder_hidden_states": torch.randn(BATCH, 5, 12), "pooled_projections": torch.randn(BATCH, 10)}
    return given(model, torch.randn(BATCH, 4, 8, 8), timestep=TIME, **told)


def flux() -> Any:
    """Denoise a row of patches, turned by where they lie."""
    options = {"num_layers": 1, "num_single_layers": 1, "joint_attention_dim": 12, "pooled_projection_dim": 10}
    model = made(
        "FluxTransformer2DModel",
        in_channels=4,
        axes_dims_rope=(4, 4, 8),
        attention_head_dim=16,
        num_attention_heads=2,
        **options,
    )
    told = {"encoder_hidden_states": torch.randn(BATCH, 5, 12), "pooled_projections": torch.randn(BATCH, 10)}
    places = {"img_ids": torch.zeros(16, 3), "txt_ids": torch.zeros(5, 3)}
    return given(model, torch.randn(BATCH, 16, 4), timestep=TIME / 10, **told, **places)


def controlled() -> Any:
    """Give a U-Net hints from another picture."""
    options = unet(down_block_types=CROSS["down_block_types"], in_channels=4, cross_attention_dim=12)
    del options["sample_size"]
    model = made("ControlNetModel", **options, attention_head_dim=2, conditioning_embedding_out_channels=(8, 8))
    told = {"encoder_hidden_states": torch.randn(BATCH, 5, 12), "controlnet_cond": images(16)}
    return given(model, torch.randn(BATCH, 4, 8, 8), timestep=TIME, **told)


def prior() -> Any:
    """Denoise the code of an image, told by the codes of words."""
    model = made("PriorTransformer", **HEADS, num_layers=2, embedding_dim=12, num_embeddings=5, additional_embeddings=4)
    told = {"proj_embedding": torch.randn(BATCH, 12), "encoder_hidden_states": torch.randn(BATCH, 5, 12)}
    return given(model, torch.randn(BATCH, 12), timestep=TIME, **told)


VAE = {"block_out_channels": (8, 16), "norm_num_groups": 4, "latent_channels": 4}
CODER = {**VAE, "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}

ROWS: dict[str, Build] = {
    "U-Net": denoiser("UNet2DModel", 3, 8, 8, **unet(down_block_types=DOWN, up_block_types=UP, attention_head_dim=4)),
    "U-Net, told": denoiser(
        "UNet2DConditionModel", 4, 8, 8, words=12, **unet(**CROSS, cross_attention_dim=12, attention_head_dim=2)
    ),
    "U-Net in time": denoiser(
        "UNet1DModel", 2, 32, sample_size=32, block_out_channels=(32, 32, 64), norm_num_groups=4, extra_in_channels=64
    ),
    "U-Net of videos": denoiser(
        "UNet3DConditionModel",
        4,
        3,
        8,
        8,
        words=12,
        **unet(
            down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
            up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
            cross_attention_dim=12,
            attention_head_dim=4,
        ),
    ),
    "ControlNet": controlled,
    "DiT": dit,
    "PixArt": pixart,
    "Stable Diffusion 3": sd3,
    "FLUX": flux,
    "prior": prior,
    "Transformer2D": denoiser(
        "Transformer2DModel", 8, 8, 8, words=12, **HEADS, in_channels=8, norm_num_groups=4, cross_attention_dim=12
    ),
    "autoencoder, KL": coder("AutoencoderKL", **CODER),
    "autoencoder, tiny": coder(
        "AutoencoderTiny",
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ),
    "autoencoder, vector-quantised": coder("VQModel", **CODER, num_vq_embeddings=16),
    "autoencoder of sound": coder(
        "AutoencoderOobleck",
        2,
        64,
        encoder_hidden_size=8,
        downsampling_ratios=[2, 4],
        channel_multiples=[1, 2],
        decoder_channels=8,
        decoder_input_channels=4,
    ),
}
