"""A model behind an API: `bbt-fast serve` answers the engine `remote`, and classifies texts."""
