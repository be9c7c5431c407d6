"""The algorithms: which candidates to ask about next, and what their answers are worth."""
