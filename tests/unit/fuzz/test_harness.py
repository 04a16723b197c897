"""The harness notices each sort of fault, keeps what it learned, and is not stopped by a process that dies."""

from __future__ import annotations

import base64
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from protocols.errors import RemoteProtocolError
from scripts import fuzz as command
from scripts.fuzzing import corpus
from scripts.fuzzing.coverage import Coverage
from scripts.fuzzing.formats import DER, FIELDS, JSON, PROTOBUF, Format
from scripts.fuzzing.mutations import Mutator
from scripts.fuzzing.target import SENDER, Target, check, message, read_once
from scripts.fuzzing.targets import TARGETS
from scripts.fuzzing.watch import BOX_BYTES, Tally, Worker
from scripts.fuzzing.worker import BOX, Box, Session, allocated_bytes


def target(decode: Callable[[bytes], object], encode: Callable[[object], bytes] | None = None, *, canonical: bool = False) -> Target:
    return Target("planted", decode, lambda: [b"seed"], (ValueError,), encode, canonical)


def test_a_value_and_a_refusal_are_no_faults() -> None:
    assert check(target(lambda data: data), b"x").finding is None
    seen = check(target(lambda data: int(data)), b"x")
    assert seen.finding is None
    assert seen.refusal is not None
    assert seen.refusal.startswith("ValueError")


def test_any_other_exception_is_a_crash() -> None:
    finding = check(target(lambda data: data[9]), b"x").finding
    assert finding is not None
    assert finding.kind == "crash"
    assert "IndexError" in finding.summary


def test_a_library_that_panics_is_a_crash() -> None:
    class Panic(BaseException):
        pass

    def panic(data: bytes) -> None:
        raise Panic("rust")

    finding = check(target(panic), b"x").finding
    assert finding is not None
    assert "Panic: rust" in finding.summary


def test_two_readings_must_agree() -> None:
    numbers = iter(range(9))
    finding = check(target(lambda data: next(numbers)), b"x").finding
    assert finding is not None
    assert finding.kind == "unstable"


@pytest.mark.parametrize(
    ("decode", "encode", "canonical", "fault"),
    [
        (bytes.lower, lambda value: value, False, None),
        (bytes.lower, lambda value: value, True, "second encoding"),
        (lambda data: data, lambda value: value + b"x", False, "read again"),
        (lambda data: data, lambda value: value[99], False, "IndexError"),
    ],
)
def test_round_trips(decode: Callable[[bytes], bytes], encode: Callable[[object], bytes], canonical: bool, fault: str | None) -> None:
    finding = check(target(decode, encode, canonical=canonical), b"ABC").finding
    assert (finding is None) if fault is None else (finding is not None and finding.kind == "round-trip" and fault in finding.summary)


def test_messages_need_one_line() -> None:
    class Word:
        def __init__(self, text: bytes) -> None:
            self.text = text

        def __eq__(self, other: object) -> bool:
            return isinstance(other, Word) and other.text == self.text

        __hash__ = None  # type: ignore[assignment]

        def encode(self) -> bytes:
            return self.text

        @classmethod
        def decode(cls, data: bytes, sender: object) -> Word:
            if sender != SENDER or data == b"bad":
                raise RemoteProtocolError(SENDER, "no word")
            return cls(data)

    made = message("word", Word(b"a"), Word(b"b"))
    assert made.seeds() == [b"a", b"b"]
    assert check(made, b"c").value == Word(b"c")
    assert check(made, b"bad").refusal is not None


@pytest.mark.parametrize(
    ("form", "data"),
    [
        (PROTOBUF, b"\x08\x96\x01\x12\x03abc\x19" + bytes(8)),
        (FIELDS, b"\x02\x00\x00\x00ab\x00\x00\x00\x00"),
        (DER, b"\x30\x05\x04\x03abc\x02\x81\x80" + bytes(128)),
    ],
)
def test_forms_take_bytes_apart_and_put_them_together(form: Format, data: bytes) -> None:
    parts = form.split(data)
    assert parts is not None
    assert len(parts) > 1
    assert form.join(parts) == data
    assert form.split(data[:-1]) is None


@pytest.mark.parametrize("form", [PROTOBUF, FIELDS, DER, JSON])
def test_mutations_follow_from_the_seed_and_stay_short(form: Format) -> None:
    def made(seed: int) -> list[bytes]:
        mutator = Mutator(random.Random(seed), form, 300, [b"elsewhere"])
        return [mutator.mutated([b'{"a":[1,2]}', b"\x08\x01\x12\x03abc", b"\x03\x00\x00\x00abc"]) for _ in range(400)]

    assert made(1) == made(1)
    assert len(set(made(1)) | set(made(2))) > 300
    assert max(map(len, made(1))) <= 300


def test_new_lines_and_new_reasons_are_news_once() -> None:
    coverage, closing = Coverage(), TARGETS["closing"]

    def is_news(data: bytes) -> bool:
        with coverage.watching():
            seen = read_once(closing, data)
        return coverage.is_news(seen.refusal)

    assert is_news(b"")
    assert not is_news(b"")
    assert is_news(b"\x10\x63")  # an absurd round
    assert not is_news(b"\x10\x64")  # the number is not the reason
    assert is_news(b"\xff")


def test_python_s_memory_is_measured() -> None:
    assert allocated_bytes(target(lambda data: len(bytes(10**6))), b"") >= 10**6


def test_a_session_tells_faults_and_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def read(data: bytes) -> int:
        if data == b"bad":
            raise KeyError("planted")
        return len(bytes(4 * 2**20)) if data == b"large" else 0

    path = tmp_path / "box"
    path.touch()
    session = Session(target(read), Box(str(path), 2**20))
    session.coverage.sentences.add("")
    for data in (b"bad", b"bad", b"fine"):
        session.run(data)
    session.coverage.sentences.clear()
    session.run(b"large")
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    findings = [(words["finding"]["kind"], base64.b64decode(words["input"])) for words in said if "finding" in words]
    assert findings == [("crash", b"bad"), ("memory", b"large")]
    assert path.read_bytes()[: BOX.size + 5] == BOX.pack(3, 5) + b"large"
    assert BOX.size == BOX_BYTES


def test_a_process_that_dies_is_blamed_on_the_input_in_the_box(tmp_path: Path) -> None:
    script = """
import os, struct, sys
box = sys.argv[1]
print('{"new": "bmV3"}', flush=True)
print('not json', flush=True)
print('{"count": 7, "lines": 3}', flush=True)
open(box, 'wb').write(struct.pack('<QI', 8, 4) + b'deadly')
os.kill(os.getpid(), 9)
"""
    tally = Tally("planted")
    box = tmp_path / "box"
    worker = Worker(tally, [("mutate", 1.0)], 0, [], [sys.executable, "-c", script, str(box)])
    worker.box = box
    box.touch()
    try:
        assert not worker.run(lambda: None)
    finally:
        worker.close()
    ((finding, data),) = tally.findings
    assert (finding.kind, data) == ("crash", b"dead")
    assert "SIGKILL" in finding.summary
    assert (tally.new, tally.executions, tally.lines) == ([b"new"], 7, 3)
    assert tally.as_json()["crashes"] == 1


def test_folders_of_inputs(tmp_path: Path) -> None:
    folder = tmp_path / "planted"
    for data in (b"long one", b"b", b"a"):
        corpus.keep(folder, data)
    assert corpus.read(folder) == [b"a", b"b", b"long one"]
    assert corpus.replace(folder, [b"a", b"c", bytes(corpus.MAX_FILE_BYTES + 1)]) == 2
    assert corpus.read(folder) == [b"a", b"c"]


def test_one_input_can_be_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "closing" / "x"
    path.parent.mkdir()
    path.write_bytes(b"\x08\x05")
    assert command.main(["--replay", str(path)]) == 0


def test_engines_share_the_time() -> None:
    assert command.shares("mutate", 5.0) == [("mutate", 5.0)]
    engines = command.shares("auto", 10.0)
    assert sum(seconds for _, seconds in engines) == pytest.approx(10.0)
    assert engines[0][0] == "hypothesis"
