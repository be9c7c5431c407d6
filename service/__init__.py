"""A model behind an API: `bbt-fast serve` answers what the engine `remote` asks, and classifies texts."""
