"""`mristream plan-capacity`: what it reads, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from workers.capacity_command import read_hours
from workers.cli import main
from workers.figures import read_figures

A_DAY = ",".join(["0"] * 7 + ["2000", "3000"] + ["1000"] * 15)


def plan_capacity(*arguments: str) -> Result:
    return CliRunner().invoke(main, ("plan-capacity", *arguments), prog_name="mristream")


def refused(result: Result) -> str:
    """The one sentence on standard error of a command that ended with exit code 2."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    (sentence,) = [line for line in result.stderr.splitlines() if line.lower().startswith("error: ")]
    return sentence


def test_a_plan_is_a_table_by_hour_and_sentences() -> None:
    result = plan_capacity("--hours", A_DAY, "--latency-s", "30")

    assert result.exit_code == 0, result.output
    table, *sentences = result.stdout.split("\n\n")
    header, *hours = table.splitlines()
    assert header.split() == ["hour", "scans", "scans/s", "workers", "units", "busy", "p50", "p99"]
    assert [line.split()[:3] for line in hours[7:9]] == [["7", "2,000", "0.56"], ["8", "3,000", "0.83"]]
    assert [sentence.split()[0] for sentence in sentences] == [
        "Peak:",
        "A",
        "Replicas",
        "Cores",
        "Partitions:",
        "Bytes:",
    ]
    assert "hour 8 needs 1 unit and 1 worker." in sentences[0]


def test_json_has_the_plan_and_the_figures_behind_it() -> None:
    result = plan_capacity("--hours", A_DAY, "--latency-s", "30", "--json")

    plan = json.loads(result.stdout)
    assert (plan["units"], plan["workers"], plan["fewest_workers"], plan["partitions"]) == (1, 1, 1, 6)
    assert [hour["scans"] for hour in plan["hours"]][6:9] == [0, 2000, 3000]
    assert plan["figures"] == read_figures().model_dump(mode="json")
    assert plan["notes"] == []


def test_what_was_not_measured_is_said() -> None:
    result = plan_capacity(
        "--hours", A_DAY, "--latency-s", "30", "--gpu-scans-per-s=3000", "--bytes-per-scan=2e6", "--json"
    )

    gpu, size, reference = json.loads(result.stdout)["notes"]
    assert "latency with a GPU" in gpu
    assert "scans of 2 MB" in size
    assert "travel by reference" in reference


def test_figures_of_ones_own_are_taken(tmp_path: Path) -> None:
    slow = read_figures().model_dump(mode="json")
    slow["unit"]["scans_per_s"] = 1.0
    (tmp_path / "mine.json").write_text(json.dumps(slow))

    result = plan_capacity("--hours", A_DAY, "--latency-s=30", "--json", "--figures", str(tmp_path / "mine.json"))

    assert json.loads(result.stdout)["unit_scans_per_s"] == 1.0


@pytest.mark.parametrize("start", ["", "\N{BYTE ORDER MARK}"], ids=["plain", "from a spreadsheet"])
def test_hours_come_from_a_file_in_any_order(start: str, tmp_path: Path) -> None:
    rows = "".join(f"{hour * 10}, {hour}\r\n" for hour in reversed(range(24)))
    (tmp_path / "day.csv").write_text(f"{start}scans, hour\r\n{rows}\r\n", encoding="utf-8", newline="")

    assert read_hours(str(tmp_path / "day.csv")) == tuple(hour * 10 for hour in range(24))


@pytest.mark.parametrize(
    ("hours", "sentence"),
    [
        (A_DAY + ",1", "a day has 24 hours, and 25 numbers were given"),
        ("5,5", "a day has 24 hours, and 2 numbers were given"),
        (A_DAY[:-4] + "-1", "hour 23 has -1.0 scans"),
        (A_DAY[:-4] + "nan", "hour 23 has nan scans"),
        (A_DAY[:-4] + "ten", "number 24 of the scans by hour: 'ten' is no number"),
        (A_DAY[:-4], "number 24 of the scans by hour: '' is no number"),
        (",".join(["0"] * 24), "no hour has any scans"),
        (",".join(["1" * 300] * 24), "check the numbers"),
        ("nothing-here.csv", "nothing-here.csv can't be read: No such file"),
        ("9" * 300, "can't be read: File name too long"),
        ("", "can't be read"),
    ],
)
def test_wrong_hours_are_refused_in_a_sentence(hours: str, sentence: str) -> None:
    assert sentence in refused(plan_capacity("--hours", hours, "--latency-s", "30"))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "has the columns , where hour,scans is needed"),
        (b"hour,count\n0,1\n", "has the columns hour,count"),
        (b"hour,scans,site\n0,1,a\n", "has the columns hour,scans,site"),
        (b"hour,scans\n0,1\n", "lacks hour 1, 2, 3"),
        (b"hour,scans\n0,1\n0,2\n", "line 3: hour 0 is there twice"),
        (b"hour,scans\n24,1\n", "line 2: '24' is no hour"),
        (b"hour,scans\n-1,1\n", "line 2: '-1' is no hour"),
        (b"hour,scans\n0,many\n", "line 2 of the scans by hour: 'many' is no number"),
        (b"hour,scans\n0\n", "line 2: 1 cells"),
        (b"hour,scans\n0,\xff\n", "is no CSV file"),
        (b"hour,scans\n\x1b[31m,1\n", "is no hour"),
        (b"hour,scans\n" + b"1" * 5000 + b",1\n", f"line 2: '{'1' * 40}…' is no hour: they go from 0 to 23"),
    ],
)
def test_a_wrong_file_is_refused_in_a_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "day.csv").write_bytes(content)

    message = refused(plan_capacity("--hours", str(tmp_path / "day.csv"), "--latency-s", "30"))

    assert sentence in message
    assert message.isprintable()


@pytest.mark.parametrize(
    ("option", "sentence"),
    [
        ("--latency-s=0.001", "can't be had from any number of units"),
        ("--latency-s=nan", "a latency of nan s"),
        ("--study-scans=0", "a study of 0 scans"),
        ("--study-scans=" + "9" * 400, "a study has 1,000,000 scans at most"),
        ("--bytes-per-scan=0", "a scan of 0.0 bytes"),
        ("--gpu-scans-per-s=0", "a GPU of 0.0 scans"),
        ("--retention-days=-1", "-1.0 days"),
        ("--figures=nothing-here.json", "nothing-here.json can't be read"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(option: str, sentence: str) -> None:
    assert sentence in refused(plan_capacity("--hours", A_DAY, "--latency-s", "30", option))
