"""Getting a model out: an adapter merged, a checkpoint rounded, described and measured."""
