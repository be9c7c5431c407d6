"""A tuned prompt at work: classify, bake, share."""
