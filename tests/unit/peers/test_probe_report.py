"""What the probe answers."""

from __future__ import annotations

import pytest

from peers.probe.report import Check, ProbeReport
from protocols.errors import LocalProtocolError


def test_a_report_is_read_back() -> None:
    report = ProbeReport((Check("dial", True, "fine", 0.5, "s"),), "agent", ("/p",), "/ip4/1.2.3.4", ())
    assert ProbeReport.from_json(report.to_json()) == report


@pytest.mark.parametrize("line", ["", "[]", "{}", '{"checks": 1}', '{"checks": [1]}', "[" * 100_000])
def test_another_line_is_refused(line: str) -> None:
    with pytest.raises(LocalProtocolError):
        ProbeReport.from_json(line)
