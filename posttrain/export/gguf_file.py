"""Writes a model as one GGUF file, llama.cpp's format, and proves it by reading it back.

Decides for which models: those whose names and layouts are plain (Qwen2, Qwen3, Llama without
scaled rotary embeddings), and whose tokenizer splits text as one that llama.cpp has by name. Names
of tensors are the ``gguf`` package's, and so is the rounding. transformers, which reads GGUF with
code of its own, must then find the same tokens and the same log-probs, up to rounding.

Left out: the mixed kinds (Q4_K_M and the like), which llama.cpp's own ``llama-quantize`` makes of
the f16 file; mixtures of experts; sentencepiece vocabularies.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from posttrain.errors import RunError, UsageError
from posttrain.export.probe import logprobs, probe_of

KINDS = ("f32", "f16", "q8_0")
_ARCHITECTURES = {"qwen2": "QWEN2", "qwen3": "QWEN3", "llama": "LLAMA"}
_MOST_GAP = {"f32": 1e-3, "f16": 0.05, "q8_0": 0.5}  # mean of the log-probs on the probe
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5  # llama.cpp's kinds of tokens
_SAMPLE = "It's 12 + 345 = 357.\n\n  def f(x):\n\treturn x*2  # größer 東京 🙂  don't  \r\n end"


def check_gguf(kind: str, model_config: Any, tokenizer: Any) -> None:
    """Raises UsageError when this model can't be written so."""
    if kind not in KINDS:
        raise UsageError(f"a GGUF file can be {', '.join(KINDS)}, not {kind!r}")
    if importlib.util.find_spec("gguf") is None:
        raise UsageError("a GGUF file needs: pip install 'posttrain[export]'")
    if model_config.model_type not in _ARCHITECTURES:
        raise UsageError(
            f"GGUF: models of the type {model_config.model_type} are not written here, those of "
            f"{', '.join(_ARCHITECTURES)} are; llama.cpp's own converter reads this folder"
        )
    rope = model_config.rope_parameters["rope_type"]
    if rope != "default":
        raise UsageError(f"GGUF: rotary embeddings of the type {rope} are not written here")
    _splitting(tokenizer)


def write_gguf(model: Any, tokenizer: Any, path: Path, kind: str) -> float:
    """Write the file and read it back; the mean gap of the log-probs. Raises RunError."""
    import gguf

    config = model.config
    name = _ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, config.model_type)
    _describe(writer, config, path.stem, kind)
    _write_tokenizer(writer, tokenizer, config)
    names = gguf.get_tensor_name_map(getattr(gguf.MODEL_ARCH, name), config.num_hidden_layers)
    for own, tensor in _tensors(model):
        found = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if found is None:
            raise UsageError(f"GGUF has no name for the tensor {own}")
        values = _arranged(own, tensor, config).float().cpu().numpy()
        data, stored = _rounded(values, kind)
        writer.add_tensor(found, data, raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return _proven(model, tokenizer, path, kind)


def _describe(writer: Any, config: Any, name: str, kind: str) -> None:
    import gguf

    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    types = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "q8_0": "MOSTLY_Q8_0"}
    writer.add_name(name)
    writer.add_file_type(getattr(gguf.LlamaFileType, types[kind]))
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)


def _tensors(model: Any) -> list[tuple[str, Tensor]]:
    """Every tensor once: a tied head is told by its absence."""
    tied = model.config.tie_word_embeddings
    return [
        (name, tensor.detach())
        for name, tensor in model.state_dict().items()
        if not (tied and name == "lm_head.weight")
    ]


def _arranged(name: str, tensor: Tensor, config: Any) -> Tensor:
    """llama.cpp rotates neighbouring pairs in Llama's heads, transformers the two halves."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = heads.get(name.split(".")[-2])
    if config.model_type != "llama" or count is None:
        return tensor
    halves = tensor.reshape(count, 2, tensor.shape[0] // count // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _rounded(values: np.ndarray, kind: str) -> tuple[np.ndarray, Any]:
    """Matrices in the kind asked for, where their rows divide into its blocks; vectors in f32."""
    import gguf

    types = gguf.GGMLQuantizationType
    if values.ndim < 2 or kind == "f32":
        return values, types.F32
    if kind == "f16" or values.shape[-1] % 32:
        return values.astype(np.float16), types.F16
    return gguf.quants.quantize(values, types.Q8_0), types.Q8_0


def _splitting(tokenizer: Any) -> str:
    """llama.cpp's name of the way the tokenizer cuts text into pieces. Raises UsageError."""
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

    written = json.loads(tokenizer.backend_tokenizer.to_str())
    steps = (written["pre_tokenizer"] or {}).get("pretokenizers", [])
    used = [step["pattern"].get("Regex") for step in steps if step["type"] == "Split"]
    for name in ("qwen2", "llama-bpe", "gpt-4o", "tekken"):
        if written["model"]["type"] == "BPE" and used == [GGUF_PRE_TOKENIZER_SPLITS[name]]:
            return name
    raise UsageError(
        "GGUF: llama.cpp knows tokenizers by name, and none of its cuts text as this one does; in "
        "llama.cpp the model would read other tokens than it was trained on"
    )


def _write_tokenizer(writer: Any, tokenizer: Any, config: Any) -> None:
    written = json.loads(tokenizer.backend_tokenizer.to_str())
    added = {token["id"]: token for token in written["added_tokens"]}
    tokens, types = [], []
    for place in range(config.vocab_size):
        token = tokenizer.convert_ids_to_tokens(place) if place < len(tokenizer) else None
        tokens.append(token if token is not None else f"[PAD{place}]")
        kind = _NORMAL if token is not None else _UNUSED
        if place in added:
            kind = _CONTROL if added[place]["special"] else _USER_DEFINED
        types.append(kind)
    merges = [m if isinstance(m, str) else " ".join(m) for m in written["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_splitting(tokenizer))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges(merges)
    _write_ends(writer, tokenizer)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def _write_ends(writer: Any, tokenizer: Any) -> None:
    from transformers import GenerationConfig

    from posttrain.chat import end_ids

    ends = end_ids(tokenizer, GenerationConfig())
    if ends:
        writer.add_eos_token_id(ends[0])  # of a turn, where there is a template: llama.cpp stops
    if tokenizer.pad_token_id is not None:
        writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(tokenizer.encode("a")[:1] == [tokenizer.bos_token_id])


def _proven(model: Any, tokenizer: Any, path: Path, kind: str) -> float:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    where = {"pretrained_model_name_or_path": str(path.parent), "gguf_file": path.name}
    read = AutoTokenizer.from_pretrained(**where)
    if read.encode(_SAMPLE) != tokenizer.encode(_SAMPLE):
        raise RunError(f"the tokenizer read back from {path.name} gives other tokens")
    try:
        again = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32).eval()
    except (RuntimeError, ValueError) as error:
        raise RunError(f"{path.name} could not be read back: {error}") from error
    probe = probe_of(tokenizer, model)
    exact = logprobs(model.float(), probe)
    gap = float((logprobs(again.to(model.device), probe) - exact).abs().mean())
    if not gap <= _MOST_GAP[kind]:
        raise RunError(
            f"{path.name} read back differs: mean log-prob gap {gap:.2g}, the limit for {kind} is "
            f"{_MOST_GAP[kind]:g}"
        )
    return gap
