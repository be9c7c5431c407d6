"""Data: from files and the hub to encoded training, development and test examples."""
