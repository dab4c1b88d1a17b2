"""Tasks and environments: what a policy is trained and evaluated on.

``envs.protocol`` is the contract. ``envs.load`` finds an environment by name, file or data set,
``envs.from_tasks`` makes one of rows and a reward, ``envs.register`` adds one, ``envs.check``
proves it sane. Importing this package is cheap: reasoning-gym, datasets and pyarrow come when used.
"""

import envs.kinds  # noqa: F401  registers them
from envs.checking import CheckReport, Failure, check
from envs.data import DataTasks
from envs.function_env import Model, from_function
from envs.generated import GeneratedTasks, generated
from envs.loading import from_tasks, is_data, load, names, register
from envs.mixed_env import Part, mixed
from envs.mixing import Curriculum, Mixture, pass_rates, read_rates, write_rates
from envs.protocol import (
    Budget,
    EndReason,
    Env,
    Environment,
    Message,
    Step,
    Task,
    TaskSource,
    ToolSpec,
    instant,
)
from envs.reasoning_pool import shutdown
from envs.second_try import SecondTry
from envs.single_turn import Episodes, SingleTurn, case_of, user
from envs.splitting import held_out, question_of
from envs.tools import ToolEnv, ToolFailure, tool_spec
from rewards import UsageError

__all__ = [
    "Budget",
    "CheckReport",
    "Curriculum",
    "DataTasks",
    "EndReason",
    "Env",
    "Environment",
    "Episodes",
    "Failure",
    "GeneratedTasks",
    "Message",
    "Mixture",
    "Model",
    "Part",
    "SecondTry",
    "SingleTurn",
    "Step",
    "Task",
    "TaskSource",
    "ToolEnv",
    "ToolFailure",
    "ToolSpec",
    "UsageError",
    "case_of",
    "check",
    "from_function",
    "from_tasks",
    "generated",
    "held_out",
    "instant",
    "is_data",
    "load",
    "mixed",
    "names",
    "pass_rates",
    "question_of",
    "read_rates",
    "register",
    "shutdown",
    "tool_spec",
    "user",
    "write_rates",
]
