"""Environments of other frameworks as ours, and ours as theirs.

``verifiers`` has ``envs.load("verifiers:NAME")`` and ``from_verifiers``, ``openenv`` speaks to an
OpenEnv server, ``trl`` translates reward functions and environment factories both ways. Each
package is imported when it is asked for.
"""
