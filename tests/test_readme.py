"""The README: short, one picture, no dead link, and every number in it is the one that was recorded."""

import re
from pathlib import Path

import pytest

from liger_mini.experiments.picture import RECORD, picture
from liger_mini.support.records import recorded

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_it_is_short_has_one_picture_and_its_links_lead_somewhere():
    assert len(README.splitlines()) <= 100
    assert README.count("![") == 1
    for document in (
        README,
        (ROOT / "CONTRIBUTING.md").read_text("utf-8"),
        (ROOT / "ARCHITECTURE.md").read_text("utf-8"),
    ):
        for link in re.findall(r"\]\(([^)#]+)\)", document):
            assert link.startswith("https://") or (ROOT / link).exists(), link


def test_the_picture_is_drawn_from_the_record():
    assert (ROOT / "book" / "figures" / "recall-by-distance.svg").read_text("utf-8") == picture(recorded(RECORD))


def demo_rows():
    demo = recorded("demo-cpu")
    models = {"teacher": demo["teacher"]}
    for part in (demo, demo["delta"]):
        models |= {f"{state}, {part['plan']['name']}": part[state] for state in ("linearized", "recovered")}
    for name, report in models.items():
        yield f"| {name} | {report['loss']:.2f} | {report['recall_inside']:.2f} | {report['recall_outside']:.2f} |"


def test_the_table_is_the_recorded_demos():
    shown = README[README.index("| model | loss |") :].split("\n\n")[0].splitlines()
    assert shown[2:] == list(demo_rows())


DEMO, SEARCH = recorded("demo-cpu"), recorded("recall-search-cpu")
MANY = SEARCH["best_on_more_questions"]["recall"]["outside"]
BEST = next(row for row in SEARCH["delta"]["rows"] if row["name"] == "the recall recipe" and row["recipe"]["seed"] == 0)
TRANSFER, STEPS = (BEST["recipe"][name] for name in ("transfer_steps", "steps"))
FOUND = BEST["recall"]["outside"]
ERROR = (FOUND * (1 - FOUND) / SEARCH["delta"]["questions_outside"]) ** 0.5
TABLE_6 = {name: v["summary"]["perplexity"][0] for name, v in recorded("ablation-cpu")["variants"].items()}
SPEED = {row["T"]: row["softmax_over_liger"] for row in recorded("benchmark-cpu")["liger_against_softmax"]}


@pytest.mark.parametrize(
    "words",
    [
        f"{DEMO['teacher']['recall']['outside']['questions']} questions far away",
        f"window of {DEMO['teacher']['window']} tokens",
        f"beyond the {DEMO['teacher']['reach']} tokens that stacked windows reach",
        f"wins back {100 * DEMO['gap_closed']:.0f} % of the lost loss",
        f"finds {DEMO['recovered']['recall_outside']:.2f} of what is far",
        f"{TRANSFER:,} steps of attention transfer and {STEPS:,} more finds {FOUND:.2f} ± {ERROR:.2f} of what is far",
        f"{BEST['window_only']['outside']:.2f} with its window alone",
        f"The best structure that adds, LightNet, finds {MANY:.2f}, with fewer stories",
        f"{TABLE_6['no recurrence']:.2f} against {TABLE_6['full']:.2f}",
        f"{SPEED[2048]:.2f} times its speed at 2,048 and {SPEED[16384]:.2f} times at 16,384",
    ],
)
def test_a_number_in_prose_is_the_recorded_one(words):
    assert words in README


def test_no_other_number_with_decimals_stands_in_the_readme():
    """What is measured has decimals: each must be one that a test above looks at."""
    checked = "\n".join([*demo_rows(), *test_a_number_in_prose_is_the_recorded_one.pytestmark[0].args[1]])
    prose = re.sub(r"```.*?```|\]\([^)]*\)|arXiv \d+\.\d+|Apache-2\.0|CC BY 4\.0|Python 3\.\d+", "", README, flags=re.S)
    assert {number for number in re.findall(r"\d+\.\d+", prose) if number not in checked} == set()


def test_whoever_looks_for_a_test_or_a_chapter_finds_it():
    """ARCHITECTURE.md and tests/README.md name every test file, and no test that is not there."""
    documents = (ROOT / "ARCHITECTURE.md").read_text("utf-8") + (ROOT / "tests" / "README.md").read_text("utf-8")
    patterns = set(re.findall(r"`(test_\w+\*?)`", documents))
    files = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    named = {file for file in files for pattern in patterns if re.fullmatch(pattern.replace("*", r"\w*"), file)}
    assert named == files
    assert all(any(re.fullmatch(pattern.replace("*", r"\w*"), file) for file in files) for pattern in patterns)
