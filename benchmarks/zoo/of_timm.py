"""Architectures of timm: the smallest of each family, for small images."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from rows import Build, Subject, classes, images


def named(name: str, size: int = 64, *, fixed: bool = False, batch: int = 2, **options: Any) -> Build:
    """Classify images.

    Args:
        size: pixels on a side.
        fixed: whether the model must be told the size when it is made.
        options: what timm.create_model takes.
    """

    def build() -> Subject:
        timm = import_module("timm")
        told = {"img_size": size} if fixed else {}
        model = timm.create_model(name, pretrained=False, num_classes=5, **told, **options)
        return classes(model, images(size, batch=batch))

    return build


VIT: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 3}

ROWS: dict[str, Build] = {
    "BEiT": named("beit_base_patch16_224", fixed=True, **VIT),
    "HaloNet": named("halonet26t", 256),
    "BoTNet": named("botnet26t_256", fixed=True),
    "LambdaNet": named("lambda_resnet26t", 128),
    "MobileOne": named("mobileone_s1"),
    "RepVGG": named("repvgg_a0"),
    "GERNet": named("gernet_s"),
    "CaiT": named("cait_xxs24_224", fixed=True, depth=2),
    "CoaT": named("coat_tiny", fixed=True),
    "CoaT-Lite": named("coat_lite_tiny", fixed=True),
    "ConViT": named("convit_tiny", 64, fixed=True, depth=4, local_up_to_layer=2),
    "ConvNeXt": named("convnext_atto"),
    "ConvNeXt V2": named("convnextv2_atto"),
    "CPUBone": named("cpubone_nano"),
    "CrossViT": named("crossvit_tiny_240", 240),
    "CSATv2": named("csatv2", 128),
    "CSPNet": named("cs3darknet_focus_s"),
    "CSPNeXt": named("cspnext_tiny"),
    "DaViT": named("davit_tiny", depths=(1, 1, 2, 1), embed_dims=(16, 32, 64, 96), num_heads=(1, 2, 4, 6)),
    "DeiT": named("deit_tiny_patch16_224", fixed=True, depth=2),
    "DeiT, distilled": named("deit_tiny_distilled_patch16_224", fixed=True, depth=2),
    "DenseNet": named("densenet121"),
    "DLA": named("dla46_c"),
    "DPN": named("dpn48b"),
    "EdgeNeXt": named("edgenext_xx_small"),
    "EfficientFormer": named("efficientformer_l1", 224),
    "EfficientFormerV2": named("efficientformerv2_s0", 224),
    "EfficientNet": named("efficientnet_lite0"),
    "EfficientNetV2": named("efficientnetv2_rw_t"),
    "MixNet": named("mixnet_s"),
    "MNASNet": named("mnasnet_small"),
    "TinyNet": named("tinynet_e"),
    "EfficientViM": named("efficientvim_m1", 128),
    "EfficientViT (MIT)": named("efficientvit_b0"),
    "EfficientViT (MSRA)": named("efficientvit_m0", 224),
    "EVA-02": named("eva02_tiny_patch14_224", 56, fixed=True, depth=2),
    "FasterNet": named("fasternet_t0"),
    "FastViT": named("fastvit_t8"),
    "GC ViT": named("gcvit_xxtiny", 224),
    "GhostNet": named("ghostnet_050"),
    "GhostNetV2": named("ghostnetv2_100"),
    "HardCoReNAS": named("hardcorenas_b"),
    "HGNetV2": named("hgnetv2_b0"),
    "Hiera": named("hiera_tiny_224", 224, embed_dim=24, stages=(1, 1, 2, 1)),
    "HRNet": named("hrnet_w18_small"),
    "iFormer": named("iformer_t"),
    "InceptionNeXt": named("inception_next_atto"),
    "Inception v3": named("inception_v3", 96),
    "LCNet": named("lcnet_050"),
    "LCNetV2": named("lcnetv2_small"),
    "LeViT": named("levit_128", 224),
    "LowFormer": named("lowformer_b0"),
    "MambaOut": named("mambaout_femto"),
    "MaxViT": named("maxvit_pico_rw_256", fixed=True, depths=(1, 1, 1, 1)),
    "CoAtNet": named("coatnet_pico_rw_224", 64, fixed=True, depths=(1, 1, 1, 1)),
    "PoolFormer": named("poolformerv2_s12"),
    "gMLP": named("gmlp_ti16_224", fixed=True),
    "MLP-Mixer": named("gmixer_12_224", fixed=True),
    "ResMLP": named("resmlp_12_224", fixed=True),
    "MobileNetV2": named("mobilenetv2_035"),
    "MobileNetV3": named("mobilenetv3_small_050"),
    "MobileNetV4": named("mobilenetv4_conv_small_035"),
    "FBNet": named("fbnetv3_b"),
    "MobileViT": named("mobilevit_xxs"),
    "MobileViTV2": named("mobilevitv2_050"),
    "NesT": named("nest_tiny", 64, fixed=True),
    "NFNet": named("nf_regnet_b0"),
    "NF-ResNet": named("nf_resnet26"),
    "PiT": named("pit_ti_224", 224),
    "PVT v2": named("pvt_v2_b0"),
    "RDNet": named("rdnet_tiny"),
    "RegNetX": named("regnetx_002"),
    "RegNetY": named("regnety_002"),
    "RepGhost": named("repghostnet_050"),
    "RepViT": named("repvit_m0_9"),
    "Res2Net": named("res2net50_14w_8s", layers=(1, 1, 1, 1)),
    "ResNeSt": named("resnest14d"),
    "ResNet": named("resnet10t"),
    "SE-ResNet": named("legacy_seresnet18"),
    "ECA-ResNet": named("ecaresnet26t", layers=(1, 1, 1, 1)),
    "ResNetV2": named("resnetv2_18"),
    "ReXNet": named("rexnet_100"),
    "SelecSLS": named("selecsls42"),
    "Sequencer": named(
        "sequencer2d_s", 64, fixed=True, layers=(1, 1, 1, 1), embed_dims=(24, 48, 48, 48), hidden_sizes=(8, 16, 16, 16)
    ),
    "SHViT": named("shvit_s1", 128),
    "SKNet": named("skresnet18"),
    "StarNet": named("starnet_s050"),
    "SwiftFormer": named("swiftformer_xs", 224),
    "Swin": named(
        "swin_tiny_patch4_window7_224",
        fixed=True,
        depths=(1, 1, 2, 1),
        embed_dim=24,
        num_heads=(1, 2, 4, 8),
        window_size=4,
    ),
    "Swin V2": named(
        "swinv2_tiny_window8_256", fixed=True, depths=(1, 1, 2, 1), embed_dim=24, num_heads=(1, 2, 4, 8), window_size=4
    ),
    "Swin V2 CR": named(
        "swinv2_cr_tiny_224", fixed=True, depths=(1, 1, 2, 1), embed_dim=24, num_heads=(1, 2, 4, 8), window_size=2
    ),
    "TinyViT": named("tiny_vit_5m_224", 224),
    "TNT": named("tnt_s_patch16_224", fixed=True, depth=2, embed_dim=48),
    "TResNet": named("tresnet_m", layers=(1, 1, 1, 1)),
    "Twins-PCPVT": named("twins_pcpvt_small", depths=(1, 1, 1, 1)),
    "Twins-SVT": named("twins_svt_small", 224, depths=(1, 1, 2, 1), embed_dims=(16, 32, 64, 128)),
    "Visformer": named("visformer_tiny", fixed=True, depth=(1, 1, 1)),
    "ViT": named("vit_tiny_patch16_224", fixed=True, depth=2),
    "ViT, registers": named("vit_pwee_patch16_reg1_gap_256", fixed=True, depth=2),
    "ViT, hybrid": named("vit_tiny_r_s16_p8_224", fixed=True, depth=2),
    "ViT, relative positions": named("test_vit_relpos", fixed=True),
    "ViTamin": named("vitamin_small_224", fixed=True, depth=2),
    "SAM's ViT": named("samvit_base_patch16_224", fixed=True, **VIT),
    "VoVNet": named("ese_vovnet19b_slim_dw"),
    "Xception": named("xception41p"),
    "XCiT": named("xcit_nano_12_p8_224", 64, fixed=True, depth=2),
}
