"""checkov on the files; on the plans it is run where they are made (test_account.py)."""

from tests.support.terraform.running import TERRAFORM, checkov


def test_checkov_finds_nothing_unexplained_in_the_files() -> None:
    found = checkov("--directory", TERRAFORM)
    assert found["summary"]["passed"] > 300
    assert found["summary"]["parsing_errors"] == 0
    assert not [(each["check_id"], each["resource"]) for each in found["results"]["failed_checks"]]


def test_each_exception_says_why() -> None:
    skips = [
        line.strip()
        for path in sorted(TERRAFORM.rglob("*.tf"))
        for line in path.read_text().splitlines()
        if "checkov:skip" in line
    ]
    assert skips
    for skip in skips:
        check, _, why = skip.removeprefix("# checkov:skip=").partition(":")
        assert check.startswith("CKV") and len(why) > 10, skip
