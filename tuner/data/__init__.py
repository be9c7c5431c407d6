"""Data: from files and hub to the encoded examples that a run learns from and is judged by."""
