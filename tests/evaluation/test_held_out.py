"""Held-out loss of a Hugging Face folder: the trainer's windows and targets, document by document; the report's refusals."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from tiny_runs import QUICKSTART

from evaluation.held_out import held_out_loss
from evaluation.quickstart_report import main
from smol_data.batch import pack
from smol_data.shards import TokenDataset


class Bigrams(torch.nn.Module):
    """A model whose logits depend on the token alone, so that any cut into documents gives the same per-target losses."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.table = torch.randn(vocabulary, vocabulary, generator=torch.Generator().manual_seed(0))
        self.longest = 0

    def forward(self, input_ids: torch.Tensor) -> SimpleNamespace:
        self.longest = max(self.longest, input_ids.shape[1])
        return SimpleNamespace(logits=self.table[input_ids])


def test_the_loss_is_over_the_targets_that_the_trainer_counts(corpus: Path) -> None:
    folder, length, windows = corpus / "tokens" / "held_out" / "docs", 128, 40
    model = Bigrams(1024)
    loss, targets = held_out_loss(model, folder, length, windows)

    dataset = TokenDataset(folder, length)
    batch = pack([dataset.window(index) for index in range(windows)]).expand()
    dataset.close()
    tokens, labels, mask = batch.tokens[0], batch.labels[0], batch.loss_mask[0]
    losses = torch.nn.functional.cross_entropy(model.table[tokens], labels, reduction="none")
    assert targets == int(mask.sum()) < windows * length, "some targets cross documents and are left out"
    assert loss == pytest.approx(float((losses * mask).sum() / mask.sum()), rel=1e-5)
    assert model.longest <= length


def test_the_report_asks_for_a_finished_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--config", str(QUICKSTART), "--hf", "hf"]) == 2
    assert "metrics.jsonl is missing; train the run first" in capsys.readouterr().err
    metrics = tmp_path / "runs" / "quickstart" / "run" / "metrics.jsonl"
    metrics.parent.mkdir(parents=True)
    metrics.write_text('{"step": 1, "train/loss": 8.3}\n')
    assert main(["--config", str(QUICKSTART), "--hf", "hf"]) == 2
    assert "holds no held-out losses of code, docs; let the run finish" in capsys.readouterr().err
