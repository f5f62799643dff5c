"""The GPU table of README.md, made from the committed results, and the list of demands.

python -m benches.gpu.table                  write the table into README.md
python -m benches.gpu.table --musts          what each demand reached; ARGS: a results folder
python -m benches.gpu.table --unpack FILE    put a packed run into benches/results
"""

import argparse
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

from benches.gpu import musts
from benches.gpu.job import label
from benches.gpu.machine import ROOT
from benches.gpu.musts import Results
from benches.gpu.report import Row, ours
from benches.gpu.runner import SECTIONS

RESULTS = ROOT / "benches/results"
BEGIN, END = "<!-- gpu table: python -m benches.gpu.table -->", "<!-- end of gpu table -->"
NONE = (
    "No GPU result has been committed yet: the kernels were checked in Triton's interpreter and "
    "compiled offline, and their speed is not known. `benches/gpu/run.sh` measures it."
)


def load(folder: Path) -> dict[str, Results]:
    """The results in a folder: card to section to file."""
    found: dict[str, Results] = {}
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(content["machine"]["card"], {})[content["section"]] = content
    return found


def span(values: list[float], form: str) -> str:
    """One value, or the least and the most."""
    low, high = f"{min(values):{form}}", f"{max(values):{form}}"
    return low if low == high else f"{low} to {high}"


def families(results: Results) -> Iterator[tuple[str, list[Row]]]:
    """Every family of timed rows of ours and of others, the most important section first."""
    found: dict[str, list[Row]] = {}
    for name in SECTIONS:
        for row in results.get(name, {}).get("rows", []):
            if "ms" in row:
                found.setdefault(row["family"], []).append(row)
    yield from found.items()


def sizes(rows: list[Row]) -> str:
    """The sizes of a family: a key that varies shows its least and most value."""
    parts = []
    for key in dict.fromkeys(key for row in rows for key in row["at"]):
        values = list(dict.fromkeys(row["at"][key] for row in rows if key in row["at"]))
        if len(values) > 1 and all(isinstance(value, int) for value in values):
            parts.append(f"{key} {span(values, ',d')}")
        else:
            parts.append(f"{key} " + " or ".join(map(str, values)))
    return ", ".join(parts)


def against(rows: list[Row]) -> str:
    """How many times as fast ours is as each peer, over all sizes."""
    cases: dict[str, list[Row]] = {}
    for row in rows:
        cases.setdefault(label(row["at"]), []).append(row)
    ratios: dict[str, list[float]] = {}
    for case in cases.values():
        mine = musts.best(case, "tinylm")
        for row in case:
            if mine is not None and not ours(row):
                ratios.setdefault(row["name"], []).append(row["ms"] / mine["ms"])
    return ", ".join(f"{span(values, '.2f')}x {name}" for name, values in ratios.items())


def lines_of(family: str, rows: list[Row]) -> Iterator[str]:
    """The lines of a family: one per kernel of ours; the last compares the best with the peers."""
    names = list(dict.fromkeys(row["name"] for row in rows if ours(row)))
    for name in names:
        mine = [row for row in rows if row["name"] == name]
        unit = next((unit for unit in ("gbps", "tflops") if unit in mine[0]), None)
        figures = span([row["ms"] for row in mine], ".3g") + " ms"
        if unit:
            figures += f", {span([row[unit] for row in mine], ',.0f')} "
            figures += {"gbps": "GB/s", "tflops": "TFLOP/s"}[unit]
        shares = [row["percent"] for row in mine if "percent" in row]
        share = span(shares, ".0f") + "%" if shares else ""
        kernel = name.removeprefix("tinylm").strip()
        title = f"{family}, {kernel}" if kernel else family
        peers = against(rows) if name == names[-1] else ""
        yield f"| {title} | {sizes(mine)} | {figures} | {share} | {peers} |"


def tests_line(results: Results) -> str:
    """How many tests passed on the card."""
    rows = results.get("tests", {}).get("rows", [])
    if not rows:
        return ""
    failed = sum("failed" in row for row in rows)
    passed = sum("failed" not in row and "missing" not in row for row in rows)
    return f" {passed} tests passed on it and {failed} failed."


def card_text(results: Results) -> str:
    """The paragraph and the table of one card."""
    content = next(iter(results.values()))
    machine, ceilings = content["machine"], content["ceilings"]
    date = max(other["machine"]["date"] for other in results.values())
    text = (
        f"{machine['gpu']}, torch {machine['torch']}, triton {machine['triton']}, {date}: a copy "
        f"reads and writes {ceilings.get('gbps', 0):,.0f} GB/s together, a bfloat16 product runs "
        f"at {ceilings.get('tflops', 0):,.0f} TFLOP/s.{tests_line(results)}\n\n"
        "| operation | sizes | median | of the ceiling | speed against others |\n"
        "|---|---|---|---|---|"
    )
    return "\n".join([text, *(x for item in families(results) for x in lines_of(*item))])


def text_of(folder: Path) -> str:
    """Everything between the two marks of README.md."""
    cards = load(folder)
    return "\n\n".join(card_text(results) for results in cards.values()) if cards else NONE


def replaced(readme: str, text: str) -> str:
    """README.md with `text` between its marks."""
    head, found, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (found and end):
        raise ValueError(f"README.md must have the lines {BEGIN} and {END}")
    return f"{head}{BEGIN}\n{text}\n{END}{tail}"


def unpack(archive: Path, folder: Path) -> list[str]:
    """Take the results out of the file that a run left in OUT; return their names."""
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.isfile() and Path(m.name).name == m.name]
        tar.extractall(folder, members, filter="data")
    return [member.name for member in members]


def main(arguments: list[str]) -> int:
    """Write the table, or print the demands."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", nargs="?", type=Path, default=RESULTS)
    parser.add_argument("--musts", action="store_true", help="print what each demand reached")
    parser.add_argument("--unpack", type=Path, metavar="FILE", help="a run's <card>.tar")
    options = parser.parse_args(arguments)
    if options.unpack:
        print(*unpack(options.unpack, options.folder), sep="\n")
    if options.musts:
        for card, results in (load(options.folder) or {"no card": {}}).items():
            print(f"{card}:", *musts.lines(results), sep="\n")
        return 0
    readme = ROOT / "README.md"
    before = readme.read_text(encoding="utf-8")
    readme.write_text(replaced(before, text_of(options.folder)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
