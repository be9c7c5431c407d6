"""Tasks: what is asked of the model, and which words are its answers."""
