"""Load a model, stop it safely, and give its memory back."""
