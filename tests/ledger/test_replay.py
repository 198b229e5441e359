"""Stretches of charged steps say of any order of charges what a table of every step would."""

import random

from curriculumdp.ledger.replay import ChargedSteps


def test_consecutive_steps_of_a_process_are_one_stretch():
    charged = ChargedSteps()
    for step in range(10**5):
        charged.add("private", step, "aa", 3 + step)
    assert len(charged.stretches) == 1
    found = charged.find("private", 99_999)
    assert found is not None
    assert (found.entry_of(99_999), found.nonce) == (100_002, "aa")
    assert charged.find("private", 10**5) is None
    assert charged.find("private", -1) is None
    assert charged.find("central", 5) is None


def test_stretches_say_what_a_table_says_whatever_the_order_phases_nonces_and_gaps():
    rng = random.Random(0)
    for _ in range(50):
        charged, table, entry = ChargedSteps(), {}, 2
        for _ in range(60):
            phase, step, nonce = rng.choice(["central", "private"]), rng.randrange(12), rng.choice("ab")
            entry += rng.choice([1, 1, 1, 2])
            charged.add(phase, step, nonce, entry)
            table[phase, step] = (nonce, entry)
        for phase in ("central", "private", "other"):
            for step in range(-1, 14):
                found = charged.find(phase, step)
                assert (found and (found.nonce, found.entry_of(step))) == table.get((phase, step))
