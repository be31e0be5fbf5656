"""The sample model as a GGUF file in fp32: the very numbers that the transformers folder holds."""

from __future__ import annotations

import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter, dequantize

from rotalabs_steer.sample_model import _gguf_file

_WRITTEN_BY_THE_WRITER = ("GGUF.", "general.architecture", "general.file_type", "general.quantization_version")


def write_fp32_model(path, source=None, extra_tensors=None):
    """Dequantises a GGUF model, the packaged one by default. `extra_tensors` go by llama.cpp's names."""
    reader = GGUFReader(source or _gguf_file())
    writer = GGUFWriter(path, reader.fields["general.architecture"].contents(), use_temp_file=False)
    writer.add_file_type(0)  # all fp32
    for name, field in reader.fields.items():
        if not name.startswith(_WRITTEN_BY_THE_WRITER):
            inner = field.types[1] if field.types[0] is GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        plain = tensor.data
        if tensor.tensor_type is not GGMLQuantizationType.F32:
            plain = dequantize(tensor.data, tensor.tensor_type)
        writer.add_tensor(tensor.name, plain)
    for name, values in (extra_tensors or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_plamo2_model(path):
    """A tiny random PLaMo-2 with the sample model's tokenizer: llama.cpp's graph for it applies no control vectors.

    Layer 0 is a Mamba layer, layer 1 has attention; the names are llama.cpp's.
    """
    width, heads, inner, state, step = 64, 2, 32, 16, 64
    reader = GGUFReader(_gguf_file())
    writer = GGUFWriter(path, "plamo2", use_temp_file=False)
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            kind = field.types[1] if field.types[0] is GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), field.types[0], sub_type=kind)
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_block_count(2)
    writer.add_feed_forward_length(inner)
    writer.add_head_count(heads)
    writer.add_head_count_kv([0, heads])
    writer.add_key_length(width // heads)
    writer.add_value_length(width // heads)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_inner_size(width)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(heads)
    writer.add_ssm_group_count(0)

    shapes = {
        "token_embd.weight": (len(reader.fields["tokenizer.ggml.tokens"].data), width),
        "output_norm.weight": (width,),
        "blk.0.ssm_in.weight": (2 * width, width),
        "blk.0.ssm_conv1d.weight": (width, 4),
        "blk.0.ssm_x.weight": (step + 2 * state, width),
        "blk.0.ssm_dt.weight": (heads, step),
        "blk.0.ssm_dt.bias": (heads,),
        "blk.0.ssm_a": (heads,),
        "blk.0.ssm_d": (heads,),
        "blk.0.ssm_out.weight": (width, width),
        "blk.0.ssm_dt_norm": (step,),
        "blk.0.ssm_b_norm": (state,),
        "blk.0.ssm_c_norm": (state,),
        "blk.1.attn_qkv.weight": (3 * width, width),
        "blk.1.attn_q_norm.weight": (heads, width // heads),
        "blk.1.attn_k_norm.weight": (heads, width // heads),
        "blk.1.attn_output.weight": (width, width),
    }
    for block in ("blk.0.", "blk.1."):
        for name in ("attn_norm.weight", "ffn_norm.weight", "post_attention_norm", "post_ffw_norm"):
            shapes[block + name] = (width,)
        shapes |= {f"{block}ffn_up.weight": (2 * inner, width), f"{block}ffn_down.weight": (width, inner)}
    draw = np.random.default_rng(0)
    for name, shape in shapes.items():
        numbers = np.ones(shape) if "norm" in name else draw.normal(0, 0.2, shape)
        writer.add_tensor(name, (-np.abs(numbers) if "ssm_a" in name else numbers).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
