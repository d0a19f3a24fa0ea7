"""S3 and the Hub, where the job uses them: one real call each.

Who is refused today is refused tomorrow, and stops the job before it burns. A service that does not answer is neither the
node's fault nor the configuration's: what needs it has its own patience, so it is told and passed over.
"""

import os
from pathlib import Path

from slurm.preflight.findings import Absent, Finding, Node
from smol_data.manifest import tokenizer_sha256


def check_s3(node: Node) -> Finding:
    """The source of the data can be listed; where checkpoints go can be written too."""
    from conversion import ConversionError, Unreachable
    from conversion.upload.s5cmd import S5cmd

    sources, targets = (
        [url] if url and url.startswith("s3://") else [] for url in (node.source, node.config.checkpoint.upload)
    )
    if not targets and not sources:
        raise Absent("no s3:// address is used")
    probe = f".preflight/{node.name}"
    try:
        for url in (*sources, *targets):
            S5cmd(url).check_listing()
        for url in targets:
            S5cmd(url).write(probe, b"written by a preflight check, which removes it")
            S5cmd(url).remove([probe])
    except Unreachable as error:
        raise Absent(f"no answer now: {error}") from None
    except ConversionError as error:
        return Finding("stop", "refused", "allowed", str(error))
    return Finding("ok", ", ".join([*(f"reads {url}" for url in sources), *(f"writes {url}" for url in targets)]), "allowed")


def check_hub(node: Node) -> Finding:
    """The tokenizer's repository, which exports need, can be read: it may be gated."""
    name = node.config.data.tokenizer
    if Path(name).exists() or tokenizer_sha256(name):
        raise Absent("no repository of the Hub is used")
    if os.environ.get("HF_HUB_OFFLINE", "0").lower() not in ("", "0", "false", "no"):
        raise Absent("HF_HUB_OFFLINE is set")
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    try:
        HfApi().auth_check(name)
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status >= 500 or status in (408, 429):
            raise Absent(f"no answer now: the Hub says {status}") from None
        remedy = "run `hf auth login`, ask for access on its page, mend data.tokenizer, or set HF_HUB_OFFLINE=1"
        return Finding("stop", f"status {status}", "allowed", f"the Hub refuses {name} ({status}); {remedy}")
    except Exception as error:  # of several HTTP libraries: no connection
        raise Absent(f"no answer now: {type(error).__name__}; set HF_HUB_OFFLINE=1 where nodes have no internet") from None
    return Finding("ok", name, "allowed")
