"""Made data: rows of preference and of chats, from models behind an OpenAI-compatible endpoint. Stands before preparation.

    config.py     what is made of which prompts, by which models
    client.py     one request, tried again where that can help; tokens and costs
    makers.py     one prompt -> one row, or why there is none: pairs, graded, instructions
    rows.py       the rows on disk, one durable line each; what is there is not made again
    run.py        the command

Rows are what sources.py reads: `{kind: preference, path: OUT/rows.jsonl}`, for instructions `{kind: chat, ...}`.
"""
