"""Tasks that need no download: lm-eval's task files, and the modules that make their questions."""
