"""What this machine has, and what the user set."""
