"""What responses become scores, and how sure they are: reasoning taken away, avg@k, intervals, the needle's map."""

from pathlib import Path

import numpy as np
import pytest
from evaluation_parts import Write

from evaluation import heat_map
from evaluation.results import score_name, without_reasoning
from evaluation.statistic import interval
from evaluation.suite import load_suite
from evaluation.tasks import load_tasks


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think>\n2 + 2\n</think>\n\nIt is 4.", "It is 4."),
        ("2 + 2</think>It is 4.", "It is 4."),
        ("<think>a</think>b<think>c</think>d", "d"),
        ("<think>\nIt could be 5, or", ""),
        ("It is 4.", "It is 4."),
    ],
)
def test_the_answer_is_what_follows_the_reasoning_and_none_if_it_never_ends(response: str, answer: str) -> None:
    assert without_reasoning(response) == answer


def scored(task: object, responses: list[str]) -> dict[str, float]:
    """What a task makes of the responses to its first question, from lm-eval's request to its score."""
    from lm_eval.api.task import Task

    assert isinstance(task, Task)
    task.build_all_requests(limit=1)
    [request] = task.instances
    assert request.repeats == len(responses)
    request.resps = list(responses)
    task.apply_filters()
    [filtered] = request.filtered_resps.values()
    return dict(task.process_results(request.doc, [filtered]))


def test_every_response_counts_and_each_without_its_reasoning(plain_model: Path, write_suite: Write) -> None:
    suite = load_suite(write_suite([{"name": "sums_answered", "modes": ["chat"], "repeats": 4}, {"name": "instructions"}]))
    (sums, instructions), _ = load_tasks(suite, suite.tasks, plain_model)
    [task] = sums.tasks
    right = task.eval_docs[0]["value"]
    responses = [f"<think>1 or 2</think>{right}", "1", f"<think>{right}, I think", f"It is {right}."]
    assert scored(task, responses) == {"exact_match": 0.5}
    [task] = instructions.tasks
    assert scored(task, ["<think>never ends"]) == {"followed": 0, "all_followed": 0}


def test_one_response_is_scored_as_lm_eval_does(plain_model: Path, write_suite: Write) -> None:
    suite = load_suite(write_suite([{"name": "sums_answered"}]))
    (loaded,), _ = load_tasks(suite, suite.tasks, plain_model)
    [task] = loaded.tasks
    assert scored(task, [f"It is {task.eval_docs[0]['value']}"]) == {"exact_match": 1}


def test_modes_are_seen_in_whole_responses(plain_model: Path, write_suite: Write) -> None:
    suite = load_suite(write_suite([{"name": "think_follow", "modes": ["chat"]}]))
    (loaded,), _ = load_tasks(suite, suite.tasks, plain_model)
    [task] = loaded.tasks
    assert task.eval_docs[1]["wanted"] == "think"
    row = dict(task.eval_docs[1])
    assert task.process_results(row, ["<think>It is.</think>Paris."])["mode_followed"] == 1
    assert not any(step.__name__ == "ReasoningStripped" for step in task._filters[0].filters if isinstance(step, type))
    with pytest.raises(ValueError, match="think_follow needs a chat template"):
        task.build_all_requests(limit=1)


def test_an_interval_holds_the_truth_nineteen_times_in_twenty() -> None:
    draw = np.random.default_rng(0)
    held = 0
    for seed in range(200):
        low, high = interval(list((draw.random(150) < 0.3).astype(float)), "mean", seed)
        held += low <= 0.3 <= high
    assert 180 <= held <= 199  # a binomial of 200 and 0.95 lies outside once in 500 times


def test_an_interval_of_bits_per_byte_weighs_questions_by_their_bytes() -> None:
    sizes = [100] * 50 + [10_000]
    values = [(-2.0 * size * np.log(2) * (2 if size > 100 else 1), size) for size in sizes]
    low, high = interval(values, "bits", 0)
    assert low == pytest.approx(2) and 3.5 < high < 4
    assert interval([0.0, 1.0] * 20, "mean", 1) == interval([0.0, 1.0] * 20, "mean", 1)


def test_a_mode_stands_in_a_scores_name() -> None:
    assert score_name("sums", "base", "acc") == "eval/sums/acc"
    assert score_name("sums", "no_think", "acc") == "eval/sums/no_think/acc"


def test_the_map_shows_the_share_of_each_depth_and_length(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn: list[np.ndarray] = []
    original = Axes.imshow
    monkeypatch.setattr(Axes, "imshow", lambda self, data, **more: (drawn.append(data), original(self, data, **more))[1])
    cells = {(0.0, 128): [1, 1], (0.0, 512): [1, 0], (1.0, 128): [0, 0], (1.0, 512): [0, 1]}
    samples = [{"depth": d, "length": n, "scores": {"acc": right}} for (d, n), rights in cells.items() for right in rights]
    heat_map.draw(samples, tmp_path / "map.png")
    assert drawn[0].tolist() == [[1, 0.5], [0, 0.5]]
    assert (tmp_path / "map.png").exists()
    heat_map.draw([{"scores": {"acc": 1}}], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
