"""Print docs/licences.md: the packages that a user of this project gets, and under which licences.

    make licences

It says what their metadata say, so it runs where they are installed. Of these, the packages that
constraints.txt pins are listed; tests/test_dependencies.py holds that against what they ask for.
"""

import re
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, PackageMetadata, distributions
from pathlib import Path

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"
HEAD = """# Licences

Made by `make licences`; don't edit. What the project and all its extras install under Python {python} on Linux, without the tools of development; another Python takes a few others. The versions are those of `constraints.txt`.

A licence is the SPDX expression of the package's metadata where there is one, or what they call it otherwise: `BSD License` leaves open which one, and two names with a semicolon leave open whether one may choose. A library inside a package's wheel shows only where the metadata name it.

Not listed: what torch's wheel for CUDA brings beside these, NVIDIA's libraries under NVIDIA's own proprietary licence among it, and what only the images of Modal hold (`deployments/images/train.txt`, `deployments/images/vllm.txt`).

The GPL is named by {gpl}; the MPL by {mpl}.

| package | version | licence |
|---|---|---|"""  # noqa: E501 - a paragraph is a line
SPDX = {
    "3-clause bsd license": "BSD-3-Clause",
    "apache 2.0": "Apache-2.0",
    "apache 2.0 license": "Apache-2.0",
    "apache license, version 2.0": "Apache-2.0",
    "apache-2.0 license": "Apache-2.0",
    "isc license": "ISC",
    "isc license (iscl)": "ISC",
    "mit license": "MIT",
    "mozilla public license 2.0 (mpl 2.0)": "MPL-2.0",
}
"""What metadata write for one licence and no other, in lower case."""
KNOWN = r"Apache-2\.0|BSD-2-Clause|BSD-3-Clause|ISC|MIT|MPL-2\.0|PSF-2\.0"


def main() -> None:
    """Print the page."""
    print(page(distributions(), pinned()))


def pinned() -> set[str]:
    """The names that constraints.txt pins."""
    return {normal(name) for name in re.findall(r"^([\w.-]+)==", CONSTRAINTS.read_text(), re.MULTILINE)}


def page(found: Iterable[Distribution], names: set[str]) -> str:
    """The page on those of the found packages that have one of these names."""
    listed = {name: each for each in found if (name := normal(each.name)) in names}
    licences = {name: licence(listed[name].metadata) for name in sorted(listed)}
    # A build such as +cpu is the same release.
    versions = {name: listed[name].version.partition("+")[0] for name in licences}
    head = HEAD.format(
        python=".".join(map(str, sys.version_info[:2])),
        gpl=_those_that_name("GPL|GNU", licences),
        mpl=_those_that_name("MPL", licences),
    )
    return "\n".join([head, *(f"| {name} | {versions[name]} | {licences[name]} |" for name in licences)])


def licence(metadata: PackageMetadata) -> str:
    """What the metadata of a package say of its licence."""
    expression = _field(metadata, "License-Expression")
    declared = _spdx(_field(metadata, "License"))
    if expression or re.fullmatch(rf"(?:{KNOWN})(?: (?:AND|OR) (?:{KNOWN}))*", declared):
        return expression or declared
    classifiers = [line.split(" :: ") for line in metadata.get_all("Classifier") or []]
    named = [_spdx(words[-1]) for words in classifiers if words[0] == "License"]
    # A text in the place of a name is none.
    short = declared if len(declared) < 40 and "\n" not in declared else ""
    return "; ".join(named) or short or f"unknown: see {_home(metadata)}"


def normal(name: str) -> str:
    """A package's name as an index writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _field(metadata: PackageMetadata, name: str) -> str:
    return next(iter(metadata.get_all(name) or []), "")


def _spdx(words: str) -> str:
    return SPDX.get(words.strip().lower(), words.strip())


def _home(metadata: PackageMetadata) -> str:
    link = _field(metadata, "Project-URL").partition(", ")[2]
    return _field(metadata, "Home-page") or link or metadata["Name"]


def _those_that_name(words: str, licences: dict[str, str]) -> str:
    return ", ".join(name for name, text in licences.items() if re.search(words, text)) or "none"


if __name__ == "__main__":
    main()
