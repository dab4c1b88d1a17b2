import pytest
from pydantic import ValidationError

from posttrain.config import GrpoConfig, load_config, make_config, settings_table
from posttrain.errors import UsageError

MINIMAL = {"model": "m", "env": "e"}


def test_toml_then_overrides_in_order(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text('model = "m"\nenv = "e"\n[grpo]\nsteps = 7\n[rollout]\nengine = "embedded"\n')
    config = load_config(path, ["grpo.steps=9", "learner.learning_rate=1e-3", "run_dir=runs/x"])
    assert (config.grpo.steps, config.learner.learning_rate) == (9, 1e-3)
    assert (config.rollout.engine, config.run_dir) == ("embedded", "runs/x")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("grpo.stepz=3", "unknown setting 'grpo.stepz'; did you mean 'grpo.steps'?"),
        ("steps=3", "unknown setting 'steps'; did you mean 'grpo.steps'?"),
        ("lerner.ranks=2", "unknown setting 'lerner'; did you mean 'learner'?"),
        ("grpo.steps=0", "'grpo.steps': Input should be greater than or equal to 1, got 0"),
        ("learner.ranks=two", "'learner.ranks': Input should be a valid integer"),
        ("learner.zero_stage=4", "'learner.zero_stage': Input should be less than or equal to 3"),
        ("rollout.engine=sglang", "'rollout.engine': Input should be 'auto', 'vllm' or 'embedded'"),
        ("grpo.group_size=1", "'grpo.group_size': Input should be greater than or equal to 2"),
        ("grpo", "override 'grpo' is not of the form section.key=value"),
        ("model.x=1", "model is a value, not a section"),
    ],
)
def test_a_bad_setting_is_named(tmp_path, override, message):
    path = tmp_path / "job.toml"
    path.write_text('model = "m"\nenv = "e"\n')
    with pytest.raises(UsageError, match=".*") as error:
        load_config(path, [override])
    assert message in str(error.value)


def test_every_fault_gets_its_line():
    with pytest.raises(UsageError) as error:
        make_config({"grpo": {"steps": -1, "stepz": 1}})
    assert len(str(error.value).splitlines()) == 4  # two required, one range, one unknown


def test_bad_toml_says_where(tmp_path):
    path = tmp_path / "job.toml"
    path.write_text("model = \n")
    with pytest.raises(UsageError, match="line 1"):
        load_config(path)
    with pytest.raises(UsageError, match="No such file"):
        load_config(tmp_path / "none.toml")


def test_a_config_is_frozen_and_survives_the_run_directory():
    config = make_config(MINIMAL)
    with pytest.raises(ValidationError):
        config.grpo.steps = 3
    assert GrpoConfig.model_validate(config.model_dump(mode="json")) == config


def test_fewer_than_60_settings_each_with_a_sentence():
    table = settings_table()
    assert len(table) < 60
    assert [name for name, _, description in table if not description] == []
