"""A puzzle of reasoning-gym, at once and with a second try.

    python scripts/environments/games.py

Its data sets are one question and one scored answer each, so an episode has one turn;
``second_try`` makes two of it. The policy is scripted: it answers by computing the sum.
"""

from typing import Any

from scripted import play

import envs


def main() -> Any:
    once = envs.load("reasoning_gym:chain_sum", min_terms=2, max_terms=2)
    right = once.tasks.train(0).answer
    play(once, [str(right)])
    twice = envs.load("second_try", inner="reasoning_gym:chain_sum", min_terms=2, max_terms=2)
    return play(twice, ["0", str(right)])


if __name__ == "__main__":
    main()
    envs.shutdown()
