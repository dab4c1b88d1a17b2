"""From raw pages to training shards: steps over documents, run by datatrove's executors."""
