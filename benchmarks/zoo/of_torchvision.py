"""Architectures of torchvision."""

from __future__ import annotations

from contextlib import suppress
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rows import BATCH, Build, Subject, classes, given, images, total
from torch import Tensor, nn

NMS = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"


@cache
def define_operators() -> torch.library.Library | None:
    """Give PyTorch the operators without which torchvision's Python does not import, if its C++ does not load.

    The package index carries torchvision for CUDA builds of PyTorch: beside a CPU build only its Python can be used.
    What detectors cannot do without is here in Python; the rest it has itself.
    """
    found = find_spec("torchvision")
    for path in Path(found.origin).parent.glob("_C*.so") if found and found.origin else ():
        with suppress(OSError):
            torch.ops.load_library(str(path))
    if hasattr(torch.ops.torchvision, "nms"):
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        library.define(name + NMS)
    library.impl("nms", suppressed, "CompositeExplicitAutograd")
    return library


def suppressed(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Give the boxes that no better one covers, best first: boxes × 4, boxes → indices."""
    order = scores.argsort(descending=True)
    kept: list[int] = []
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    while len(order):
        best, order = int(order[0]), order[1:]
        kept.append(best)
        low, high = boxes[order, :2].maximum(boxes[best, :2]), boxes[order, 2:].minimum(boxes[best, 2:])
        shared = (high - low).clamp(min=0).prod(1)
        order = order[shared <= threshold * (area[order] + area[best] - shared)]
    return torch.tensor(kept, dtype=torch.long)


def models() -> Any:
    """Import torchvision's models."""
    import_module("torchvision.models.detection")
    boxes: Any = import_module("torchvision.ops.boxes")
    boxes._assert_has_ops = lambda: None  # the operator that it would look for is the one above
    return import_module("torchvision.models")


def named(name: str, size: int = 64, **options: Any) -> Build:
    """Classify images."""
    return lambda: classes(models().get_model(name, weights=None, num_classes=5, **options), images(size))


def pixels(name: str, size: int = 64) -> Build:
    """Classify pixels; the backbone starts from random numbers too."""
    return lambda: given(models().get_model(name, weights=None, weights_backbone=None, num_classes=5), images(size))


def video(name: str, frames: int = 8, size: int = 64, **options: Any) -> Build:
    """Classify short videos: batch × colours × frames × size × size."""

    def build() -> Subject:
        model = models().get_model(name, weights=None, num_classes=5, **options)
        return classes(model, torch.randn(BATCH, 3, frames, size, size))

    return build


# few boxes, and all of them looked at: suppression in Python is slow
ONE_STAGE = {"score_thresh": 0.0, "detections_per_img": 10, "topk_candidates": 20}
TWO_STAGES = {"box_score_thresh": 0.0, "box_detections_per_img": 10, "box_batch_size_per_image": 16}
TWO_STAGES |= {f"rpn_{when}_nms_top_n_{mode}": 20 for when in ("pre", "post") for mode in ("train", "test")}


def detector(name: str, size: int = 64, *, masks: bool = False, points: bool = False, **options: Any) -> Build:
    """Find one box in each image; in evaluation, look at the scores and boxes of what is found."""

    def build() -> Subject:
        sizes = {} if "ssd" in name else {"min_size": size, "max_size": size}
        sizes |= TWO_STAGES if "rcnn" in name else ONE_STAGE
        given_options = {"weights": None, "weights_backbone": None, "num_classes": 3, **sizes, **options}
        model = models().get_model(name, **given_options)
        x, targets = list(torch.rand(BATCH, 3, size, size)), [target(size, masks, points) for _ in range(BATCH)]

        def loss() -> Tensor:
            return torch.stack(list(model(x, targets).values())).sum() if model.training else total(model(x))

        return Subject(model, loss)

    return build


def target(size: int, masks: bool, points: bool) -> dict[str, Tensor]:
    """Say what is in an image: one box of half its size."""
    low, high = size // 4, 3 * size // 4
    found = {"boxes": torch.tensor([[low, low, high, high]]).float(), "labels": torch.tensor([1])}
    if masks:
        mask = torch.zeros(1, size, size, dtype=torch.uint8)
        mask[0, low:high, low:high] = 1
        found["masks"] = mask
    if points:
        place = torch.randint(low, high, (1, 17, 2)).float()
        found["keypoints"] = torch.cat([place, torch.ones(1, 17, 1)], 2)
    return found


def maxvit() -> nn.Module:
    """Convolutions, attention in windows, and attention across them, in turn."""
    return models().MaxVit(
        input_size=(64, 64),
        stem_channels=16,
        partition_size=2,
        block_channels=[16, 32],
        block_layers=[1, 1],
        head_dim=8,
        stochastic_depth_prob=0.2,
        num_classes=5,
    )


def swin_v2() -> nn.Module:
    """A shifted-window transformer whose attention is a cosine."""
    library = import_module("torchvision.models.swin_transformer")
    kinds = {"block": library.SwinTransformerBlockV2, "downsample_layer": library.PatchMergingV2}
    return library.SwinTransformer([4, 4], 24, [1, 1, 1], [1, 2, 4], [4, 4], num_classes=5, **kinds)


def swin_3d() -> nn.Module:
    """A shifted-window transformer in space and time."""
    library = import_module("torchvision.models.video.swin_transformer")
    return library.SwinTransformer3d([2, 4, 4], 24, [1, 1], [1, 2], [2, 4, 4], num_classes=5)


def mvit() -> nn.Module:
    """A transformer that pools its queries, keys and values."""
    library = import_module("torchvision.models.video.mvit")
    pool = {"kernel_q": [3, 3, 3], "kernel_kv": [3, 3, 3], "stride_kv": [1, 2, 2]}
    first = library.MSBlockConfig(1, 24, 48, stride_q=[1, 1, 1], **pool)
    second = library.MSBlockConfig(2, 48, 48, stride_q=[1, 2, 2], **pool)
    kinds = {"rel_pos_embed": True, "proj_after_attn": True}
    return library.MViT(
        (32, 32), 4, [first, second], residual_pool=True, residual_with_cls_embed=False, **kinds, num_classes=5
    )


def optical_flow() -> Subject:
    """Estimate how each pixel moves between two images."""
    model = models().optical_flow.raft_small(weights=None)
    return given(model, images(128), images(128), num_flow_updates=2)


def pyramid() -> Subject:
    """A feature pyramid on a residual network."""
    library = models()
    backbone = library.detection.backbone_utils.resnet_fpn_backbone(
        backbone_name="resnet18", weights=None, trainable_layers=5, norm_layer=nn.BatchNorm2d
    )
    return given(backbone, images(64))


ROWS: dict[str, Build] = {
    "ConvNeXt": named("convnext_tiny", 32),
    "DenseNet": named("densenet121"),
    "EfficientNet": named("efficientnet_b0"),
    "EfficientNetV2": named("efficientnet_v2_s"),
    "GoogLeNet": named("googlenet", init_weights=False, aux_logits=False),
    "GoogLeNet, auxiliary": named("googlenet", 96, init_weights=False, aux_logits=True),
    "Inception v3": named("inception_v3", 96, init_weights=False, aux_logits=False),
    "MaxViT": lambda: classes(maxvit(), images(64)),
    "MNASNet": named("mnasnet0_5"),
    "MobileNetV2": named("mobilenet_v2"),
    "MobileNetV3": named("mobilenet_v3_small"),
    "RegNet X": named("regnet_x_400mf"),
    "RegNet Y": named("regnet_y_400mf"),
    "ResNet": named("resnet18"),
    "ResNet, bottlenecks": named("resnet50"),
    "ResNeXt": named("resnext50_32x4d", 32),
    "ShuffleNetV2": named("shufflenet_v2_x0_5"),
    "SqueezeNet": named("squeezenet1_1"),
    "Swin": lambda: classes(
        models().SwinTransformer([4, 4], 24, [1, 1, 1], [1, 2, 4], [4, 4], num_classes=5), images(64)
    ),
    "Swin V2": lambda: classes(swin_v2(), images(64)),
    "ViT": lambda: classes(models().VisionTransformer(32, 8, 2, 4, 48, 96, 0.1, 0.1, num_classes=5), images(32)),
    "FCN": pixels("fcn_resnet50"),
    "DeepLabV3": pixels("deeplabv3_mobilenet_v3_large"),
    "LR-ASPP": pixels("lraspp_mobilenet_v3_large"),
    "Faster R-CNN": detector("fasterrcnn_mobilenet_v3_large_320_fpn"),
    "Mask R-CNN": detector("maskrcnn_resnet50_fpn", masks=True),
    "Keypoint R-CNN": detector("keypointrcnn_resnet50_fpn", points=True, num_keypoints=17),
    "RetinaNet": detector("retinanet_resnet50_fpn"),
    "FCOS": detector("fcos_resnet50_fpn"),
    "SSDlite": detector("ssdlite320_mobilenet_v3_large"),
    "feature pyramid": pyramid,
    "R3D": video("r3d_18", 4, 32),
    "MC3": video("mc3_18", 4, 32),
    "R(2+1)D": video("r2plus1d_18", 4, 32),
    "MViT": lambda: classes(mvit(), torch.randn(BATCH, 3, 4, 32, 32)),
    "Swin3D": lambda: classes(swin_3d(), torch.randn(BATCH, 3, 4, 32, 32)),
    "RAFT": optical_flow,
}
