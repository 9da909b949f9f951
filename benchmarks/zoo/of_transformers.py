"""Architectures of transformers: a model class each, its configuration made small wherever it has a size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from inspect import signature
from typing import Any

import torch
from rows import BATCH, Build, Subject, given, images, words

# sizes by the names that configurations give them
WIDTHS = ("hidden_size", "d_model", "n_embd", "embed_dim", "embedding_size", "dim", "d_embed", "word_embed_proj_dim")
DEPTHS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "encoder_layers",
    "decoder_layers",
    "num_decoder_layers",
)
HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads", "decoder_attention_heads")
INNER = (
    "intermediate_size",
    "ffn_dim",
    "d_ff",
    "n_inner",
    "encoder_ffn_dim",
    "decoder_ffn_dim",
    "hidden_dim",
    "d_inner",
)
LENGTHS = ("max_position_embeddings", "n_positions", "max_source_positions", "max_target_positions")
EXPERTS = {
    "num_local_experts": 4,
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
}
EXPERTS |= {"moe_intermediate_size": 16, "shared_expert_intermediate_size": 16, "first_k_dense_replace": 1}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8, "v_head_dim": 8}
STATES = {
    "entity_vocab_size": 64,
    "state_size": 8,
    "mamba_n_heads": 4,
    "mamba_d_state": 8,
    "rotary_dim": 8,
    "attention_window": 8,
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1, "use_cache": False}
PICTURES = {"image_size": 32, "patch_size": 8}
SOUND = {"num_mel_bins": 16, "conv_dim": (16, 16), "conv_stride": (2, 2), "conv_kernel": (3, 3)}
SOUND |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
SMALL: dict[str, Any] = {
    **dict.fromkeys(WIDTHS, 32),
    **dict.fromkeys(DEPTHS, 2),
    **dict.fromkeys(HEADS, 4),
    **dict.fromkeys(INNER, 48),
    **dict.fromkeys(LENGTHS, 64),
    "num_key_value_heads": 2,
    "d_kv": 8,
    "projection_dim": 16,
    "vocab_size": 64,
    "num_labels": 5,
    **EXPERTS,
    **LATENT,
    **STATES,
    **TOKENS,
    **PICTURES,
    **SOUND,
}


def listed(default: Any, name: str) -> bool:
    """Tell whether a configuration has several sizes under one name."""
    return isinstance(getattr(default, name), tuple | list)


def small(kind: type, **options: Any) -> Any:
    """Make a configuration with every size that it has made small, those of its parts too."""
    default = kind()
    other_names = getattr(kind, "attribute_map", {})
    sizes = {
        name: size
        for name, size in SMALL.items()
        if name not in other_names and hasattr(default, name) and isinstance(size, tuple) == listed(default, name)
    }
    if getattr(default, "head_dim", None):
        sizes["head_dim"] = 8
    sizes = {name: size for name, size in sizes.items() if getattr(getattr(kind, name, None), "fset", True)}
    for name in getattr(kind, "sub_configs", None) or {}:
        part = getattr(default, name, None)
        if part is not None:
            sizes[name] = small(type(part)).to_dict() | options.pop(name, {})
    return kind(**(sizes | options))


def model(name: str, options: Mapping[str, Any]) -> Any:
    """Build a model class with random weights."""
    import transformers

    kind = getattr(transformers, name)
    return kind(small(kind.config_class, **options))


def taken(of: Any, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Give those inputs that a model takes."""
    return {name: value for name, value in inputs.items() if name in signature(of.forward).parameters}


def text(name: str, **options: Any) -> Build:
    """Read random words; predict them if the model does such a thing."""

    def build() -> Subject:
        made, x = model(name, options), words()
        inputs = {"input_ids": x, "decoder_input_ids": x}
        if name.endswith(("LM", "LMHeadModel", "LMModel", "ForConditionalGeneration")):
            inputs = {"input_ids": x, "labels": x}
        return given(made, **taken(made, inputs))

    return build


def pictures(name: str, size: int = 32, **options: Any) -> Build:
    """Look at random images; classify them if the model does such a thing."""

    def build() -> Subject:
        made, y = model(name, options), torch.randint(5, (BATCH,))
        labels = {"labels": y} if "ImageClassification" in name else {}
        return given(made, **taken(made, {"pixel_values": images(size), **labels}))

    return build


def sound(name: str, *shape: int, **options: Any) -> Build:
    """Listen to random sound: batch × samples, or batch × shape of features; say random words if it speaks."""

    def build() -> Subject:
        made = model(name, options)
        return given(
            made, **taken(made, {made.main_input_name: torch.randn(BATCH, *shape), "decoder_input_ids": words()})
        )

    return build


def both(name: str, size: int = 32, **options: Any) -> Build:
    """Look at images and read words."""

    def build() -> Subject:
        made = model(name, options)
        return given(made, **taken(made, {"input_ids": words(), "pixel_values": images(size), "return_loss": True}))

    return build


def series(name: str, **options: Any) -> Build:
    """Continue a time series: batch × time × variables."""

    def build() -> Subject:
        made, length = model(name, options), 32
        past = {"past_values": torch.randn(BATCH, length, 2), "future_values": torch.randn(BATCH, 8, 2)}
        return given(made, **taken(made, past))

    return build


def each(make: Callable[..., Build], *names: str, **special: Mapping[str, Any]) -> dict[str, Build]:
    """Give a row for each model class, and for each that needs options of its own."""
    return {name: make(name) for name in names} | {name: make(name, **options) for name, options in special.items()}


ENCODERS = each(
    text,
    "AlbertForMaskedLM",
    "BertForMaskedLM",
    "BigBirdForMaskedLM",
    "CamembertForMaskedLM",
    "ConvBertForMaskedLM",
    "DebertaForMaskedLM",
    "DebertaV2ForMaskedLM",
    "DistilBertForMaskedLM",
    "ElectraForMaskedLM",
    "ErnieForMaskedLM",
    "EsmForMaskedLM",
    "FNetForMaskedLM",
    "IBertForMaskedLM",
    "LongformerForMaskedLM",
    "LukeForMaskedLM",
    "MegatronBertForMaskedLM",
    "MobileBertForMaskedLM",
    "ModernBertForMaskedLM",
    "MPNetForMaskedLM",
    "MraForMaskedLM",
    "NystromformerForMaskedLM",
    "RemBertForMaskedLM",
    "RobertaForMaskedLM",
    "RoFormerForMaskedLM",
    "RoCBertForMaskedLM",
    "SqueezeBertForMaskedLM",
    "TapasForMaskedLM",
    "XLMRobertaForMaskedLM",
    "YosoForMaskedLM",
    "CanineModel",
    "LayoutLMForMaskedLM",
    XmodForMaskedLM={"default_language": "en_XX"},
)
DECODERS = each(
    text,
    "AfmoeForCausalLM",
    "ApertusForCausalLM",
    "ArceeForCausalLM",
    "BambaForCausalLM",
    "BioGptForCausalLM",
    "BitNetForCausalLM",
    "BloomForCausalLM",
    "CodeGenForCausalLM",
    "CohereForCausalLM",
    "Cohere2ForCausalLM",
    "CTRLLMHeadModel",
    "CwmForCausalLM",
    "DiffLlamaForCausalLM",
    "Ernie4_5ForCausalLM",
    "Exaone4ForCausalLM",
    "FalconForCausalLM",
    "FalconH1ForCausalLM",
    "FalconMambaForCausalLM",
    "GemmaForCausalLM",
    "Gemma2ForCausalLM",
    "Gemma3ForCausalLM",
    "GlmForCausalLM",
    "Glm4ForCausalLM",
    "Glm4MoeForCausalLM",
    "GPT2LMHeadModel",
    "GPTBigCodeForCausalLM",
    "GPTNeoXForCausalLM",
    "GPTJForCausalLM",
    "GptOssForCausalLM",
    "GraniteForCausalLM",
    "GraniteMoeForCausalLM",
    "GraniteMoeHybridForCausalLM",
    "HeliumForCausalLM",
    "JambaForCausalLM",
    "JetMoeForCausalLM",
    "Lfm2ForCausalLM",
    "LlamaForCausalLM",
    "Llama4ForCausalLM",
    "MambaForCausalLM",
    "MiniMaxForCausalLM",
    "MistralForCausalLM",
    "MixtralForCausalLM",
    "MptForCausalLM",
    "NemotronForCausalLM",
    "OlmoForCausalLM",
    "Olmo2ForCausalLM",
    "OlmoeForCausalLM",
    "OPTForCausalLM",
    "PersimmonForCausalLM",
    "PhiForCausalLM",
    "Phi3ForCausalLM",
    "PhimoeForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3ForCausalLM",
    "Qwen3MoeForCausalLM",
    "Qwen3NextForCausalLM",
    "RecurrentGemmaForCausalLM",
    "RwkvForCausalLM",
    "SeedOssForCausalLM",
    "SmolLM3ForCausalLM",
    "StableLmForCausalLM",
    "Starcoder2ForCausalLM",
    "XGLMForCausalLM",
    "xLSTMForCausalLM",
    Mamba2ForCausalLM={"num_heads": 8, "head_dim": 8, "n_groups": 1},
    DeepseekV2ForCausalLM={"num_key_value_heads": 4},
    DeepseekV3ForCausalLM={"num_key_value_heads": 4},
    Dots1ForCausalLM={"n_shared_experts": 1},
    GPTNeoForCausalLM={"attention_types": [[["global", "local"], 1]]},
)
TRANSLATORS = each(
    text,
    "BartForConditionalGeneration",
    "BigBirdPegasusForConditionalGeneration",
    "BlenderbotForConditionalGeneration",
    "FSMTForConditionalGeneration",
    "LEDForConditionalGeneration",
    "M2M100ForConditionalGeneration",
    "MarianMTModel",
    "MBartForConditionalGeneration",
    "MT5ForConditionalGeneration",
    "MvpForConditionalGeneration",
    "NllbMoeForConditionalGeneration",
    "PegasusForConditionalGeneration",
    "PLBartForConditionalGeneration",
    "T5GemmaForConditionalGeneration",
    "UMT5ForConditionalGeneration",
    LongT5ForConditionalGeneration={"decoder_start_token_id": 0},
    SwitchTransformersForConditionalGeneration={"decoder_start_token_id": 0},
    T5ForConditionalGeneration={"decoder_start_token_id": 0},
)
SEEING = each(
    pictures,
    "BeitForImageClassification",
    "CLIPForImageClassification",
    "CvtForImageClassification",
    "DeiTForImageClassification",
    "Dinov2ForImageClassification",
    "Dinov2WithRegistersForImageClassification",
    "FocalNetForImageClassification",
    "GLPNForDepthEstimation",
    "IJepaForImageClassification",
    "MobileNetV1ForImageClassification",
    "MobileViTForImageClassification",
    "PoolFormerForImageClassification",
    "PvtForImageClassification",
    "PvtV2ForImageClassification",
    "RegNetForImageClassification",
    "ResNetForImageClassification",
    "SegformerForSemanticSegmentation",
    "SiglipForImageClassification",
    "SwiftFormerForImageClassification",
    "TextNetForImageClassification",
    "ViTForImageClassification",
    "ViTMAEForPreTraining",
    "ViTMSNForImageClassification",
    "VitDetModel",
    "YolosForObjectDetection",
    ConvNextForImageClassification={"depths": (1, 1, 1, 1), "hidden_sizes": (8, 16, 24, 32), "patch_size": 2},
)
LISTENING = {
    **each(
        lambda name: sound(name, 400), "HubertForCTC", "SEWForCTC", "UniSpeechForCTC", "Wav2Vec2ForCTC", "WavLMForCTC"
    ),
    "Data2VecAudioForCTC": sound("Data2VecAudioForCTC", 400),
    "WhisperForConditionalGeneration": sound("WhisperForConditionalGeneration", 16, 128),
    "Speech2TextForConditionalGeneration": sound(
        "Speech2TextForConditionalGeneration", 40, 80, input_feat_per_channel=80
    ),
    "Wav2Vec2BertModel": sound("Wav2Vec2BertModel", 20, 160),
    "MoonshineForConditionalGeneration": sound("MoonshineForConditionalGeneration", 4000),
    "ASTForAudioClassification": sound("ASTForAudioClassification", 64, 16, max_length=64, patch_size=8),
}
SEVERAL = each(
    both,
    "AltCLIPModel",
    "BlipModel",
    "ChineseCLIPModel",
    "CLIPModel",
    "CLIPSegModel",
    "FlavaModel",
    "GroupViTModel",
    "SiglipModel",
    "ViltModel",
)
SERIES = {
    "PatchTSTForPrediction": series(
        "PatchTSTForPrediction", num_input_channels=2, context_length=32, prediction_length=8
    ),
    "PatchTSMixerForPrediction": series(
        "PatchTSMixerForPrediction", num_input_channels=2, context_length=32, prediction_length=8
    ),
}
ROWS: dict[str, Build] = {**ENCODERS, **DECODERS, **TRANSLATORS, **SEEING, **LISTENING, **SEVERAL, **SERIES}
