"""Work in the background: in order, one at a time, with its errors where somebody waits for it."""

from __future__ import annotations

import logging
import threading
import time

import pytest

from training.background import Background


class Trouble(Exception):  # noqa: N818 - nothing but a test raises it
    """What goes wrong."""


def fail() -> None:
    raise Trouble("in the background")


def test_one_thing_is_done_after_the_other() -> None:
    done: list[int] = []
    first = threading.Event()

    def slowly() -> None:
        assert first.wait(10)
        done.append(1)

    with Background() as background:
        background.begin(slowly)
        assert background.is_busy() and done == []
        background.keep_up()  # which waits for nothing
        threading.Timer(0.05, first.set).start()
        background.begin(lambda: done.append(2))
        assert done[0] == 1
    assert done == [1, 2] and not background.is_busy()


def test_it_is_another_thread() -> None:
    ran: list[threading.Thread] = []
    with Background() as background:
        background.begin(lambda: ran.append(threading.current_thread()))
    assert ran != [threading.current_thread()]


@pytest.mark.parametrize("way", ["wait", "keep_up", "begin", "the end"])
def test_error_is_raised_as_itself_and_once(way: str) -> None:
    background = Background()

    def use() -> None:
        with background:
            background.begin(fail)
            while background.is_busy():
                time.sleep(0.001)
            match way:
                case "wait":
                    background.wait()
                case "keep_up":
                    background.keep_up()
                case "begin":
                    background.begin(lambda: None)

    with pytest.raises(Trouble, match="in the background"):
        use()
    background.wait()
    background.keep_up()


def test_error_that_came_before_is_the_one_that_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    def use() -> None:
        with Background() as background:
            background.begin(fail)
            raise KeyError("first")

    with caplog.at_level(logging.ERROR), pytest.raises(KeyError, match="first"):
        use()
    assert "in the background" in caplog.text


def test_what_cannot_go_on_holds_the_other_up() -> None:
    held_up, room = threading.Event(), threading.Event()

    with Background() as background:

        def work() -> None:
            background.hold_up()
            held_up.set()
            assert room.wait(10)

        background.begin(work)
        assert held_up.wait(10)
        threading.Timer(0.05, room.set).start()
        background.keep_up()
        assert room.is_set() and not background.is_busy()
        background.begin(lambda: held_up.wait(10))
        background.keep_up()  # what held the work before up is forgotten
