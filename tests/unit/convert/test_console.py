import io
import json

from lsg.convert import console


class Terminal(io.StringIO):
    def isatty(self):
        return True


def run(progress):
    progress.begin(1000, 200)
    progress.advance(300)
    progress.advance(500)
    progress.close()
    assert progress.advanced_bytes == 800


def test_plain_lines(monkeypatch):
    monkeypatch.setattr(console, "_PLAIN_SECONDS", 0.0)
    stream = io.StringIO()
    run(console.PlainProgress(stream))
    first, second, third = stream.getvalue().splitlines()
    assert first == "converting 1.0 kB, 200 bytes of it done by an earlier run"
    assert second.startswith("500 bytes of 1.0 kB, ")
    assert third.startswith("1.0 kB of 1.0 kB, ")
    assert third.endswith(" 0 s left")


def test_plain_lines_are_rare():
    stream = io.StringIO()
    run(console.PlainProgress(stream))
    assert len(stream.getvalue().splitlines()) == 1


def test_json_lines(monkeypatch):
    monkeypatch.setattr(console, "_JSON_SECONDS", 0.0)
    stream = io.StringIO()
    run(console.JsonProgress(stream))
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event["done_bytes"] for event in events] == [200, 500, 1000]
    assert all(event["event"] == "progress" and event["total_bytes"] == 1000 for event in events)


def test_a_bar_on_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    progress = console.make_progress(as_json=False)
    assert isinstance(progress, console.BarProgress)
    run(progress)
    assert "converting" in terminal.getvalue()
    assert "1.0/1.0 kB" in terminal.getvalue()


def test_a_pipe_gets_no_bar(monkeypatch):
    monkeypatch.setattr("sys.stderr", io.StringIO())
    assert isinstance(console.make_progress(as_json=False), console.PlainProgress)
    assert isinstance(console.make_progress(as_json=True), console.JsonProgress)
