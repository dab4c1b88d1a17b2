"""GRPO teaches a model to use its calculator. Argument: a base checkpoint (runs/quickstart/base).

The environment is a class whose public methods are tools (``Calculator``). Fine-tuning shows the
model both ways to a product of two-digit numbers: saying it at once, which a model of this size
gets wrong, and calling the tool and repeating its result. It does mostly the former. GRPO sees only
whether the final answer is right, and tokens that the tool wrote carry no loss. Prints held-out
accuracy before and after, and tool calls per episode in the first and last step, as one line of
JSON.
"""

import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import envs
import posttrain
from envs import Message, Task

# The JSON schema of a tool is longer than the rest of a small model's window: tools are named by
# their parameters here. What a call looks like is Hermes' form.
TEMPLATE = """\
{%- if tools -%}
{{- '<|im_start|>system\\n' -}}
{%- for tool in tools -%}
{{- tool.function.name + '(' + tool.function.parameters.properties | join(', ') + ')\\n' -}}
{%- endfor -%}
{{- '<tool_call><|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' + message.role + '\\n' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}
{{- message.content or '' -}}
{%- for call in message.tool_calls or [] -%}
{{- '<tool_call>{"name": ' + call.function.name | tojson + ', "arguments": ' -}}
{{- call.function.arguments | tojson + '}</tool_call>' -}}
{%- endfor -%}
{{- '<|im_end|>' -}}
{%- endgeneration -%}
{%- else -%}
{{- message.content + '<|im_end|>' -}}
{%- endif -%}
{{- '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"""


class Calculator(envs.ToolEnv):
    """One question, and a tool that knows the answer."""

    def multiply(self, a: int, b: int) -> int:
        """The product of a and b."""
        return a * b

    def judge(self, message: Message) -> bool:
        return str(message["content"]).strip() == self.task.answer


def draw(rng: random.Random) -> Task:
    a, b = rng.randint(11, 99), rng.randint(11, 99)
    return Task(f"{a}*{b}", (envs.user(f"{a} * {b}"),), answer=str(a * b), columns={"a": a, "b": b})


@envs.register("calculator")
def calculator(seed: int = 0) -> envs.Environment:
    tasks = envs.generated(draw, seed=seed)
    return envs.Episodes("calculator", tasks, Calculator, envs.Budget(turns=3))


def rows(n: int, tool_share: float) -> list[dict[str, Any]]:
    """Conversations that answer at once, or by way of the tool."""
    tasks, rng = calculator(seed=1).tasks, random.Random(0)
    tools = [spec.as_openai() for spec in Calculator().tools()]
    found = []
    for i in range(n):
        task = tasks.train(i)
        answer = {"role": "assistant", "content": task.answer}
        if rng.random() < tool_share:
            arguments = {"a": task.columns["a"], "b": task.columns["b"]}
            call = {"type": "function", "function": {"name": "multiply", "arguments": arguments}}
            asked = {"role": "assistant", "content": "", "tool_calls": [call]}
            told = {"role": "tool", "name": "multiply", "content": task.answer}
            messages = [*task.messages, asked, told, answer]
        else:
            messages = [*task.messages, answer]
        found.append({"messages": messages, "tools": tools})
    return found


def with_template(base: Path, out: Path) -> Path:
    """The checkpoint under a chat template that knows tools."""
    import shutil

    from transformers import AutoTokenizer

    shutil.copytree(base, out)
    tokenizer = AutoTokenizer.from_pretrained(out)
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(out)
    return out


def main() -> None:
    started = time.time()
    base = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/quickstart/base")
    work = Path("runs") / time.strftime("tool-use-%Y%m%d-%H%M%S")
    work.mkdir(parents=True)
    start = posttrain.sft(
        with_template(base, work / "base"),
        rows(8000, tool_share=0.4),
        work / "sft",
        learning_rate=1e-3,
        epochs=3.0,
        packing="batch",
    )
    run = posttrain.grpo(
        model=start,
        env="calculator",
        steps=40,
        prompts_per_step=16,
        rollout={"max_tokens": 64},
        learner={"learning_rate": 1e-4},
        evaluation={"tasks": 300},
        run_dir=work / "grpo",
    )
    steps = [json.loads(line) for line in (run.path / "metrics.jsonl").open()]
    calls = [one["env_info"].get("tool_calls", 0.0) for one in steps if one["kind"] == "step"]
    told = {name: run.summary[name] for name in ("accuracy_before", "accuracy_after", "run_dir")}
    told |= {"tool_calls_first": calls[0], "tool_calls_last": calls[-1]}
    print(json.dumps(told | {"wall_s": round(time.time() - started, 1)}))


if __name__ == "__main__":
    main()
