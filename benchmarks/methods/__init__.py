"""The methods that ``compare`` compares; each is a row of ``table.METHODS``."""
