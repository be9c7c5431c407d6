"""bbt-fast: Black-Box Tuning as fast as the hardware allows."""
