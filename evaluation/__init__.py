"""How good a model is. Works on Hugging Face folders and imports nothing of the trainer."""
