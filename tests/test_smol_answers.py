"""What a chat model wrote, taken apart. Answers that the template rendered are in tests/post_training/test_chat_template.py."""

from smol_answers import parse


def test_what_is_not_whole_is_told() -> None:
    assert parse("<think>and so on") == parse("<think>\nand so on\n<|im_end|>")
    assert not parse("<think>and so on").closed and parse("<think>and so on").content == ""
    assert parse("x <think>y</think>").reasoning is None
    broken = parse('<tool_call>{"name": </tool_call> <tool_call>[1]</tool_call><tool_call>{"name": "f"}')
    assert broken.broken_calls == 2 and broken.tool_calls == [{"name": "f", "arguments": {}}]
    assert parse("<code>\nf(1)\n</code>").code == ["f(1)"]
