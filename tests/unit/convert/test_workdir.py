import os

import pytest

from lsg import CapacityError, LsgError
from lsg.convert.journal import Identity
from lsg.convert.workdir import check_place, check_room, open_work, partial_of

INT4 = Identity("lsg-convert 1", {"experts": "int4"}, "", None, None, 0, [])
BF16 = Identity("lsg-convert 1", {"experts": "bf16"}, "", None, None, 0, [])


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def test_appears_by_a_rename(out):
    with open_work(out, INT4, restart=False) as work:
        (work.model / "deep").mkdir()
        (work.model / "deep" / "file").write_text("x")
        assert not out.exists()
        work.publish()
    assert (out / "deep" / "file").read_text() == "x"
    assert not partial_of(out).exists()


def test_a_place_where_nothing_can_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    place = tmp_path / "file" / "out"
    with (
        pytest.raises(LsgError, match=r"out\.partial: cannot be made \(Not a directory\)"),
        open_work(place, INT4, restart=False),
    ):
        pass


def test_two_at_once_exclude_each_other(out):
    with (
        open_work(out, INT4, restart=False),
        pytest.raises(LsgError, match="another lsg-convert is working here"),
        open_work(out, INT4, restart=False),
    ):
        pass
    with open_work(out, INT4, restart=False):
        pass


def test_not_even_a_restart_takes_it_away(out):
    with open_work(out, INT4, restart=False) as work:
        (work.model / "file").write_text("x")
        with pytest.raises(LsgError, match="another"), open_work(out, INT4, restart=True):
            pass
        assert (work.model / "file").exists()


def test_the_second_sees_that_the_first_has_finished(out, monkeypatch):
    """The first finishes just before the second has the lock."""
    with open_work(out, INT4, restart=False) as work:
        real = os.open

        def open_late(path, *args, **kwargs):
            if str(path).endswith("lock"):
                fd = real(path, *args, **kwargs)
                monkeypatch.undo()
                work.publish()
                return fd
            return real(path, *args, **kwargs)

        monkeypatch.setattr(os, "open", open_late)
        with pytest.raises(LsgError), open_work(out, INT4, restart=False):
            pass
    assert out.is_dir()


def test_another_conversion_is_not_continued_but_may_be_restarted(out):
    with open_work(out, INT4, restart=False) as work:
        (work.model / "file").write_text("x")
    with (
        pytest.raises(LsgError, match=r"with options experts=int4 instead of experts=bf16; .*--restart"),
        open_work(out, BF16, restart=False),
    ):
        pass
    with open_work(out, INT4, restart=False) as work:
        assert (work.model / "file").exists()
    with open_work(out, BF16, restart=True) as work:
        assert list(work.model.iterdir()) == []
        assert work.journal.entries == []


def test_a_strangers_directory_is_left_alone(tmp_path, out):
    partial_of(out).mkdir()
    (partial_of(out) / "thesis.tex").write_text("x")
    with pytest.raises(LsgError, match="not made by lsg-convert"):
        check_place(tmp_path / "source", out)


def test_room_counts_what_an_earlier_run_has_taken(out):
    free = os.statvfs(out.parent).f_bavail * os.statvfs(out.parent).f_frsize
    with open_work(out, INT4, restart=False) as work:
        (work.model / "layer").write_bytes(os.urandom(1 << 20))
        os.sync()
        check_room(out, 1 << 20)
    with pytest.raises(CapacityError, match=r"takes .* GB, but only .* are free"):
        check_room(out, free + (1 << 40))
