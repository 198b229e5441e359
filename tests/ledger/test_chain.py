"""No line of a chain can be changed, moved or removed unnoticed; what append returned is on disk."""

import errno
import os
from pathlib import Path

import pytest

from curriculumdp.ledger.chain import Chain, LedgerError, canonical

KEY = bytes(range(32))
BODIES = [{"kind": "plan", "rate": 0.1}, {"step": 0, "mac": "ab" * 8}, {"step": 1, "text": "newline\n, ε"}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A chain of three lines."""
    chain = Chain.create(tmp_path / "chain.jsonl", KEY, "test", BODIES[0])
    for body in BODIES[1:]:
        chain.append(body)
    chain.close()
    return tmp_path / "chain.jsonl"


def read(path: Path, to_append: bool = False, kind: str = "test", key: bytes = KEY) -> list[bytes]:
    chain = Chain.open(path, key, kind, to_append)
    chain.close()
    return list(chain.bodies())


def test_what_was_appended_comes_back(path):
    assert read(path) == [canonical(body) for body in BODIES]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes().count(b"\n") == 3


def test_every_flipped_bit_is_refused(path):
    content = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for place, byte in enumerate(content):
            for bit in range(8):
                os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), place)
                with pytest.raises(LedgerError):
                    read(path)
            os.pwrite(file.fileno(), bytes([byte]), place)
    assert len(read(path)) == 3


def test_every_removed_or_doubled_byte_is_refused_but_for_the_last_newline(path):
    content = path.read_bytes()
    for place in range(0, len(content) - 1, 3):
        for changed in (content[:place] + content[place + 1 :], content[: place + 1] + content[place:]):
            if changed == content:
                continue
            path.write_bytes(changed)
            with pytest.raises(LedgerError):
                read(path)


@pytest.mark.parametrize(
    "order", [[1, 0, 2], [0, 2, 1], [0, 2], [1, 2], [0, 0, 1, 2], [0, 1, 1, 2], [0, 1, 2, 2]]
)
def test_moved_removed_and_doubled_lines_are_refused(path, order):
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[place] for place in order))
    with pytest.raises(LedgerError, match=r"line \d fails its MAC check"):
        read(path)


def test_the_first_bad_line_is_named_in_one_line(path):
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"step":0', b'"step":7'))
    with pytest.raises(LedgerError, match=r"chain\.jsonl: line 2 ") as raised:
        read(path)
    assert "\n" not in str(raised.value)


def test_another_key_or_kind_of_ledger_is_refused(path):
    for kind, key in (("test", bytes(32)), ("other", KEY)):
        with pytest.raises(LedgerError, match="line 1"):
            read(path, kind=kind, key=key)


def test_a_file_cut_anywhere_keeps_its_whole_lines_and_goes_on(path):
    content = path.read_bytes()
    ends = [place + 1 for place in range(len(content)) if content[place : place + 1] == b"\n"]
    near_an_end = {end + off for end in ends for off in range(-4, 4) if 0 <= end + off < len(content)}
    for size in sorted(near_an_end | set(range(0, len(content), 5))):
        whole = sum(size >= end - 1 for end in ends)  # a whole line that only lacks its newline stays
        path.write_bytes(content[:size])
        if whole == 0:
            with pytest.raises(LedgerError, match="empty or its first line is truncated"):
                read(path, to_append=True)
            assert path.read_bytes() == content[:size]
            continue
        chain = Chain.open(path, KEY, "test", True)
        assert list(chain.bodies()) == [canonical(body) for body in BODIES[:whole]]
        for body in BODIES[whole:]:
            chain.append(body)
        chain.close()
        assert path.read_bytes() == content


def test_a_file_that_is_only_looked_at_is_not_touched(path):
    torn = path.read_bytes()[:-5]
    path.write_bytes(torn)
    path.chmod(0o400)
    assert len(read(path)) == 2
    assert path.read_bytes() == torn


@pytest.mark.parametrize("junk", [b"\x00", b"}", b"\x0b", b" \x00\x00", b'{"body":'])
def test_a_last_line_whose_newline_was_changed_is_not_taken_for_torn(path, junk):
    path.write_bytes(path.read_bytes()[:-1] + junk)
    with pytest.raises(LedgerError, match="line 3 is not followed by a newline"):
        read(path, to_append=True)


def test_a_torn_tail_of_zeros_is_dropped(path):
    content = path.read_bytes()
    path.write_bytes(content + bytes(100))
    assert len(read(path, to_append=True)) == 3
    assert path.read_bytes() == content


def test_append_returns_only_what_was_synced(path, monkeypatch):
    synced: list[bytes] = []
    real = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(path.read_bytes())
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    chain = Chain.open(path, KEY, "test", True)
    for number in range(3):
        body = chain.append({"number": number})
        assert synced[-1].endswith(b'"}\n')
        assert body in synced[-1]
        assert chain.macs[-1].encode() in synced[-1]


def test_what_a_killed_process_left_in_memory_is_synced_before_it_is_believed(path, monkeypatch):
    synced = []
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
    )
    read(path, to_append=True)
    assert str(path) in synced
    assert str(path.parent) in synced


def test_short_writes_are_gone_on_with(path, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, content: real(descriptor, content[:7]))
    chain = Chain.open(path, KEY, "test", True)
    chain.append({"number": 1})
    assert read(path) == list(chain.bodies())


@pytest.mark.parametrize("call", ["write", "fsync"])
@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_full_or_failing_disk_charges_nothing_and_stops_this_chain(path, monkeypatch, call, code):
    before = path.read_bytes()
    chain = Chain.open(path, KEY, "test", True)
    real, calls = getattr(os, call), []

    def fail(descriptor: int, *content: bytes) -> int:
        calls.append(descriptor)
        if len(calls) == 2 or (call == "fsync" and len(calls) == 1):
            raise OSError(code, os.strerror(code))
        return real(descriptor, *(part[:9] for part in content))

    with monkeypatch.context() as patched:
        patched.setattr(os, call, fail)
        with pytest.raises(LedgerError, match="could not be written") as raised:
            chain.append({"number": 1})
    assert "\n" not in str(raised.value)
    assert path.read_bytes() == before
    with pytest.raises(LedgerError, match="earlier write failed"):
        chain.append({"number": 1})
    assert read(path, to_append=True) == [canonical(body) for body in BODIES]


def test_a_kill_inside_an_append_leaves_a_chain_that_opens(path, monkeypatch):
    before = path.read_bytes()
    real = os.write

    def die(descriptor: int, content: bytes) -> int:
        real(descriptor, content[:20])
        raise KeyboardInterrupt

    chain = Chain.open(path, KEY, "test", True)
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", die)
        with pytest.raises(KeyboardInterrupt):
            chain.append({"number": 1})
    with pytest.raises(LedgerError, match="earlier write failed"):
        chain.append({"number": 1})
    assert read(path, to_append=True) == [canonical(body) for body in BODIES]
    assert path.read_bytes() == before


def test_a_file_changed_removed_or_exchanged_while_in_use_is_refused(path):
    chain = Chain.open(path, KEY, "test", True)
    content = path.read_bytes()
    with path.open("ab") as file:
        file.write(b"x")
    with pytest.raises(LedgerError, match="changed by another process"):
        chain.append({"number": 1})
    os.truncate(path, len(content))
    path.rename(path.with_name("moved"))
    with pytest.raises(LedgerError, match="removed"):
        chain.append({"number": 1})
    path.write_bytes(content)
    with pytest.raises(LedgerError, match="changed by another process"):
        chain.append({"number": 1})


def test_a_chain_open_for_reading_takes_no_line(path):
    chain = Chain.open(path, KEY, "test", False)
    chain.close()
    with pytest.raises(LedgerError, match="open read-only"):
        chain.append({"number": 1})


def test_a_chain_is_never_made_over_another(path):
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="already exists"):
        Chain.create(path, KEY, "test", BODIES[0])
    assert path.read_bytes() == before


def test_values_without_one_text_are_refused(path):
    chain = Chain.open(path, KEY, "test", True)
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            chain.append({"rate": value})
    assert read(path) == [canonical(body) for body in BODIES]
