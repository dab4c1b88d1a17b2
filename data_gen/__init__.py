"""Synthetic data from any OpenAI-compatible server: SFT examples, preferences, tasks, text.

    data = data_gen.rejection_sample("reasoning_gym:chain_sum", server, "data/sums", n_tasks=500)

Each generator is a function that returns a ``datasets.Dataset`` and a command (``data_gen rejection
config.toml``); the same call again goes on after an interruption. Read in this order: ``records``
(what is made), ``pipeline`` (how), ``store`` (what is on disk), ``writing`` (what generators that
ask for text share), then a generator.
"""

from data_gen import content_filters as _content_filters  # noqa: F401  registers them
from data_gen.agentic import agentic
from data_gen.boundary import knowledge_boundary
from data_gen.constitutional import constitutional
from data_gen.documents import back_translate, questions
from data_gen.errors import GenerationError, Unanswered, UsageError
from data_gen.evolving import evolve
from data_gen.filters import register as register_filter
from data_gen.identity import identity
from data_gen.instructions import self_instruct
from data_gen.keep import rule
from data_gen.magpie import magpie
from data_gen.personas import personas
from data_gen.preferences import preferences
from data_gen.records import Provenance, Record
from data_gen.rejection import rejection_sample
from data_gen.rephrase import rephrase
from data_gen.servers import Reply, Server, Servers
from data_gen.templated import templated
from data_gen.votes import votes

__all__ = [
    "GenerationError",
    "Provenance",
    "Record",
    "Reply",
    "Server",
    "Servers",
    "Unanswered",
    "UsageError",
    "agentic",
    "back_translate",
    "constitutional",
    "evolve",
    "identity",
    "knowledge_boundary",
    "magpie",
    "personas",
    "preferences",
    "questions",
    "register_filter",
    "rejection_sample",
    "rephrase",
    "rule",
    "self_instruct",
    "templated",
    "votes",
]
