"""What a run leaves in its folder, and whether that can be trusted."""
