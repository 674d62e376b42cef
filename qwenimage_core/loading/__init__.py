"""From a `ModelConfig`, a hub id or a folder to components: where files are, what they hold, how they are built."""
