"""Trainers that need no rollouts. Each is thin, on TRL, which is imported when one of them runs."""
