r"""Mathematical answers: what a response's final answer is, and whether it equals the gold one.

``score(response, gold)`` goes through tiers, cheapest first, and says in ``detail`` which one
decided:

``string``      the two texts are the same once spacing and synonyms are gone
``exact``       rational arithmetic, and rational functions of variables
``structure``   lists, tuples, sets, intervals, matrices, relations, units, percent, words
``symbolic``    values to 60 digits, in a worker process
``sympy``       math-verify on latex2sympy2-extended, in a worker process

Nothing is ever evaluated as code; lengths, digits, exponents and nesting are bounded before
anything is computed; what may still be slow runs in processes that are killed on a deadline. What
is equal by policy (rounding, percent, units, order, ...) is written down in ``docs/math.md``.

Start reading at ``rewards.math.scoring``; ``rewards.math.answer`` decides what the answer is,
``rewards.math.structure`` when two are equal.
"""

from rewards.math.answer import final_answer
from rewards.math.one_number import final_number, gold_number, gsm8k
from rewards.math.scoring import math, score, score_batch

__all__ = [
    "final_answer",
    "final_number",
    "gold_number",
    "gsm8k",
    "math",
    "score",
    "score_batch",
]
