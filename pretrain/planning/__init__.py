"""Before the money is spent: how large, how long, at which rate, in how much memory, at what price.

Formulas and fits only: nothing here trains, and nothing is measured but what the user measured.
"""

from __future__ import annotations
