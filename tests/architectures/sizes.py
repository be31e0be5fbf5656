"""How small each setting of a configuration becomes: by its name, and for the model types that need more.

Every decoder gets four layers. Sequences in the tests have 5 to 12 tokens, longer than the windows and chunks here.
"""

from __future__ import annotations

from transformers import SiglipVisionConfig

DECODER_LAYERS = 4

# First match of a regular expression on the whole name of a setting counts. None: leave it as it is.
BY_NAME: dict[str, object] = {
    r"type_vocab_size|.*initializer_factor": None,
    r".*vocab_size(_.*)?|encoder_hash_byte_group_vocab": 96,
    r"(num_)?((hidden|decoder|encoder)_)?layers|n_layers?|num_blocks": DECODER_LAYERS,
    r"depth|.*_(layers|depth)": 2,
    r"num_attention_heads|n_heads?|.*attention_heads|num_heads|attention_heads|index_n_heads": 4,
    r".*(num_key_value_heads|num_kv_heads|kv_n_heads)": 4,
    r"mamba_n_heads|mamba_num_heads": 8,
    r"rotary_dim": 4,
    r"qk_head_dim": 16,
    r".*(head_dim|d_kv|head_size|kv_channels|d_head)|mamba_headdim": 8,
    r".*d_state|.*state_size": 8,
    r".*lora_rank|time_step_rank|mamba_dt_rank|.*lowrank|.*_rank": 8,
    r".*(intermediate_size(_mlp)?|ffn_dim|d_ff|mlp_dim|ffn_hidden_size|feed_forward_size|d_inner|dim_ff|dff)": 48,
    r"num_embeddings|codebook_size|zero_expert_num": 64,
    r"adapter_(in|out)_dim|adapter_input_size|image_token_embed_dim": 32,
    r"hidden_size_global|.*(hidden_size|d_model|n_embd|emb(ed)?_dim|embedding_size|hidden_dim|output_dim|projection_dim|word_embed_proj_dim"
    r"|embedding_dim|base_channels|(out|output|in)_channels?|conv_channels|backbone_hidden_size)|lru_width": 32,
    r"n_routed_experts|num_experts|.*num_local_experts|moe_num_experts|n_experts": 4,
    r".*experts_per_tok(en)?|moe_k|moe_top_?k": 2,
    r"n_shared_experts|.*num_shared_experts": 1,
    r"n_group|num_expert_group": 2,
    r"topk_group": 1,
    r".*(sliding_window|attention_chunk_size|local_attention)|window_size": 4,
    r".*max_position_embeddings|n_positions|n_ctx|max_seq_len": 64,
    r"initializer_range|init_std": 0.2,
    r"residual_multiplier": 0.3,
}

# Where the default is "none", but a model needs one.
IF_UNSET = r"head_dim|num_key_value_heads|num_experts_per_tok|n_routed_experts"

_PLAIN_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_MAMBA_AND_ATTENTION = {"layer_types": ["linear_attention", "full_attention"] * 2}
_SHARED_KV = {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_kv_shared_layers": 2}
_IMAGE_TOKENS = {"vocabulary_map": {"<image>": 90, "<|extra_200|>": 91, "<|image token|>": 92}}
_MROPE = {"rope_parameters": {**_PLAIN_ROPE, "mrope_section": [2, 1, 1]}}
_SAM = {"downsample_channels": [32, 32]}

# By model type of a configuration or of one inside it. A dict changes settings of an inner configuration.
BY_MODEL_TYPE: dict[str, dict[str, object]] = {
    "bamba": {"attn_layer_indices": [1, 3]},
    "blip-2": {"image_token_index": 95},
    "blt": {"num_hidden_layers": DECODER_LAYERS},  # what its cache reads, though BLT has no such setting
    "chameleon": _IMAGE_TOKENS,
    "chameleon_vqgan": {"channel_multiplier": [1, 1]},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _PLAIN_ROPE}},
    "cosmos3_edge_text": _MROPE,
    "cpmant": {"prompt_length": 2},
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0}},
    "deepseek_ocr2_sam_vision_model": _SAM,
    "deepseek_ocr2_text": {"mlp_layer_types": ["dense", "sparse", "sparse", "sparse"]},
    "diffusion_gemma_text": {"num_experts": 4, "top_k_experts": 2, "moe_intermediate_size": 48, "global_head_dim": 8},
    "dots1": {"n_shared_experts": 1},
    "dots3_note_text": {
        "head_dim": 16,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 4,
        "swa_q_lora_rank": 8,
        "swa_kv_lora_rank": 8,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "emu3": _IMAGE_TOKENS,
    "emu3_vqgan": {"channel_multiplier": [1, 1]},
    "encoder-decoder": {"decoder": {"is_decoder": True, "add_cross_attention": True}},
    "ernie4_5_vl_moe_text": {
        "rope_parameters": {**_PLAIN_ROPE, "mrope_section": [1, 1, 2]},
        "moe_intermediate_size": [48, 48],
    },
    "falcon_h1": {"mamba_d_ssm": 64},
    "florence_vision": {"embed_dim": [8] * 4, "num_heads": [2] * 4, "num_groups": [2] * 4, "depths": [1] * 4},
    "gemma3n_text": {**_SHARED_KV, "intermediate_size": 48},
    "gemma4_text": {**_SHARED_KV, "global_head_dim": 8},
    "gemma4_unified_text": {**_SHARED_KV, "global_head_dim": 8},
    "glm4v_moe_text": {"rope_parameters": {**_PLAIN_ROPE, "mrope_section": [1, 1, 0], "partial_rotary_factor": 0.5}},
    "glm4v_text": _MROPE,
    "glm5_next_text": {"qk_rope_head_dim": 0, "qk_head_dim": 8},
    "glm_ocr_text": _MROPE,
    "gpt_neo": {"attention_types": [[["global", "local"], 2]]},
    "granite4_vision": {
        "deepstack_layer_map": [(0, 0), (1, 2)],
        "spatial_target_layers": [1],
        "downsample_rate": "1/2",
        "vision_config": {"hidden_size": 64},
    },
    "granitemoehybrid": _MAMBA_AND_ATTENTION,
    "hrm_text": {"H_cycles": 1, "L_cycles": 1, "L_bp_cycles": [1]},
    "hunyuan_vl_text": _MROPE,
    "inkling_vision": {"patch_size": 4},
    "instructblip": {"image_token_index": 95},
    "instructblipvideo": {"video_token_index": 95},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "janus_vqgan": {"channel_multiplier": [1, 1]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention", "conv", "full_attention"]},
    "mamba2": {"num_heads": 8},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "mistral4": {"head_dim": 16},
    "mllama_text_model": {"cross_attention_layers": [1]},
    "molmo2_adapter": {"vision_feature_layer": [1, 0]},
    "muse_spark_audio": {"hidden_sizes": [8] * 4, "patch_sizes": [2] * 4},
    "nemotron_h_omni": {"vision_config": {"video_temporal_patch_size": 2}},
    "paddleocr_vl_text": _MROPE,
    "qwen2_5_omni_text": _MROPE,
    "qwen2_5_omni_thinker": {"vision_start_token_id": 94},
    "qwen2_5_vl_text": _MROPE,
    "qwen2_vl_text": _MROPE,
    "qwen3_omni_moe_thinker": {"vision_start_token_id": 94},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "reformer": {"is_decoder": True, "axial_pos_shape": [4, 16], "axial_pos_embds_dim": [8, 24]},
    "step3p5": {"sliding_window": 4},
    "unlimited_ocr_sam_vision_model": _SAM,
    "vibevoice_acoustic_tokenizer_encoder": {"num_filters": 2, "depths": [1] * 7},
    "vision-encoder-decoder": {"decoder": {"is_decoder": True, "add_cross_attention": True}},
    "xlstm": {"hidden_size": 128, "embedding_dim": 128},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["linear_attention", "hybrid"] * 2,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
    "zamba2": {"attention_hidden_size": 64, "attention_head_dim": 16},
    "zaya": {"num_experts_per_tok": 1},
}

# Model types whose image tower comes from timm get this one instead.
NEEDS_TIMM = {"fast_vlm", "gemma3n", "perception_lm"}
IMAGE_TOWER = SiglipVisionConfig(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    model_args={"embed_dim": 32},
    vocab_size=96,
    vocab_offset=96,
    rms_norm_eps=1e-6,
)
