"""What the user sees: live progress, and the table at the end."""
