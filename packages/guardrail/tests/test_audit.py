import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import scene

from wfm_guardrail import AuditLog, Guardrail, verify

KEY = b"secret"


@pytest.fixture
def log(tmp_path):
    path = tmp_path / "audit.jsonl"
    guard = Guardrail(audit=AuditLog(path, key=KEY), detector=None)
    guard.check_text("a robot arm lifts a cube")
    guard.check_text("hentai")
    guard.check_video(scene(3))
    guard.redact(scene(3))
    return path


def test_an_honest_log_verifies(log):
    assert verify(log, key=KEY) == 5


def test_no_prompt_is_in_the_log(log):
    text = log.read_text()
    assert "robot" not in text
    assert "hentai" not in text
    events = [json.loads(line)["event"] for line in text.splitlines()]
    assert events == ["start", "verdict", "verdict", "verdict", "redact"]


@pytest.mark.parametrize("number", range(5))
@pytest.mark.parametrize("tamper", ["edit", "delete", "repeat", "swap", "truncate"])
def test_every_change_is_seen(log, number, tamper):
    lines = log.read_text().splitlines(keepends=True)
    if tamper == "edit":
        record = json.loads(lines[number])
        record["safe"] = not record.get("safe")
        lines[number] = json.dumps(record) + "\n"
    elif tamper == "delete":
        del lines[number]
    elif tamper == "repeat":
        lines.insert(number, lines[number])
    elif tamper == "swap":
        other = (number + 1) % 5
        lines[number], lines[other] = lines[other], lines[number]
    else:
        lines = lines[:number]
    log.write_text("".join(lines))
    with pytest.raises(ValueError, match=r"audit\.jsonl"):
        verify(log, key=KEY)


def test_every_byte_that_changes_is_seen(log):
    honest = log.read_bytes()
    for place in range(len(honest)):
        changed = honest[place] ^ 1 << place % 8
        log.write_bytes(honest[:place] + bytes([changed]) + honest[place + 1 :])
        with pytest.raises(ValueError, match=r"audit\.jsonl"):
            verify(log, key=KEY)
    log.write_bytes(honest)
    assert verify(log, key=KEY) == 5


def test_another_key_does_not_open_it(log):
    with pytest.raises(ValueError, match="another key"):
        verify(log, key=b"other")
    with pytest.raises(ValueError, match="another key"):
        verify(log)


def test_a_new_chain_is_seen_against_a_noted_seal(tmp_path):
    path = tmp_path / "a.jsonl"
    noted = AuditLog(path).append("x", {"n": 1})
    assert verify(path, head=noted) == 1
    path.unlink()
    AuditLog(path).append("x", {"n": 2})
    assert verify(path) == 1
    with pytest.raises(ValueError, match="another seal than noted"):
        verify(path, head=noted)


def test_logging_goes_on_where_it_stopped_and_from_many_threads(tmp_path):
    path = tmp_path / "a.jsonl"
    logs = [AuditLog(path), AuditLog(path)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: logs[i % 2].append("x", {"text": "y" * 3000}), range(40)))
    assert verify(path) == 40


def test_a_log_that_cannot_be_written_refuses(tmp_path):
    path = tmp_path / "a.jsonl"
    guard = Guardrail(audit=path, detector=None)
    path.write_bytes(path.read_bytes()[:-20])
    verdict = guard.check_text("a robot")
    assert not verdict.safe
    assert "audit failed" in verdict.reason


def test_bad_places_are_named_at_once(tmp_path):
    with pytest.raises(IsADirectoryError, match="name a file"):
        AuditLog(tmp_path)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        AuditLog(tmp_path / "no" / "a.jsonl")
    with pytest.raises(FileNotFoundError, match="no such audit log"):
        verify(tmp_path / "b.jsonl")


def test_a_missing_head_is_said(log):
    log.with_name("audit.jsonl.head").unlink()
    with pytest.raises(ValueError, match=r"name the last seal with --head"):
        verify(log, key=KEY)
