"""What a user of this project gets beside it: all of it is pinned, and listed with its licence."""

import re
import sys
from importlib.metadata import PathDistribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.licences import licence, page, pinned

ROOT = Path(__file__).parent.parent
LICENCES = (ROOT / "docs" / "licences.md").read_text(encoding="utf-8")
PYTHON = re.search(r"under Python ([\d.]+)", LICENCES)[1]
STALE = "docs/licences.md is stale; run `make licences`"
CUDA = re.compile(r"(cuda|nvidia)-.+|triton")
"""What torch's wheels for CUDA ask for, and those without it don't."""
of_this_python = pytest.mark.skipif(
    f"{sys.version_info.major}.{sys.version_info.minor}" != PYTHON or sys.platform != "linux",
    reason=f"what is needed differs from that under Python {PYTHON} on Linux",
)


def asked_for(name, extras):
    """What a package asks for here with these extras: names, each with the extras that are asked of it."""
    for requirement in map(Requirement, distribution(name).requires or []):
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield canonicalize_name(requirement.name), frozenset(requirement.extras)


@pytest.fixture(scope="module")
def needed():
    """The names of all that the project and its extras bring."""
    ours = "slm-calibration"
    found, now = set(), {(ours, frozenset(distribution(ours).metadata.get_all("Provides-Extra")))}
    while now:
        found |= now
        now = {each for known in now for each in asked_for(*known)} - found
    return {name for name, _ in found if name != ours and not CUDA.fullmatch(name)}


@of_this_python
def test_everything_that_a_user_gets_is_pinned(needed):
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    assert needed - {canonicalize_name(line.split("==")[0]) for line in lines} == set()


@of_this_python
def test_the_page_of_licences_lists_what_a_user_gets_and_nothing_else(needed):
    names = re.findall(r"^\| ([\w-]+) \| \S+ \| .+ \|$", LICENCES, re.MULTILINE)
    assert names == ["package", *sorted(needed)], STALE


@of_this_python
def test_the_page_of_licences_says_what_the_metadata_of_what_is_installed_say(needed):
    assert page(map(distribution, needed), pinned()) + "\n" == LICENCES, STALE


CLASSIFIED = "Classifier: License :: OSI Approved :: "
SAID = {
    "License-Expression: MIT OR Apache-2.0\nLicense: a text": "MIT OR Apache-2.0",
    f"License: Apache 2.0\n{CLASSIFIED}Apache Software License": "Apache-2.0",
    "License: MPL-2.0 AND MIT": "MPL-2.0 AND MIT",
    "License: MIT License": "MIT",
    "License: BSD": "BSD",
    f"License: BSD\nClassifier: Topic :: Games\n{CLASSIFIED}BSD License": "BSD License",
    f"License: Dual\n{CLASSIFIED}MIT License\n{CLASSIFIED}BSD License": "MIT; BSD License",
    f"License: All that\n        is allowed\n{CLASSIFIED}MIT License": "MIT",
    f"License: {'All that is allowed. ' * 9}\nHome-page: https://a.example": "unknown: see https://a.example",
    "Project-URL: Source, https://b.example": "unknown: see https://b.example",
    "Summary: Nothing": "unknown: see some",
}


@pytest.mark.parametrize("metadata", SAID)
def test_a_licence_is_what_the_metadata_say_and_nothing_more(metadata, tmp_path):
    (tmp_path / "METADATA").write_text(f"Metadata-Version: 2.1\nName: some\nVersion: 1\n{metadata}\n")
    assert licence(PathDistribution(tmp_path).metadata) == SAID[metadata]


def test_no_package_is_under_the_gpl_alone():
    # "Under the terms of either", says its own text: the GPL or the Artistic License.
    assert re.findall(r"^\| ([\w-]+) \|.*(?:GPL|GNU)", LICENCES, re.MULTILINE) == ["text-unidecode"]
