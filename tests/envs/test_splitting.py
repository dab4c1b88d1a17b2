"""The held-out rule, by value: other programs rely on these very bits."""

import envs

HELD_OUT_OF_40 = [23, 29, 37]


def test_the_rule_is_pinned():
    # worked out by hashlib alone; a change of the rule moves tasks between sides
    questions = [f"What is {i} + {i}?" for i in range(40)]
    assert [i for i, q in enumerate(questions) if envs.held_out(q)] == HELD_OUT_OF_40
    assert [i for i, q in enumerate(questions) if envs.held_out(q, 0)] == []
    assert all(envs.held_out(q, 100) for q in questions)


def test_the_share_is_as_asked_and_space_around_does_not_matter():
    questions = [str(i) for i in range(10_000)]
    assert 900 < sum(map(envs.held_out, questions)) < 1100
    assert all(envs.held_out(q) == envs.held_out(f" {q}\n") for q in questions[:100])


def test_the_question_is_the_last_user_message():
    system = {"role": "system", "content": "s"}
    assert envs.question_of((system, envs.user(" a "))) == "a"
    conversation = (envs.user("a"), {"role": "assistant", "content": "b"}, envs.user("c"))
    assert envs.question_of(conversation) == "c"
    assert envs.question_of((system,)) == "s"
