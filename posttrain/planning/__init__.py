"""``posttrain plan``: memory, time and cost of a run before it starts.

``workload`` is what a step will have to do, ``calibration`` times it on this machine, ``plan``
makes the numbers and ``plan_text`` shows them.
"""
