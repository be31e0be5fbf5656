"""The sample model as a GGUF file in fp32: the very numbers that the transformers folder holds."""

from __future__ import annotations

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
