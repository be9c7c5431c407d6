"""What black-box tuning is compared with: each method a file, and a row of ``table.METHODS``."""
