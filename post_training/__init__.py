"""Post-training of Hugging Face folders: thin recipes over TRL, fed by data that is rendered, masked and checked beforehand.

    chat_model.py      a base model's folder -> one whose tokenizer knows chats
    config.py          the `data:` section: sources, mixture, template, lengths
    sources.py         JSONL, Parquet, Hub datasets -> records; normalise.py: records -> samples of four kinds
    template.py        samples -> text, token ids and loss mask, by templates/*.jinja; answers back into their parts
    scan.py            one file of a source -> tokenised samples on disk, with counts of what is wrong
    mixture.py         which samples are drawn, how often, in which order; packing
    checks.py          findings: what is refused, what is warned of
    prepare.py         all of it -> Arrow files and manifest.json, which the trainers read
    preview.py         the same, to look at before training
    rewards.py         what a sampled answer is worth
    recipes/           mid, sft, preference, grpo
    synth/             rows made by other models

Nothing of the trainer is imported, and nothing here needs a GPU.
"""
