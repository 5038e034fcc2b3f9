"""JUnit XML: a suite for each case, a test for each rule."""

from xml.etree import ElementTree

from replay.gates.checking import Report
from replay.reports.checks.sentences import causes, describe
from replay.support.names import printable


def render(report: Report) -> str:
    root = ElementTree.Element("testsuites", name="replay")
    for case in report.cases:
        tests = [(finding.metric, finding.failed, describe(finding)) for finding in case.findings]
        if case.failed and not case.worse:
            tests.append((case.state, True, case.note))
        name = _text(case.name)
        failures = sum(failed for _, failed, _ in tests)
        suite = ElementTree.SubElement(
            root, "testsuite", name=name, tests=str(len(tests)), failures=str(failures), errors="0", skipped="0"
        )
        for metric, failed, description in tests:
            test = ElementTree.SubElement(suite, "testcase", classname=f"replay.{name}", name=metric, time="0")
            if failed:
                failure = ElementTree.SubElement(test, "failure", message=_text(description))
                failure.text = _text("\n".join([description, *causes(case)]))
            else:
                ElementTree.SubElement(test, "system-out").text = _text(description)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)


def _text(text: str) -> str:
    """Returns the text without control characters, which XML does not allow even if they are escaped."""
    return printable(text, keep="\n")
