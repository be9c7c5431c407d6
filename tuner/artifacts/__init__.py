"""The files in a run's folder: writing them whole, and checking them when they are read."""
