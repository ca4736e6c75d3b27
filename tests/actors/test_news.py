"""Which rows are asked for news at the end of a turn."""

from actors.rows import News

ROWS = {1: "one", 2: "two", 3: "three"}
MS = 1_000_000


def test_messages_alone_concern_the_rows_they_spoke_of():
    news = News()
    assert news.of(ROWS, set(), everything=True, now_ns=0) == ["one", "two", "three"]
    assert news.of(ROWS, {2, 9}, everything=False, now_ns=1 * MS) == ["two"]
    assert news.of(ROWS, set(), everything=False, now_ns=2 * MS) == ["one", "two", "three"]  # a deadline woke the stage


def test_all_rows_have_their_turn_however_much_the_neighbours_speak():
    news, seen = News(), []
    for now in range(0, 1000, 10):
        seen.append(len(news.of(ROWS, {1}, everything=False, now_ns=now * MS + 10**12)))
    assert seen.count(3) == 10
    assert seen.count(1) == 90
