"""Python functions as tools: type hints are the schema, the docstring is the description.

    python scripts/environments/tools.py

The policy is scripted; it writes one call with a wrong argument and reads what is wrong with it.
``scripts/tool_use.py`` trains a model on tools.
"""

import json
from typing import Annotated, Any, Literal

from scripted import call, play

import envs


class Weather(envs.ToolEnv):
    def temperature(
        self,
        city: Annotated[str, "its English name"],
        unit: Literal["celsius", "fahrenheit"] = "celsius",
    ) -> float:
        """The temperature in a city right now."""
        celsius = {"Oslo": 4.0, "Lima": 19.0}[city]
        return celsius if unit == "celsius" else celsius * 9 / 5 + 32

    def judge(self, message: envs.Message) -> bool:
        return bool(self.task.answer in message["content"])


@envs.register("weather")
def weather() -> envs.Environment:
    question = envs.user("How warm is it in Lima, in Fahrenheit?")
    tasks = envs.generated(
        lambda rng: envs.Task("lima", (question,), answer="66.2"), held_out_percent=0
    )
    return envs.Episodes("weather", tasks, Weather, envs.Budget(turns=4))


POLICY = [
    call("temperature", city="Lima", unit="kelvin"),
    call("temperature", city="Lima", unit="fahrenheit"),
    "It is 66.2 degrees.",
]


def main() -> Any:
    print(json.dumps(Weather().tools()[0].as_openai()))
    return play(envs.load("weather"), POLICY)


if __name__ == "__main__":
    main()
