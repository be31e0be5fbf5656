"""Layers, by class, whose output is not the sum of their input, one attention and one mlp."""

from __future__ import annotations

_NORM_BEHIND = "the sum is normed before it is the stream again"
_STREAMS = "it keeps several residual streams"
_SCALED = "the stream itself is scaled"

# The residual stream behind a layer is not the one before it plus what its parts add.
NO_SUM = {
    **dict.fromkeys(
        [
            "BartDecoderLayer", "BertGenerationLayer", "BertLayer", "BigBirdLayer",
            "BlenderbotSmallDecoderLayer", "BlipTextLayer", "Block", "CamembertLayer", "Data2VecTextLayer",
            "DecoderLayer", "ElectraLayer", "ErnieLayer", "GitLayer", "LEDDecoderLayer", "MarianDecoderLayer",
            "MvpDecoderLayer", "PLBartDecoderLayer", "ProphetNetDecoderLayer", "RemBertLayer", "RoCBertLayer",
            "RoFormerLayer", "RobertaLayer", "TrOCRDecoderLayer", "XLMRobertaLayer", "XLNetLayer", "XmodLayer",
        ],
        _NORM_BEHIND,
    ),
    **dict.fromkeys(
        ["DeepseekV4DecoderLayer", "Gemma3nTextDecoderLayer", "Glm5NextTextDecoderLayer", "HYV4DecoderLayer",
         "Qwen4ExpTextDecoderLayer", "ReformerLayer"],
        _STREAMS,
    ),
    **dict.fromkeys(
        ["BeamDecoderLayer", "MiniMaxDecoderLayer", "MuseSparkTextDecoderLayer", "ZayaDecoderLayer"],
        _SCALED,
    ),
    "BltTransformerLayer": "its layers see patches of bytes, not tokens",
    "GPTNeoXJapaneseLayer": "the last layer adds a bias to its attention",
    "IdeficsDecoderLayer": "it does not run on token ids alone",
    "Inkling2SlidingDecoderLayer": "the first layer has further parts",
    "LayerNorm": "its list of layers holds norms",
    "LongcatFlashDecoderLayer": "a layer has two attentions and three mlps",
    "MllamaCrossAttentionDecoderLayer": "this layer runs with images only",
    "RwkvBlock": "the first layer norms the stream",
    "VoxtralRealtimeTextDecoderLayer": "it does not run on token ids alone",
    "Zamba2HybridLayer": "two layers stand in one",
    "ZambaHybridLayer": "two layers stand in one",
}  # fmt: skip

# These have one part, whichever it is; the other is refused.
SINGLE_PART = {
    "FalconMambaBlock", "Mamba2Block", "MambaBlock", "NemotronHBlock", "Zamba2MambaDecoderLayer",
    "ZambaMambaDecoderLayer",
}  # fmt: skip

# What these call mlp is the sum of two modules, both times a multiplier, and is refused.
IN_TWO_MODULES = {"GraniteMoeHybridDecoderLayer", "GraniteMoeSWADecoderLayer", "GraniteMoeSharedDecoderLayer"}

# Modules that add to the stream beside attention and mlp.
THIRD_PARTS = {
    "BigBirdPegasusDecoderLayer": ("encoder_attn",),
    "BlenderbotDecoderLayer": ("encoder_attn",),
    "FalconH1DecoderLayer": ("mamba",),
    "Gemma4TextDecoderLayer": ("post_per_layer_input_norm",),
    "LongT5Block": ("layer.1.EncDecAttention",),
    "M2M100DecoderLayer": ("encoder_attn",),
    "MBartDecoderLayer": ("encoder_attn",),
    "MT5Block": ("layer.1.EncDecAttention",),
    "MusicgenDecoderLayer": ("encoder_attn",),
    "MusicgenMelodyDecoderLayer": ("encoder_attn",),
    "NllbMoeDecoderLayer": ("cross_attention",),
    "PPFormulaNetDecoderLayer": ("encoder_attn",),
    "PegasusDecoderLayer": ("encoder_attn",),
    "PegasusXDecoderLayer": ("encoder_attn",),
    "Pix2StructTextBlock": ("encoder_decoder_attention.attention",),
    "SeamlessM4TDecoderLayer": ("cross_attention",),
    "SeamlessM4Tv2DecoderLayer": ("cross_attention",),
    "SwitchTransformersBlock": ("layer.1.EncDecAttention",),
    "T5Block": ("layer.1.EncDecAttention",),
    "T5GemmaDecoderLayer": ("post_cross_attn_layernorm",),
    "UMT5Block": ("layer.1.EncDecAttention",),
    "UdopBlock": ("layer.1.EncDecAttention",),
    "WhisperDecoderLayer": ("encoder_attn",),
}
