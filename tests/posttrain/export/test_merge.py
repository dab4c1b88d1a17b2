"""Adapters and their bases: every kind merges to what PEFT computes, and a stranger is refused."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

from posttrain.cli import main
from posttrain.errors import RunError, UsageError
from posttrain.export import merge as merging
from posttrain.export.merge import merge

KINDS = {
    "lora": {},
    "dora": {"use_dora": True},
    "rslora": {"use_rslora": True},
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embeddings": {"target_modules": ["q_proj", "embed_tokens"]},
    "whole norm": {"modules_to_save": ["norm"]},
}
IDS = torch.arange(4, 44)[None]


def adapter_of(base, folder, **settings):
    """A folder with an adapter whose parts are all random."""
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    defaults = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    model = get_peft_model(model, LoraConfig(**(defaults | settings)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name or "modules_to_save" in name:
                noise = torch.randn_like(parameter) * 0.05
                parameter.mul_(1 + noise) if "magnitude" in name else parameter.add_(noise)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def adapter(checkpoint, tmp_path_factory):
    return adapter_of(checkpoint, tmp_path_factory.mktemp("adapter") / "a")


@torch.inference_mode()
def logits_of(model):
    return model(IDS).logits


def printed(capsys):
    return json.loads(capsys.readouterr().out)


@pytest.mark.filterwarnings("ignore:Model has")
@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_computes_what_peft_does(checkpoint, kind, tmp_path, capsys):
    folder = adapter_of(checkpoint, tmp_path / "adapter", **KINDS[kind])
    out = tmp_path / "deep" / "merged"
    assert main(["merge", str(folder), "--out", str(out)]) == 0
    result = printed(capsys)
    base = AutoModelForCausalLM.from_pretrained(checkpoint)
    plain = logits_of(base)
    if kind == "embeddings":  # the head of the base is tied to them, and PEFT leaves it alone
        base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    unmerged = logits_of(PeftModel.from_pretrained(base, folder).eval())
    merged = logits_of(AutoModelForCausalLM.from_pretrained(out))
    assert (merged - unmerged).abs().max() < 1e-4
    assert (unmerged - plain).abs().mean() > 0.01
    assert result["largest_gap"] < 1e-3 and result["rounding_gap"] < 1e-6
    assert result["adapter_effect"] > 0.01
    assert AutoTokenizer.from_pretrained(out).chat_template
    ends = json.loads((out / "generation_config.json").read_text())["eos_token_id"]
    assert ends == [3, 0]  # the template's end of turn, then the end of text
    assert [path.name for path in out.parent.iterdir()] == ["merged"]


def test_bfloat16_is_rounded_once_and_shards_are_bounded(checkpoint, adapter, tmp_path, capsys):
    out = tmp_path / "merged"
    options = ["--dtype", "bfloat16", "--max-shard", "50KB"]
    assert main(["merge", str(adapter), "--out", str(out), *options]) == 0
    assert 1e-4 < printed(capsys)["rounding_gap"] < 0.2
    assert len(list(out.glob("*.safetensors"))) > 1
    exact = merge(adapter).model.state_dict()
    for path in out.glob("*.safetensors"):
        for name, tensor in load_file(path).items():
            assert torch.equal(tensor, exact[name].bfloat16()), name
    assert oct(next(out.glob("*.safetensors")).stat().st_mode)[-3:] == "644"


def test_another_model_is_refused_by_its_shapes_and_layers(checkpoint, adapter, tmp_path):
    config = Qwen3Config.from_pretrained(checkpoint)
    config.intermediate_size = 96
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "narrow")
    config = Qwen3Config.from_pretrained(checkpoint)
    config.num_hidden_layers, config.layer_types = 1, ["full_attention"]
    Qwen3ForCausalLM(config).save_pretrained(tmp_path / "shallow")
    with pytest.raises(UsageError, match=r"shapes differ, the first: .*mlp.*the layer is"):
        merge(adapter, str(tmp_path / "narrow"))
    with pytest.raises(UsageError, match=r"7 layers .* not there, the first: model\.layers\.1"):
        merge(adapter, str(tmp_path / "shallow"))


def test_another_name_is_noted_only(checkpoint, adapter, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "copy")
    assert "it was trained on" in merge(adapter, str(tmp_path / "copy")).notes[0]
    assert merge(adapter, str(checkpoint)).notes == ()


def test_a_quantised_base_is_refused_with_the_way_out(checkpoint, adapter, tmp_path):
    shutil.copytree(checkpoint, tmp_path / "4bit")
    config = json.loads((tmp_path / "4bit" / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (tmp_path / "4bit" / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="quantised.*--base with the original"):
        merge(adapter, str(tmp_path / "4bit"))


def test_a_base_that_moved_is_asked_for(adapter, tmp_path):
    moved = shutil.copytree(adapter, tmp_path / "a")
    config = json.loads((moved / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = str(tmp_path / "gone")
    (moved / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="does not exist.*give --base"):
        merge(moved)


def test_a_tensor_that_is_missing_is_not_left_at_its_start(adapter, tmp_path):
    torn = shutil.copytree(adapter, tmp_path / "a")
    tensors = load_file(torn / merging.WEIGHTS)
    del tensors["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"]
    save_file(tensors, torn / merging.WEIGHTS)
    with pytest.raises(UsageError, match=r"differ in 1 tensors, the first: .*up_proj\.lora_B"):
        merge(torn)


def test_prompt_tuning_can_not_be_merged(checkpoint, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(model, config).save_pretrained(tmp_path / "a")
    with pytest.raises(UsageError, match="PROMPT_TUNING adapter has no weights"):
        merge(tmp_path / "a", str(checkpoint))


def test_a_merge_that_went_wrong_is_not_written(checkpoint, adapter, tmp_path, monkeypatch):
    """A PEFT that merges half of what it should."""
    from peft.tuners.lora import Linear

    real = Linear.get_delta_weight
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, name: real(self, name) / 2)
    with pytest.raises(RunError, match="merged and unmerged model disagree"):
        merge(adapter)
    assert main(["merge", str(adapter), "--out", str(tmp_path / "out")]) == 1
    assert list(tmp_path.iterdir()) == []


def test_an_untrained_adapter_is_said_to_be_one(checkpoint, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    config = LoraConfig(r=2, target_modules=["q_proj"])
    get_peft_model(model, config).save_pretrained(tmp_path / "a")
    assert merge(tmp_path / "a", str(checkpoint)).notes == (
        "the adapter changes nothing: it was never trained",
    )


def test_a_folder_that_is_taken_or_no_adapter_is_bad_input(checkpoint, adapter, tmp_path, capsys):
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "file").touch()
    assert main(["merge", str(adapter), "--out", str(tmp_path / "taken")]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main(["merge", str(checkpoint), "--out", str(tmp_path / "out")]) == 2
    assert "not a PEFT adapter" in capsys.readouterr().err
