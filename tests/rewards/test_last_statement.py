"""The statement that stands last, in responses of models that were asked for no layout."""

from __future__ import annotations

import time

import pytest

from care_jax.rewards.response_format import ANY
from care_jax.rewards.verifiers import verify_answer

OPTIONS = ("red", "blue", "dark green", "white")


def answer(text: str) -> str | None:
    """The answer that is found."""
    encoded = text.encode()
    span = ANY.parse(encoded).answer
    return None if span is None else encoded[slice(*span)].decode()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Words that call something the answer; the last ones count, and boxes with them.
        ("So it is small.\nThe correct option letter is (D).", "(D)"),
        ("The answer should be (D).", "(D)"),
        ("The answer to the question is (B) Yes.", "(B) Yes"),
        ("The answer is therefore (B), no.", "(B), no"),
        ("The answer is 8 years.", "8 years"),
        ("\\boxed{58} square cm. The answer is B.", "B"),
        ("The answer is B.\n\\boxed{A}", "A"),
        ("The answer is B. No, the answer is C.", "C"),
        ("The answer is B. Or C.", "B. Or C"),
        ("The answer is (B) 18. The centroid is a point.", "(B) 18"),
        ("The answer is 3.5. It is large.", "3.5"),
        ('The answer is "soup." Soup is warm.', "soup"),
        ("Option B is correct.", "B"),
        ("I think (C) is the correct answer.", "(C)"),
        ("Option A is wrong.\nOption B is the best one.", "B"),
        ("The answer is B.\n\nExplanation: it is red.", "B"),
        ("The other choices are:\n\n* (B) blue", "* (B) blue"),
        ("The answer is not given.", "not given"),
        ("The answer would probably be no, since it is small.", "no, since it is small"),
        ("The tallest bar is option (A) Rec.\nIt stands left.", "option (A) Rec"),
        ("It is 5, so option (B) no is the correct answer.", "(B) no"),
        ('The answer is "A." It is small.', "A"),
        ('The answer is B, "no." Both are small.', 'B, "no."'),
        # Another question, once this one is answered.
        ("The answer is B.\n\nQuestion: How many?\nThe answer is C.", "B"),
        ("\\boxed{4}\nHuman: How many?\nAnswer: 5", "4"),
        ("Question: How many?\nThe answer is C.", "C"),
        ("I look.\n**Question 1:** How many?\nThe answer is C.", "C"),
        # Lines.
        ("The answer is A.\n\n(B)", "(B)"),
        ("So\n#### 7", "7"),
        ("### Final Answer\n**B**", "B"),
        ("Because of this.\n**B**", "B"),
        ("Because of this.\n\n**H. W360*39**", "H. W360*39"),
        ("So\n- **Answer:** E", "E"),
        (r"\( \text{Answer: C} \)", "C"),
        (r"Answer: C} \)", "C"),
        ("**Answer: I** (fibula)", "I** (fibula)"),
        ("故选B", "B"),
        ("所以选B。", "B"),
        ("答案：B", "B"),  # noqa: RUF001
        ("综上，答案是B。", "B"),  # noqa: RUF001
        ("因此，选项(B)正确。", "B"),  # noqa: RUF001
        # End tokens and marks; what has no partner stays.
        ("Answer: B</s>", "B"),
        ("Answer: B<|im_end|>\n", "B"),
        ("\u200bB", "B"),
        ("Answer: LAAP*", "LAAP*"),
        ("Rabbit**", "Rabbit**"),
        ("71°27'48.68\"", "71°27'48.68\""),
        ('"soup"', "soup"),
        # The last sentence.
        ("There are ten.\nThe sum of the bars is 5. I hope this helps!", "The sum of the bars is 5"),
        ("The sum of the bars is 5.\n\nIs there anything else?", "The sum of the bars is 5"),
        ("Four and three, so the perimeter is 3 cm + 4 cm = **7 cm**.", "7 cm"),
        ("10 - 3 - 2 = 5\n\nSo, there are 5 objects left.", "there are 5 objects left"),
        ("Yes, it is. It moves.", "Yes, it is"),
        ("(A) Red. If it were blue, it would be cold.", "(A) Red"),
        ("True. It rises.", "True"),
        ("True. It is false.", "True. It is false"),
        ("It is small. Therefore, the speed is -130.", "the speed is -130"),
        ("Substituting the given values, we get -78 - 52 = -130.", "-130"),
        ("# So the lowest value is 0.0.", "the lowest value is 0.0"),
        ("It is red. This is because it is hot.", "It is red. This is because it is hot"),
        ("It is red. This is because it is hot. So it is blue.", "it is blue"),
        ("It is red. This is because " + "it is hot, " * 30 + "too.", "This is because " + "it is hot, " * 30 + "too"),
        ("Look.\nThere are 2 left:\n1. Red cube\n2. Ball", "There are 2 left"),
        ("Look:\n1. Add them.\n2. So the sum is 5.", "the sum is 5"),
        ("There are 2 left:\n- red\n- 5", "- 5"),
        ("It is red.\nOr blue.", None),
        # Programs; what they work out is not in the text.
        ("import math\nx = 60  # degrees\nprint(x)", "60"),
        ("```python\nanswer = \"no\"\n\nprint(answer)\n```", "no"),
        ("# it is 5\nprint('125*a^2')", "125*a^2"),
        ("x = -2.50\nprint(x)\n\nSo the answer is 6.", "6"),
        ("The answer is 6.\nx = 5\nprint(x)", "5"),
        ("x = 5\nx += 1\nprint(x)", "print(x)"),
        ("x = 5\nx = 6\nprint(x)", "print(x)"),
        ("if y:\n    x = 5\nprint(x)", "print(x)"),
        ("for x in y:\n    pass\nx = 5\nprint(x)", "print(x)"),
        ("x = y = 5\nprint(x)", "print(x)"),
        ("x = 2*3\nprint(x)", "print(x)"),
        ("x = f(5)\nprint(x)", "print(x)"),
        ("x = [5]\nprint(x)", "print(x)"),
        ('x = f"{y}"\nprint(x)', "print(x)"),
        ("print(x)", "print(x)"),
        ('print("A")\nprint("B")', 'print("B")'),
        ('if y:\n    print("yes")\nelse:\n    print("no")', 'print("no")'),
        ("", None),
        ("\u200b \n", None),
    ],
)  # fmt: skip
def test_the_last_statement_is_the_answer(text, expected):
    """Catches an earlier statement, a heading, an explanation or a closing phrase taken for the answer."""
    assert answer(text) == expected


@pytest.mark.parametrize(
    ("kind", "gold", "response", "correct"),
    [
        ("choice", "(A)", "The car is small.\n\nTherefore, the correct option letter is (A) red.", True),
        ("choice", "(A)", "The correct answer is not (A).", False),
        ("choice", "(A)", "The correct answer is (A). Wait, (B) fits too.", False),
        ("choice", "(A)", "The answer is (A).\nActually, the answer is (B).", False),
        ("choice", "(B)", "The answer is (A).\nActually, the answer is (B).", True),
        ("choice", "(B)", "I compared the cars. The largest one is blue.", True),
        ("choice", "(B)", "I compared the cars. The largest one is blue or red.", False),
        ("choice", "(B)", "I cannot see whether the largest one is blue.", False),
        ("choice", "(C)", "The leaves are dark green because of the season.", True),
        ("integer", "5", "10 - 3 - 2 = 5\n\nSo, there are 5 objects left.", True),
        ("integer", "5", "There are 10. So, there are 5 or 6 objects left.", False),
        ("integer", "5", "There are 5 of them.\nThere are 6 of the others.", False),
        ("chart_relaxed", "187", "The value of the team in 2012 was 187 million U.S. dollars.", True),
        ("chart_relaxed", "2012", "The value of the team in 2012 was 187 million U.S. dollars.", False),
        ("latex", "42", r"Thus \fbox{42}", True),
        ("choice", "(A)", "The answer is (A).\n(B)", False),
        ("choice", "(A)", "The car is red. This is because it is fast.", True),
        ("choice", "(A)", "The car is red. This is because it is fast. It is blue.", False),
        ("choice", "(A)", "The tallest is option (A) red or blue.", False),
        ("choice", "(A)", "The tallest is not option (A).", False),
        ("choice", "(A)", "So option (A) red is incorrect.", False),
        ("choice", "(A)", "So option (A) red or (B) blue is correct.", False),
        ("choice", "(B)", 'color = "blue"\nprint(color)', True),
        ("choice", "(B)", 'color = "blue"\ncolor = other(color)\nprint(color)', False),
        ("choice", "(A)", "The answer is (A).\nQuestion: Which?\nThe answer is (B).", True),
        ("choice", "(B)", "The answer is (A).\nQuestion: Which?\nThe answer is (B).", False),
        ("choice", "(B)", "The answer is (A).\nWait, the question: Which?\nThe answer is (B).", True),
        ("rounded", "12.5", "The cost of one apple is $12.50.\n\nIs there anything else I can help you with?", True),
        ("choice", "(B)", "The answer is `B`.", True),
        ("choice", "(B)", "`B`", True),
        ("choice", "(B)", "The answer is B ✅", True),
        ("choice", "(B)", "✔️ B", True),
        ("choice", "(B)", "B ❌", False),
        ("choice", "(B)", "A ❌ B ✅", False),
        ("choice", "(B)", "答案选B", True),
        ("choice", "(B)", "【答案】B", True),
        ("choice", "(B)", "解：略\n故答案为：B", True),  # noqa: RUF001
        ("choice", "(B)", "答案是选项B", True),
        ("choice", "(B)", "答案选B或C", False),
        ("choice", "(B)", "故答案不是B", False),
        # A statement that is doubted, denied or only supposed; a word of doubt about something else leaves it alone.
        ("choice", "(B)", "I doubt that the answer is B.", False),
        ("choice", "(B)", "I am not sure whether the answer is B.", False),
        ("choice", "(B)", "I don't know if the answer is B.", False),
        ("choice", "(B)", "It is unlikely that the answer is B.", False),
        ("choice", "(B)", "Unless x is 0, the answer is B.", False),
        ("choice", "(B)", "If x were larger, the answer would be B.", False),
        ("choice", "(B)", "If the car were larger, it would be red. So the answer is B.", True),
        ("choice", "(B)", "The answer should not be B.", False),
        ("choice", "(B)", "The answer should clearly be B.", True),
        ("choice", "(B)", "I doubt that it is red, so the answer is B.", True),
        ("choice", "(B)", "I was not sure at first. The answer is B.", True),
        ("choice", "(B)", "我不确定答案是B", False),
        ("choice", "(B)", "The answer is white, which is option B.", False),
        ("choice", "(B)", "The answer is blue, which is option B.", True),
        ("integer", "5", r"The answer is not \boxed{5}.", False),
        ("integer", "5", r"We cannot write \boxed{5}.", False),
        ("integer", "5", r"It is not 6, so the answer is \boxed{5}.", True),
        ("integer", "5", r"Since x is not zero, we get \boxed{5}.", True),
        ("text", "blue", r"It is not \boxed{blue}", False),
        # A statement that is taken back later, and later words that take nothing back.
        ("integer", "5", "The answer is 5.\n\nWait, 6.", False),
        ("integer", "5", "The answer is 5. Oops, 6.", False),
        ("integer", "5", "The answer is 5.\nOops, I misread. It is 6.", False),
        ("integer", "5", "The answer is 5. On second thought, 6.", False),
        ("integer", "5", "The answer is 5.\nThis is wrong.", False),
        ("integer", "5", "Answer: 5\nCorrection: 6", False),
        ("integer", "5", "The answer is 5. Let me double check. It is 6.", False),
        ("integer", "5", "The answer is 5. Let me double check. 2 + 3 = 5, which is correct.", True),
        ("integer", "5", "Wait, I misread. That is wrong. The answer is 5.", True),
        ("integer", "5", "The answer is 5.\n\nNote that the sixth is hidden.", True),
        ("integer", "5", "The answer is 5.\n\nOption A is wrong since it counts the hidden one.", True),
        ("integer", "5", "答案是5。不对，是6。", False),  # noqa: RUF001
        ("integer", "5", "不对，重新计算。答案是5。", True),  # noqa: RUF001
        ("integer", "5", r"\boxed{5} is wrong.", False),
        ("integer", "5", "\\boxed{5}\n\nWait, that is wrong. It is 6.", False),
        ("integer", "5", "\\boxed{6}\n\nWait, that is wrong. It is \\boxed{5}.", True),
        ("integer", "5", "\\boxed{5}\n\nThis is the number of dots.", True),
        ("text", "blue", "The answer is blue. That is incorrect.", False),
        ("text", "blue", "The answer is blue. That is the colour of the sky.", True),
        ("choice", "(B)", "The answer is B.\n\nBut C is also right.", False),
        ("choice", "(B)", "The answer is B.\n\nActually, no.", False),
        ("choice", "(B)", "The answer is B. Nope.", False),
        ("choice", "(B)", "The answer is B. Let me double check. It is C.", False),
        ("choice", "(C)", "The answer is C. A is also correct.", False),
    ],
)
def test_whole_responses_are_judged(kind, gold, response, correct):
    """Catches a statement that is found and not read, and one that is taken back and still counts."""
    given = answer(response)
    options = OPTIONS if kind == "choice" else None
    assert (given is not None and verify_answer(kind, given, gold, options, 0.01).correct) is correct


@pytest.mark.parametrize(
    "piece",
    [
        "answer ", "the best option ", "答案", "= 5 ", "so the ", "is 5. I hope. ", "#### 1\n", "? ", "(A) is ",
        "$", '"', "**",        "\\(", "\\boxed{", "</s>", "<|", "because ", "\u200b", "Explanation:\n", "选项", "Ab. ",
        "yes. ", "。",
    ],
)  # fmt: skip
def test_time_is_linear(piece):
    """Catches a pattern that takes minutes over half a megabyte of what it looks for."""
    start = time.process_time()
    for text in (piece * (500_000 // len(piece)), "The answer is " + piece * (250_000 // len(piece)) + "5"):
        answer(text)
    assert time.process_time() - start < 5.0
