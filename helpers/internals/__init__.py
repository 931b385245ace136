"""What the lessons rely on and do not show; a room a folder."""
