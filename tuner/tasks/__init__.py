"""Tasks: templates, label words, and the papers' presets."""
