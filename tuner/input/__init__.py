"""The user's input: options, their types and ranges, and YAML files."""
