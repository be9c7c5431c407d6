"""What a user may say, and how what cannot be meant is refused."""
