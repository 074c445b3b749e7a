from distill.pages.tables import aligned


def test_columns_are_flush_right():
    assert aligned([["a", "bcd"], ["ef", "g"]]).splitlines() == [" a  bcd", "ef    g"]
