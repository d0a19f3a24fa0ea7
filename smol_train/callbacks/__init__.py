"""One concern a file; base.py is the whole contract."""
