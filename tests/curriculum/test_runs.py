"""The tests' own tools: forked processes that end in any way leave the others alone."""

import os
import signal

from tqdm import tqdm

from tests.support.runs import in_child


def test_a_child_killed_while_it_draws_its_bar_stops_no_other():
    def dies_with_the_lock() -> None:
        tqdm.get_lock().acquire()
        os.kill(os.getpid(), signal.SIGKILL)

    def draws_a_bar() -> None:
        with tqdm(total=2) as bar:
            bar.update()
            bar.refresh()

    assert in_child(dies_with_the_lock) == -signal.SIGKILL
    assert in_child(draws_a_bar) == 0
