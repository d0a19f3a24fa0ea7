"""Questions from held-out text, a domain at a time: passages for bits per byte, and cloze questions.

    TEXT/DOMAIN/*.jsonl, one {"text": ...} a line  -->  passages of about `characters` characters  -->  questions

`text` is TEXT: the suite's `data: {text: ...}`, or `--metadata '{"text": ...}'` of lm-eval's own command. A cloze question is
the beginning of a passage with four continuations of like length: its own, and three from elsewhere in the same domain, so
that style alone does not give it away.
"""

import json
import random
import re
from pathlib import Path
from typing import Any

SHOWN, HIDDEN = 200, 80
"""Characters of a cloze question's beginning and of its continuations, about: all are cut between words."""


def passages(*, text: str, domain: str, characters: int, most: int, seed: int, **_others: Any) -> dict[str, Any]:
    """At most `most` passages of a domain as rows {"passage"}; for loglikelihood_rolling."""
    from datasets import Dataset

    pieces = cut(Path(text) / domain, characters)
    drawn = random.Random(f"passages {domain} {seed}").sample(pieces, min(most, len(pieces)))
    return {"test": Dataset.from_list([{"passage": passage} for passage in drawn])}


def cloze(*, text: str, domain: str, questions: int, seed: int, **_others: Any) -> dict[str, Any]:
    """Rows {"beginning", "continuations", "answer"}: which of four continuations is the beginning's own."""
    from datasets import Dataset

    draw = random.Random(f"cloze {domain} {seed}")
    pairs = [pair for passage in cut(Path(text) / domain, SHOWN + 2 * HIDDEN) if (pair := _split(passage))]
    if len(pairs) < 4:
        raise ValueError(f"{Path(text) / domain} has text for {len(pairs)} questions; four are needed for their wrong answers")
    draw.shuffle(pairs)
    rows = []
    for beginning, continuation in pairs[:questions]:
        others = draw.sample([other for _, other in pairs if other != continuation], 3)
        answer = draw.randrange(4)
        rows.append(
            {"beginning": beginning, "continuations": [*others[:answer], continuation, *others[answer:]], "answer": answer}
        )
    return {"test": Dataset.from_list(rows)}


def cut(folder: Path, characters: int) -> list[str]:
    """All documents of a folder, in order, in pieces of at least `characters` that end with a word; short ends left out.

    Raises FileNotFoundError where there are none.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no *.jsonl; give the folder with one folder of JSON lines a domain")
    pieces = []
    for file in files:
        for line in file.read_text(encoding="utf8").splitlines():
            pieces += re.findall(rf"\S(?:.{{{characters - 2},}}?)\S(?=\s)", json.loads(line)["text"], flags=re.DOTALL)
    return pieces


def _split(passage: str) -> tuple[str, str] | None:
    """A passage's beginning and what follows it, parted at a space, which belongs to neither."""
    parted = re.match(rf"(.{{{SHOWN},}}?\S) (\S.{{{HIDDEN - 2},}}?\S)(?=\s|$)", passage, flags=re.DOTALL)
    return (parted[1], parted[2]) if parted else None
