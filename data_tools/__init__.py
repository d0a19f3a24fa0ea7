"""Tools that turn text into the token datasets that the trainer reads; run them with `python -m data_tools COMMAND`.

text -> `corpus` (or your own files) -> `train-tokenizer` (or a tokenizer of the Hub) -> `tokenize` -> token shards with
their manifest -> smol_data -> trainer. This package imports smol_data and smol_config, never the trainer.
"""
