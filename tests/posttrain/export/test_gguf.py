"""GGUF files, read back by transformers' own reader: the same tokens and the same log-probs."""

import gguf
import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS

from posttrain.errors import RunError, UsageError
from posttrain.export import gguf_file
from posttrain.export.export import Wishes, export
from pretrain.tokenizer import CHAT_TEMPLATE

SMALL = {
    "hidden_size": 128,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
}
MODELS = {
    # transformers reads no head_dim from the file: Qwen3's must be the one of its real models.
    "qwen3": lambda n: Qwen3ForCausalLM(
        Qwen3Config(vocab_size=n, num_key_value_heads=1, head_dim=128, **SMALL)
    ),
    "qwen2": lambda n: Qwen2ForCausalLM(
        Qwen2Config(vocab_size=n, num_key_value_heads=1, tie_word_embeddings=True, **SMALL)
    ),
    "llama": lambda n: LlamaForCausalLM(LlamaConfig(vocab_size=n, num_key_value_heads=1, **SMALL)),
}


def tokenizer_like(name):
    """A byte-level tokenizer that splits as llama.cpp's ``name`` does."""
    tokenizer = Tokenizer(models.BPE())
    split = Regex(GGUF_PRE_TOKENIZER_SPLITS[name])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["don't return the value of 12 and 345 then"] * 50, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|im_start|>", "<|im_end|>"],
        chat_template=CHAT_TEMPLATE,
    )


def checkpoint_of(kind, folder):
    torch.manual_seed(0)
    tokenizer = tokenizer_like("llama-bpe" if kind == "llama" else "qwen2")
    model = MODELS[kind](len(tokenizer) + 6)  # rows without a token, as real models have
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # norms and biases that are not ones and zeros
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "written", "most"),
    [
        ("qwen3", "f32", 1e-5),
        ("qwen2", "f32", 1e-5),
        ("llama", "f32", 1e-5),
        ("qwen3", "f16", 0.01),
        ("qwen3", "q8_0", 0.2),
    ],
)
def test_what_is_read_back_is_the_model(kind, written, most, tmp_path):
    source = checkpoint_of(kind, tmp_path / "source")
    done = export(source, tmp_path / "out", Wishes(gguf=written))
    where = {"gguf_file": f"out-{written}.gguf"}
    again = AutoModelForCausalLM.from_pretrained(done.path, dtype=torch.float32, **where)
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    ids = torch.randint(0, 250, (2, 40), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        gap = (again(ids).logits - model(ids).logits).abs()
    assert gap.mean() < most
    assert again.config.tie_word_embeddings == model.config.tie_word_embeddings
    text = "It's 12 + 345.\n\n  return <|im_start|> é"
    own = AutoTokenizer.from_pretrained(source)
    read = AutoTokenizer.from_pretrained(done.path, **where)
    assert read.encode(text) == own.encode(text)
    fields = gguf.GGUFReader(done.path / where["gguf_file"]).fields
    ends = fields["tokenizer.ggml.eos_token_id"].contents()
    assert own.convert_ids_to_tokens(ends) == "<|im_end|>"  # what ends a turn, for llama.cpp
    assert "read back by transformers" in (done.path / "README.md").read_text()


def test_a_tokenizer_that_llama_cpp_does_not_have_is_refused(checkpoint, tmp_path):
    with pytest.raises(UsageError, match="none of its cuts text as this one"):
        export(checkpoint, tmp_path / "out", Wishes(gguf="f16"))
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_does_not_read_back_the_same_is_not_kept(tmp_path, monkeypatch):
    """Without the arrangement that Llama's heads need."""
    source = checkpoint_of("llama", tmp_path / "source")
    monkeypatch.setattr(gguf_file, "_arranged", lambda name, tensor, config: tensor)
    with pytest.raises(RunError, match="read back differs"):
        export(source, tmp_path / "out", Wishes(gguf="f32"))
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
