"""Evaluation of a finished model on named benchmarks, with the loop's own engine and rewards.

``benchmarks`` says what each one asks and how it is judged, ``sources`` where its rows come from,
``running`` plays them, ``statistics`` makes numbers of the scores, ``results`` keeps and compares
them.
"""
