"""JUnit XML: a suite for each case, a test for each rule."""

from xml.etree import ElementTree

from replay.gates.checking import Report
from replay.reports.checks.sentences import causes, describe


def render(report: Report) -> str:
    root = ElementTree.Element("testsuites", name="replay")
    for case in report.cases:
        tests = [(finding.metric, finding.failed, describe(finding)) for finding in case.findings]
        if case.failed and not case.worse:
            tests.append((case.state, True, case.note))
        failures = sum(failed for _, failed, _ in tests)
        suite = ElementTree.SubElement(
            root, "testsuite", name=case.name, tests=str(len(tests)), failures=str(failures), errors="0", skipped="0"
        )
        for name, failed, said in tests:
            test = ElementTree.SubElement(suite, "testcase", classname=f"replay.{case.name}", name=name, time="0")
            if failed:
                failure = ElementTree.SubElement(test, "failure", message=said)
                failure.text = "\n".join([said, *causes(case)])
            else:
                ElementTree.SubElement(test, "system-out").text = said
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True)
