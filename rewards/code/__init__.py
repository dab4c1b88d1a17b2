"""A reward for programs: extracted from the response, run in a sandbox, judged from outside it.

``score`` is the whole of it; ``check_rows`` finds a row without tests before a run does.
"""

from rewards.code.cases import Call, Hidden, Run, check_rows
from rewards.code.scoring import Policy, code, score

__all__ = ["Call", "Hidden", "Policy", "Run", "check_rows", "code", "score"]
