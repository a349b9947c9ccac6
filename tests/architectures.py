"""Small random models of the architectures of transformers, with inputs, for tests and for benchmarks.

``benchmarks/architectures.py`` prints what share of each is mixed by default.

A configuration is made small by the names of its fields (:data:`SIZES`), whatever the architecture, and inputs follow
from what the model's forward takes. :data:`OVERRIDES` corrects this for some architectures. :data:`LEFT_OUT` says why
the others are not built.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

import mixout

WIDTH, LAYERS, HEADS, VOCABULARY, POSITIONS, IMAGE = 32, 2, 2, 100, 64, 32

# Whole names of fields that hold an integer, and the small value. Fields that fit none keep their default.
_HEADS = r"num_(key_value_|kv_)?heads|num_attention_heads|(num_)?attention_heads|n_heads?"
_WIDTHS = r"hidden_size|hidden_dim|d_model|n_embd|embed_dim|emb_dim|dim|d_embed|embedding_dim|embedding_size|output_dim"
_SIZES = {
    r"(\w+_)?vocab_size|vocab_size_per_layer_input|n_words|num_tokens": VOCABULARY,
    r"pad_token_id": 0,
    r"bos_token_id|decoder_start_token_id|cls_token_id": 1,
    r"eos_token_id|sep_token_id|forced_[be]os_token_id": 2,
    rf"(\w+_)?({_HEADS})|num_kv": HEADS,
    r"\w*head_dim|d_kv|dim_head|kv_channels|rotary_dim": WIDTH // HEADS,
    r"(\w+_)?num_hidden_layers|(num_)?(en|de)coder_layers|n_layers?|num_layers|layers|depth|num_blocks": LAYERS,
    r"max_position_embeddings|n_positions|max_(source|target)_positions|max_2d_position_embeddings": POSITIONS,
    r"(pretrain_)?image_size|img_size": IMAGE,
    r"patch_size": 8,
    r"num_mel_bins|feature_projection_input_dim": 16,
    r"(num|n)_(routed_)?experts|num_local_experts|moe_num_experts": 4,
    r"num_experts_per_tok|moe_topk|moe_k|topk_group|n_group": 2,
    rf"{_WIDTHS}|\w+_hidden_size|\w+_hidden_dim": WIDTH,
    r"projection_dim|word_embed_proj_dim|classifier_proj_size|(proj_)?codevector_dim|projector_(in|out)put_dim": WIDTH,
    r"intra_bottleneck_size|vision_output_dim|upsample_groups": WIDTH,
    r"(\w+_)?intermediate_size|\w*ffn_dim|d_ff|d_inner|n_inner|mlp_dim|ffn_hidden_size": 48,
    r"\w*lora_rank": 16,
    r"num_queries": 6,
    r"mask_(time|feature)_length|full_attention_interval|attn_layer_period": 2,
    r"attn_layer_offset": 1,
    r"attention_window": 4,
}
SIZES = [(re.compile(names), size) for names, size in _SIZES.items()]

# The same for fields that hold several integers.
LISTS = [
    (re.compile(r"depths|stage_num_blocks|num_block_repeats"), lambda sizes: [1] * len(sizes)),
    (re.compile(r"conv_dim|tdnn_dim"), lambda sizes: [WIDTH // 2] * len(sizes)),
    (re.compile(r"num_heads|num_attention_heads"), lambda sizes: [HEADS] * len(sizes)),
    (re.compile(r"hidden_sizes"), lambda sizes: [max(8, size // 8) for size in sizes]),
    (re.compile(r"eos_token_id"), lambda sizes: 2),
    (re.compile(r"attention_window"), lambda sizes: 4),
]

_RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 8, 16, 32], "depths": [1, 1, 1, 1]}
_BACKBONE = {**_RESNET, "out_features": ["stage2", "stage3", "stage4"]}

_SECTIONS = {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 2, 2]}

_HALF_ROTARY = {**_SECTIONS, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}

# Fields that the generic way gets wrong; a dotted name goes into a part of the configuration.
_CORRECTIONS: list[tuple[str, dict[str, Any]]] = [
    ("bamba", {"attn_layer_indices": [1]}),
    ("big_bird bigbird_pegasus", {"block_size": 4}),
    ("codegen", {"n_head": 4, "rotary_dim": 8}),
    ("colqwen2", {"vlm_config.text_config.rope_parameters": _SECTIONS}),
    ("deberta deberta-v2", {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    ("deepseek_v2", {"num_experts_per_tok": 2}),
    ("donut-swin swin swinv2", {"image_size": 64, "patch_size": 4, "window_size": 2}),
    ("esm", {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 3}),
    ("glm46v glm4v glm_image glm_ocr glmga", {"text_config.rope_parameters": _SECTIONS}),
    ("glm4v_moe", {"text_config.rope_parameters": _HALF_ROTARY}),
    ("glm4v_moe_text", {"rope_parameters": _HALF_ROTARY}),
    ("glm4v_text glm_image_text glm_ocr_text qwen2_5_vl_text qwen2_vl_text", {"rope_parameters": _SECTIONS}),
    ("gpt_neo", {"attention_types": [[["global", "local"], 1]], "num_layers": 2}),
    ("granitemoehybrid", {"layer_types": ["mamba", "attention"]}),
    ("hunyuan_v1_dense hunyuan_v1_moe ministral", {"head_dim": 16}),
    ("layoutlmv3", {"coordinate_size": 4, "shape_size": 8}),
    ("lfm3 qwen3_5_moe_text qwen3_5_text qwen3_next", {"num_hidden_layers": 4}),
    ("lfm3_vl minicpm_ocr minicpmv4_6 minicpmv4_7 qwen3_5 qwen3_5_moe", {"text_config.num_hidden_layers": 4}),
    ("lilt", {"hidden_size": 48}),
    ("mamba2", {"num_heads": 4, "head_dim": 16, "n_groups": 1}),
    ("mobilebert", {"true_hidden_size": 32}),
    ("nemotron", {"num_key_value_heads": 2}),
    ("nemotron_h", {"n_groups": 1}),
    ("paddleocr_vl qwen2_5_omni_thinker qwen2_5_vl qwen2_vl", {"text_config.rope_parameters": _SECTIONS}),
    ("recurrent_gemma", {"num_hidden_layers": 3}),
    ("reformer", {"axial_pos_embds_dim": [16, 16], "axial_pos_shape": [2, 4], "num_buckets": 2}),
    ("swin2sr", {"image_size": 16, "patch_size": 1, "window_size": 4}),
    ("upernet", {"backbone_config": {**_RESNET, "out_features": ["stage1", "stage2", "stage3", "stage4"]}}),
    ("xmod", {"default_language": "en_XX"}),
    ("zaya", {"num_experts_per_tok": 1}),
]
OVERRIDES = {name: fields for names, fields in _CORRECTIONS for name in names.split()}

# Without a linear layer that can be mixed: convolutions and embeddings are mixed.
_NO_LINEAR = """
    dac mobilenet_v1 mobilenet_v2 poolformer pp_lcnet pp_lcnet_v3 pp_lcnet_v4 pp_ocrv5_mobile_rec
    pp_ocrv6_small_rec pp_ocrv6_tiny_rec regnet resnet rt_detr_resnet sam3_lite_text_text_model squeezebert
    superpoint upernet
"""
WHERE = dict.fromkeys(_NO_LINEAR.split(), mixout.Where(types=torch.nn.Module))

_REASONS = {
    "too large where only known fields are small": """
        align bark blt chmv2 cvt deepseek_vl_hybrid deimv2 depth_pro edgetam_video efficientnet encodec
        fastspeech2_conformer_with_hifigan florence2 hgnet_v2 janus mimi_encoder neucodec pe_audio
        pe_audio_encoder perceiver pp_doclayout_v2 pp_doclayout_v3 pp_doclayout_v4 pp_formulanet
        pp_ocrv5_server_rec qwen2_5_omni sam2 sam2_hiera_det_model sam2_video sam2_vision_model seamless_m4t
        seamless_m4t_v2 tipsv2_dpt tvp univnet unlimited_ocr uvdoc uvdoc_backbone vibevoice
        vibevoice_acoustic_tokenizer vibevoice_acoustic_tokenizer_decoder
        vibevoice_acoustic_tokenizer_encoder vibevoice_asr vits xcodec2 zoedepth
    """,
    "needs torchvision, torchaudio, detectron2 or natten": """
        dinat edgetam edgetam_vision_model fast_vlm gemma3n gemma3n_vision higgs_audio_v2_tokenizer
        layoutlmv2 pe_audio_video pe_audio_video_encoder pe_video pe_video_encoder perception_lm
        timm_backbone timm_wrapper
    """,
    "its parts do not fit together where only known fields are small": """
        autoformer bailing_hybrid bridgetower bros chameleon cohere_compass cohere_compass_text d_fine dbrx
        decision_transformer deepseek_ocr2 depth_anything dia diffusion_gemma dots1 dots3_note
        efficientloftr emu3 ernie4_5_vl_moe fun_asr_nano gemma3n_text gemma4_assistant
        gemma4_unified_assistant glm5_next glm5_next_text gradium_phonon_tts granite4_vision
        granite_speech5_ctc granite_speech5_encoder informer kimi_linear kyutai_speech_to_text lfm2_moe
        longcat_flash lw_detr lw_detr_vit mask2former mimi_decoder mimo_v2_flash mistral4 molmo2
        moonshine_streaming muse_spark muse_spark_audio musicgen musicgen_melody nemo_speechlm
        nemotron_h_omni pix2struct pocket_tts pocket_tts_audio_tokenizer_decoder pp_ocrv5_mobile_det
        pp_ocrv5_server_det pp_ocrv6_medium_det pp_ocrv6_small_det prompt_depth_anything qwen3_omni_moe
        qwen4_exp qwen4_exp_text rt_detr rt_detr_v2 sam sam3_tracker sam_hq shieldgemma2 slanet
        speech-encoder-decoder speecht5 step3p7 t5gemma2_encoder textnet time_series_transformer timesfm2_5
        vitmatte vitpose vitpose_backbone voxtral_realtime_text xlstm zamba zamba2
    """,
    "takes inputs that are not made here": """
        audioflamingo3_encoder blip-2 blip_2_qformer clap clvp cohere_compass_vision cosmos3_edge_vision
        exaone4_5_vision fun_asr_nano_encoder gemma3n_audio gemma4_vision glm4v_moe_vision
        glm4v_vision glm5_next_vision glm_image_vision glm_image_vqmodel glm_ocr_vision hunyuan_vl
        hunyuan_vl_text hunyuan_vl_vision idefics inkling2_vision instructblip instructblipvideo jev
        kimi_k25_vision kosmos-2 lfm3_vl_vision lxmert minicpm_ocr_vision minicpmv4_7_vision mobilevitv2
        muse_glimmer_assistant muse_glimmer_vision muse_spark_vision omdet-turbo oneformer pi0
        qwen2_5_vl_vision qwen3_5_moe_vision qwen3_5_vision qwen3_asr_encoder qwen3_vl_moe_vision
        qwen3_vl_vision qwen4_exp_vision sam3_tracker_video sam3_video seggpt siglip2 siglip2_vision_model
        superglue timesfm video_llama_3_vision voxtral_realtime
    """,
    "all its layers are of subclasses, none can be mixed": "bit",
    "trains on labels only": "fastspeech2_conformer",
}
LEFT_OUT = {name: reason for reason, names in _REASONS.items() for name in names.split()}


def names() -> list[str]:
    """Every architecture that transformers knows, by the name of its configuration."""
    return sorted(CONFIG_MAPPING_NAMES)


def left_out(name: str) -> str | None:
    """Why architecture ``name`` is not built; None if it is."""
    if _model(name) is None:
        return "no Auto class builds it: it is a part of others"
    return LEFT_OUT.get(name)


def small(config: Any, overrides: dict[str, Any]) -> dict[str, Any]:
    """The fields of ``config`` that a small one has otherwise."""
    changed: dict[str, Any] = {}
    special = iter(range(VOCABULARY - 1, 0, -1))
    for name, value in vars(config).items():
        if isinstance(value, transformers.PretrainedConfig):
            inner = {key.removeprefix(f"{name}."): v for key, v in overrides.items() if key.startswith(f"{name}.")}
            is_timm = value.model_type == "timm_backbone"
            changed[name] = _BACKBONE if is_timm else {"model_type": value.model_type, **small(value, inner)}
        elif type(value) is int:
            size = next((size for pattern, size in SIZES if pattern.fullmatch(name)), None)
            if size is None and re.search(r"token_(id|index)$", name) and value >= VOCABULARY:
                size = next(special)
            if size is not None:
                changed[name] = size
        elif isinstance(value, float) and re.search(r"layer_?drop", name):
            changed[name] = 0.0  # the layers that are called are not left to chance
        elif isinstance(value, (list, tuple)) and value and all(type(one) is int for one in value):
            make = next((make for pattern, make in LISTS if pattern.fullmatch(name)), None)
            if make is not None:
                changed[name] = make(value)
        elif isinstance(value, dict) and "mrope_section" in value:
            changed[name] = {**value, "mrope_section": [4, 2, 2]}  # half of a head
    return changed | {key: value for key, value in overrides.items() if "." not in key}


def _model(name: str) -> str | None:
    """The class of model that is built of architecture ``name``; None if no Auto class knows one."""
    first = ["MODEL", "MODEL_FOR_PRETRAINING", "MODEL_FOR_CAUSAL_LM", "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM"]
    rest = sorted(key for key in vars(modeling_auto) if re.fullmatch(r"MODEL_FOR_\w+_MAPPING_NAMES", key))
    for key in [f"{task}_MAPPING_NAMES" for task in first] + rest:
        found = getattr(modeling_auto, key).get(name)
        if found is not None:
            return found if isinstance(found, str) else found[0]
    return None


def build(name: str) -> Any:
    """A small random model of architecture ``name``, in eval mode; always the same one."""
    kind = CONFIG_MAPPING[name]
    config = kind(**small(kind(), OVERRIDES.get(name, {})))
    torch.manual_seed(0)
    return getattr(transformers, _model(name))(config).eval()


def inputs(model: Any) -> dict[str, Any]:
    """Inputs that ``model`` takes.

    Raises:
        ValueError: if it takes none of those that are tried, with what was wrong with the first.
    """
    problems = []
    for candidate in _candidates(model):
        torch.manual_seed(0)
        try:
            with torch.no_grad():
                model(**candidate)
        except Exception as problem:  # models refuse inputs in their own ways
            problems.append(problem)
        else:
            return candidate
    raise ValueError(f"expected {type(model).__name__} to take one of {len(problems)} inputs") from problems[0]


def _field(config: Any, *keys: str, default: Any) -> Any:
    """The first field of these names, in ``config`` or in a part of it."""
    parts = [value for value in vars(config).values() if isinstance(value, transformers.PretrainedConfig)]
    for key in keys:
        if getattr(config, key, None) is not None:
            return getattr(config, key)
    return next((v for part in parts if (v := _field(part, *keys, default=None)) is not None), default)


def _candidates(model: Any) -> Iterator[dict[str, Any]]:
    """Inputs that might fit, the likeliest first."""
    torch.manual_seed(0)
    main, takes = model.main_input_name, inspect.signature(model.forward).parameters
    main = main if isinstance(main, str) else main[0]
    ids = torch.arange(20, 36).reshape(2, 8)
    beside: dict[str, Any] = {}
    if "decoder_input_ids" in takes and (model.config.is_encoder_decoder or main != "input_ids"):
        beside["decoder_input_ids"] = ids[:, :4]
    if "bbox" in takes:
        beside["bbox"] = torch.zeros(2, 8, 4, dtype=torch.long)
    kinds = {
        "input_ids": [ids],
        **{key: list(_images(model.config)) for key in ("pixel_values", "pixel_values_videos")},
    }
    kinds |= {key: list(_sounds(model.config, key)) for key in ("input_values", "input_features", "audio_values")}
    for value in kinds.get(main, [_series(model.config), torch.randn(2, 16, WIDTH), *_images(model.config), ids]):
        yield {main: value, **beside}
        if main != "input_ids" and "input_ids" in takes:
            yield {main: value, "input_ids": ids, **beside}
        elif main == "input_ids":
            for other in [key for key in kinds if key != main and key in takes]:
                yield from ({main: value, other: one, **beside} for one in kinds[other])


def _series(config: Any) -> Tensor:
    return torch.randn(2, _field(config, "context_length", default=16), _field(config, "num_input_channels", default=1))


def _images(config: Any) -> Iterator[Tensor]:
    channels = _field(config, "num_channels", "in_channels", "in_chans", default=3)
    channels = channels if isinstance(channels, int) else 3
    size = _field(config, "image_size", "img_size", default=IMAGE)
    frames = _field(config, "num_frames", default=2)
    for sides in (tuple(size) if isinstance(size, (list, tuple)) else (size, size), (64, 64), (224, 224)):
        yield torch.randn(2, channels, *sides)
        yield torch.randn(2, frames, channels, *sides)


def _sounds(config: Any, key: str) -> Iterator[Tensor]:
    bands = _field(
        config,
        "num_mel_bins",
        "feature_projection_input_dim",
        "feature_size",
        "input_dim",
        "input_feat_per_channel",
        default=16,
    )
    length = 2 * _field(config, "max_source_positions", default=POSITIONS)
    spectra = [(2, bands, length), (2, length, bands), (2, 1, length, bands), (2, 1, 64, 64)]
    spectra.append((2, _field(config, "max_length", default=length), bands))
    waves = [(2, 1200), (2, 1, 1200)]
    for shape in spectra + waves if key == "input_features" else waves + spectra:
        yield torch.randn(shape)
