"""The use of a tuned prompt: classify, bake, share."""
